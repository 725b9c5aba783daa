"""One argument for a model that is asked for pixels: a name, a folder, MiniGPT-v2, or any chat model of the hub.

Where shipped weights are missing, a tiny model without any training can stand in, so that every cell of a notebook can
be tried; its name says what it is, and what it answers means nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from seewhere import storage
from seewhere.models import micro_vlm
from seewhere.models.chat_pixels import ChatPixelReader
from seewhere.models.micro_clip import MicroClip, build_model
from seewhere.models.micro_vlm_weights import FOLDER
from seewhere.models.minigpt import SETTINGS_FILE, MiniGPT, micro_minigpt
from seewhere.models.number_formats import quick_dtype
from seewhere.models.registry import MINIGPTS, load_minigpt
from seewhere.models.stepwise import training_device
from seewhere.pixels import prompts
from seewhere.pixels.reader import PixelReader
from seewhere.pixels.recipe import TRAINING

MINIGPT_V2 = "minigpt-v2"
WEIGHTS = "weights_hash"  # attribute of a reader that was loaded here
MAKE = "seewhere train pixels"
TINY = "tiny and untrained"
ENCODER, ACCOUNT = "encoder at the start", "**How it went.**"
"""What the card of the shipped models calls the two things that a reader of their scores has to know."""


def load(source: str, stand_in: bool = False, half: bool = False, progress: bool = False, **options: Any) -> Any:
    """A model that reads pixels, finds boxes and reads masks.

    Args:
        source: one of

            * a name of `MINIGPTS` (shipped with the package), or a folder made by `MiniGPT.write`;
            * "minigpt-v2:FOLDER", a folder with the released checkpoint (see `models.minigpt_released`);
            * a folder or hub id of any other chat model that sees: it is asked in plain words, with nothing trained.
        stand_in: let a tiny untrained model stand in for shipped weights that are missing, and say so.
        half: bfloat16 for models of this package, where the processor multiplies it natively: half the time, and errors
            that differ in the third digit.
        progress: show bars.
        options: of `PixelReader` or `ChatPixelReader.load`.

    Raises:
        FileNotFoundError: nothing of that name, or weights that are not there; the message says what makes them.
    """
    name, _, folder = source.partition(":")
    if name == MINIGPT_V2 and folder:
        from seewhere.models.minigpt_released import load_released

        released = load_released(Path(folder).expanduser(), device=str(training_device()))
        return PixelReader(released, turn=prompts.instruction, progress=progress, **options)
    if source in MINIGPTS or (Path(source).expanduser() / SETTINGS_FILE).is_file():
        try:
            model = load_minigpt(source, str(training_device()))
            known = parameters_hash(model)
            number = getattr(torch, quick_dtype() or "float32") if half else torch.float32
            reader = PixelReader(model.to(number), progress=progress, **options)
            setattr(reader, WEIGHTS, known)
            return reader
        except FileNotFoundError as error:
            if not stand_in:
                raise FileNotFoundError(
                    f"the weights of {source!r} are not here ({error}). Make them with `{MAKE}` (see `{MAKE} --help`), "
                    "or try the code without them: preset=smoke."
                ) from error
        print(f"{source}: its weights are not here; a model, {TINY}, stands in. Its answers mean nothing.")
        return tiny_reader(f"{source} ({TINY})", seed=sorted(MINIGPTS).index(source), **options)
    return _chat(source, progress, **options)


def _chat(source: str, progress: bool, **options: Any) -> ChatPixelReader:
    place = Path(source).expanduser()
    if place.is_dir() and not (place / "config.json").is_file():
        inside = f"; {place / 'model'} is one" if (place / "model" / SETTINGS_FILE).is_file() else ""
        raise FileNotFoundError(
            f"{source!r} holds no model: expected {SETTINGS_FILE} (made by `{MAKE}`) or config.json (a chat model)"
            f"{inside}"
        )
    try:
        return ChatPixelReader.load(str(place) if place.is_dir() else source, progress=progress, **options)
    except OSError as error:
        raise FileNotFoundError(
            f"no model {source!r}: expected one of {', '.join(MINIGPTS)}, a folder made by `{MAKE}`, "
            f"{MINIGPT_V2}:FOLDER, or a folder or hub id of a chat model that sees ({str(error).splitlines()[0]})"
        ) from error


def tiny_reader(name: str = TINY, seed: int = 0, **options: Any) -> PixelReader:
    """A model of the micro one's make that was never trained, much smaller: for trying code, in a second."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = micro_vlm.extended_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip = MicroClip(
            build_model(64, side=128, patch=16, width=64, layers=1, text_layers=1, projection=16), tokenizer
        )
        sizes: dict[str, Any] = {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        }
        ends: dict[str, Any] = {
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": None,
        }
        config = LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.4, **sizes, **ends)
        model = micro_minigpt(clip.eval(), LlamaForCausalLM(config), tokenizer, merge=1, name=name)
    return PixelReader(model, **({"progress": False} | options))


def load_all(sources: Sequence[str], stand_in: bool = False, half: bool = False, **options: Any) -> dict[str, Any]:
    """Short name -> reader, in order; `options` and errors as `load`, and ValueError for two models of one name."""
    names = [short_name(source) for source in sources]
    for name, source in zip(names, sources, strict=True):
        if names.count(name) > 1:
            raise ValueError(
                f"{source!r} and another model are both called {name!r}; ask for them in runs of their own"
            )
    return {name: load(source, stand_in, half, **options) for name, source in zip(names, sources, strict=True)}


def beside(main: Mapping[str, Any], more: Sequence[str], **options: Any) -> dict[str, Any]:
    """Return the main models, and others that join them under their short names.

    Args:
        main: name -> reader.
        more: sources of the others, see `load`.
        options: as for `load_all`.

    Raises:
        ValueError: two models of one name.
    """
    for source in more:
        if (name := short_name(source)) in main:
            raise ValueError(f"{source!r} would be called {name!r}, as one of the main models is; give it another name")
    return dict(main) | load_all(more, **options)


def short_name(source: str) -> str:
    """What a model is called in tables: ``stage3`` for ``micro-pixels-stage3``, the last part of a path.

    Trainings write their weights into a folder named ``model``; it is the one above that tells them apart.
    """
    path = Path(source.rpartition(":")[2] or source)
    name = path.parent.name if path.name == "model" and path.parent.name else path.name
    return name.removeprefix("micro-pixels-")


def describe(reader: Any) -> str:
    """What a model is, in a line."""
    if not isinstance(reader, PixelReader):
        return f"{reader.name}, a chat model asked zero-shot"
    model = reader.model
    count = sum(p.numel() for p in model.parameters()) / 1e6
    return f"{model.name}: {count:.1f} M parameters, {model.tokens} image tokens, pictures of {model.side} px"


def how_trained(sources: Iterable[str]) -> str:
    """What is on record of how models were trained: the card of those in the package, `TRAINING` beside a folder."""
    found: list[str] = []
    for source in dict.fromkeys("" if source in MINIGPTS else source for source in sources):
        record = Path(source).expanduser().parent / TRAINING
        if not source:
            found += _account(FOLDER / "README.md")
        elif record.is_file():
            stored = storage.read_json(record)
            settings = stored["settings"]
            shares = ", ".join(f"{task} {share:g}" for task, share in settings["mixture"].items())
            found.append(
                f"{source}: stage {stored['stage']}, {settings['steps']} steps of {settings['images']} pictures "
                f"({shares}), rate {settings['learning_rate']:g}, from {settings['start'] or settings['clip']}"
            )
        else:
            found.append(f"{source}: nothing on record")
    return "\n".join(found)


def _account(card: Path) -> list[str]:
    """From the card of the shipped models: which encoder they began with, and what is told of their training."""
    if not card.is_file():
        return ["the models of the package: no card came with them"]
    text = card.read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith(f"| {ENCODER} |")]
    told = [" ".join(part.split()) for part in text.split("\n\n") if part.startswith(ACCOUNT)]
    return [f"{name}: {value}" for name, value in rows] + [part.removeprefix(ACCOUNT).strip() for part in told]


def fingerprints(readers: dict[str, Any]) -> dict[str, str]:
    """Name -> hash of a model's parameters, for records."""
    found = {}
    for name, reader in readers.items():
        model: Any = reader.model if isinstance(reader, PixelReader) else reader.chat.model
        # Known from before the numbers were rounded for speed, where they were.
        found[name] = getattr(reader, WEIGHTS, None) or parameters_hash(model)
    return found


def parameters_hash(model: MiniGPT | torch.nn.Module) -> str:
    """SHA-256 over names and values (in float16) of all parameters."""
    import hashlib

    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().to("cpu", torch.float16).contiguous().numpy().tobytes())
    return digest.hexdigest()
