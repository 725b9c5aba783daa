"""One argument for a model: a name, an address, a hub id or a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seewhere.models.inputs import model_family
from seewhere.models.protocols import Grounder
from seewhere.models.provenance import is_address

if TYPE_CHECKING:
    from seewhere.models.minigpt import MiniGPT


def _grounding_dino(source: str | None, **options: Any) -> Grounder:
    from seewhere.models.grounding_dino import HUB_ID, GroundingDino

    return GroundingDino.load(source or HUB_ID, **options)


def _grounding_dino_by_groups(source: str | None, **options: Any) -> Grounder:
    return _grounding_dino(source, **({"scoring": "groups"} | options))


def _florence2(source: str | None, **options: Any) -> Grounder:
    from seewhere.models.florence2 import HUB_ID, Florence2

    return Florence2.load(source or HUB_ID, **options)


def _micro(source: str | None, **options: Any) -> Grounder:
    from seewhere.models.micro_detector import MicroDetector

    return MicroDetector.load(source or "micro", **options)


def _micro_b(source: str | None, **options: Any) -> Grounder:
    return _micro(source or "micro-b", **options)


def _micro_places(source: str | None, **options: Any) -> Grounder:
    return _micro(source or "micro", **({"places": True, "name": "micro-places"} | options))


NAMES: dict[str, Callable[..., Grounder]] = {
    "micro": _micro,
    "micro-b": _micro_b,
    "micro-places": _micro_places,
    "grounding-dino": _grounding_dino,
    "gdrec": _grounding_dino_by_groups,
    "florence-2": _florence2,
}
FAMILIES: dict[str, Callable[..., Grounder]] = {"grounding-dino": _grounding_dino, "florence2": _florence2}


def load_grounder(source: str | Path, **options: Any) -> Grounder:
    """Load a grounder.

    Args:
        source: one of

            * a name: "micro", "micro-b" (shipped), "micro-places" ("micro" reading place words by rule),
              "grounding-dino", "gdrec", "florence-2" (from the hub);
            * "name:folder or hub id": one of these names with other weights, "gdrec:IDEA-Research/grounding-dino-base";
            * an address "http://..." or "https://...", see :mod:`seewhere.models.api`;
            * a folder or hub id of a Grounding DINO or Florence-2 model, or a folder of a micro detector.
        options: passed on to the model (``device``, ``batch_size``, ``progress``, thresholds, ...).

    Raises:
        FileNotFoundError: nothing of that name; the message lists the names.
        ValueError: a model that cannot ground phrases.
    """
    text = str(source)
    if is_address(text):
        from seewhere.models.api import ApiGrounder

        return ApiGrounder(text, **options)
    name, _, weights = text.partition(":")
    if name in NAMES:
        return NAMES[name](weights or None, **options)
    if _is_micro_folder(Path(text)):
        return _micro(text, **options)
    known = f"known names are {', '.join(NAMES)}"
    try:
        family = model_family(text)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error} As a name it is unknown too: {known}.") from error
    if family not in FAMILIES:
        raise ValueError(f"{text!r} holds a {family!r} model, expected one of {', '.join(FAMILIES)}; {known}.")
    return FAMILIES[family](text, **options)


def _is_micro_folder(folder: Path) -> bool:
    """Whether a folder holds a micro detector, whose config.json describes its network instead of naming a family."""
    from seewhere.storage import read_json

    path = folder / "config.json"
    if not path.is_file():
        return False
    configuration = read_json(path)
    return isinstance(configuration, dict) and "network" in configuration and "model_type" not in configuration


# ------------------------------------------------------------------------------------------------ pixel models

MINIGPTS: dict[str, str] = {
    "micro-pixels-frozen": "the baseline: the encoder was never trained for pixels",
    "micro-pixels-stage2": "the encoder was trained to tell colours",
    "micro-pixels-stage3": "stage 2, then trained further with its encoder frozen",
}
"""Shipped models in MiniGPT-v2's layout, and what each is."""


def load_minigpt(source: str | Path, device: str = "cpu") -> MiniGPT:
    """Load a vision-language model in MiniGPT-v2's layout.

    Args:
        source: a name (`MINIGPTS`), or a folder made by `MiniGPT.write`.
        device: where it goes.

    Raises:
        FileNotFoundError: neither; the message lists the names.
    """
    from seewhere.models.minigpt import SETTINGS_FILE, MiniGPT

    if str(source) in MINIGPTS:
        from seewhere.models.micro_vlm_weights import unpack

        return unpack(str(source)).to(device).eval()
    folder = Path(source).expanduser()
    if not (folder / SETTINGS_FILE).is_file():
        raise FileNotFoundError(
            f"no pixel model {str(source)!r}: expected one of {', '.join(MINIGPTS)}, or a folder with {SETTINGS_FILE} "
            "(make one with: seewhere train pixels --stage all --out FOLDER)"
        )
    return MiniGPT.load(folder, device=device)
