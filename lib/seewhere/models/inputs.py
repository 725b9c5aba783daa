"""What every grounder does with what it is given, so that all of them refuse, convert and batch in the same way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

if TYPE_CHECKING:
    import torch
    from PIL import Image


def check_pairs(images: Sequence[Image.Image], phrases: Sequence[str], name: str) -> list[Image.Image]:
    """Check a request and return its N pictures in RGB, at their own sizes.

    Raises:
        TypeError: `phrases` is one string, which would be read as a list of letters.
        ValueError: the lengths differ or a phrase is empty.
    """
    if isinstance(phrases, str):
        raise TypeError(f"{name}: phrases must be a list with one phrase per image, got the single string {phrases!r}.")
    if len(images) != len(phrases):
        raise ValueError(
            f"{name}: {len(images)} images but {len(phrases)} phrases; expected one phrase per image. "
            "To ask several phrases about one image, repeat the image."
        )
    for place, phrase in enumerate(phrases):
        if not isinstance(phrase, str) or not phrase.strip():
            raise ValueError(
                f"{name}: phrase {place} is empty ({phrase!r}); expected words that name an object. Drop the pair."
            )
    converted: dict[int, Image.Image] = {}
    for image in images:
        if id(image) not in converted:
            converted[id(image)] = image if image.mode == "RGB" else image.convert("RGB")
    return [converted[id(image)] for image in images]


def resolve_device(device: str | torch.device | None, name: str) -> torch.device:
    """The device to run on. With None the best one found is taken, and the reason is printed."""
    import torch

    if device is not None:
        return torch.device(device)
    if torch.cuda.is_available():
        chosen, reason = "cuda", f"found {torch.cuda.get_device_name()}"
    elif torch.backends.mps.is_available():
        chosen, reason = "mps", "found an Apple GPU, no CUDA"
    else:
        chosen, reason = "cpu", "no GPU found"
    print(f"{name}: running on {chosen} ({reason}); pass device=... to choose another.")
    return torch.device(chosen)


def same_size_batches(
    images: Sequence[Image.Image], batch_size: int, name: str, progress: bool = True
) -> Iterator[list[int]]:
    """Places of the images, in batches of at most `batch_size` that hold one picture size each.

    Pictures of one size need no padding, so an answer does not depend on what else is in its batch. Shows a progress
    bar over the pictures when there is more than one batch.
    """
    if batch_size < 1:
        raise ValueError(f"{name}: batch_size is {batch_size}; expected 1 or more.")
    by_size: dict[tuple[int, int], list[int]] = {}
    for place, image in enumerate(images):
        by_size.setdefault(image.size, []).append(place)
    batches = [
        places[start : start + batch_size] for places in by_size.values() for start in range(0, len(places), batch_size)
    ]
    with tqdm(total=len(images), desc=name, unit="phrase", disable=not progress or len(batches) < 2) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch))


def load_configuration(source: str | Path, model_type: str, **options: Any) -> Any:
    """The configuration of a model folder or hub id, checked to be of the family `model_type`.

    Raises:
        FileNotFoundError: no such folder, and no such model on the hub or no way to reach it.
        ValueError: a model of another family.
    """
    from transformers import AutoConfig

    try:
        configuration = AutoConfig.from_pretrained(source, **options)
    except OSError as error:
        raise FileNotFoundError(
            f"no model at {str(source)!r}: expected a folder with config.json and weights, or a hub id that can be "
            f"downloaded or is in the local hub cache ({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from error
    if configuration.model_type != model_type:
        raise ValueError(f"{str(source)!r} holds a {configuration.model_type!r} model; expected {model_type!r}.")
    return configuration
