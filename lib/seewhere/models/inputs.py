"""What every grounder does with what it is given, so that all of them refuse, convert and batch in the same way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

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


def batched(
    images: Sequence[Image.Image], batch_size: int, name: str, progress: bool = True, same_size: bool = False
) -> Iterator[list[int]]:
    """Places of the images, in batches of at most `batch_size`.

    With `same_size` a batch holds pictures of one size only. They need no padding, so an answer does not depend on what
    else is in its batch. Shows a progress bar over the pictures when there is more than one batch.
    """
    if batch_size < 1:
        raise ValueError(f"{name}: batch_size is {batch_size}; expected 1 or more.")
    groups: dict[tuple[int, int] | None, list[int]] = {}
    for place, image in enumerate(images):
        groups.setdefault(image.size if same_size else None, []).append(place)
    batches = [
        places[start : start + batch_size] for places in groups.values() for start in range(0, len(places), batch_size)
    ]
    with tqdm(total=len(images), desc=name, unit="phrase", disable=not progress or len(batches) < 2) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch))


def model_family(source: str | Path, revision: str = "main") -> str:
    """The ``model_type`` that the config.json of a model folder or hub id names.

    Raises:
        FileNotFoundError: no such folder, and no such model on the hub or no way to reach it.
    """
    from transformers import PreTrainedConfig

    reason = "no config.json with a model_type"
    try:
        configuration, _ = PreTrainedConfig.get_config_dict(source, revision=revision)
    except OSError as error:
        configuration, reason = {}, f"{type(error).__name__}: {str(error).splitlines()[0]}"
    if "model_type" not in configuration:
        raise FileNotFoundError(
            f"no model at {str(source)!r} ({reason}); expected a folder with config.json and weights, or a hub id that "
            "can be downloaded or is in the local hub cache."
        )
    return str(configuration["model_type"])


def check_family(source: str | Path, expected: str, revision: str = "main") -> None:
    """Check that a folder or hub id holds a model of the family `expected`.

    Raises:
        FileNotFoundError: see :func:`model_family`.
        ValueError: a model of another family.
    """
    found = model_family(source, revision)
    if found != expected:
        raise ValueError(f"{str(source)!r} holds a {found!r} model; expected {expected!r}.")
