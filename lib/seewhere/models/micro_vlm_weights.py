"""The shipped micro vision-language models in little space: few bits a number, and nothing stored twice.

Three models of which two share an encoder, the third has micro-CLIP's own, and none needs sixteen bits. The numbers are
stored as `few_bits` does. The layers that find a place follow from the directions that they were wired along
(`micro_vlm_start.Room`): these are kept, and what training has changed since, where it has changed anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from seewhere import storage
from seewhere.models import few_bits, micro_vlm, micro_vlm_start
from seewhere.models.micro_clip import NAME as CLIP
from seewhere.models.micro_clip import WEIGHTS, MicroClip, shipped_folder
from seewhere.models.minigpt import MiniGPT, MiniGPTSettings
from seewhere.models.registry import MINIGPTS

FOLDER = WEIGHTS / "micro-pixels"
STEPS = {"language.model.embed_tokens.": 0.02, "language.": 0.15, "vision.": 0.1, "connector.": 0.05}
"""Start of a parameter's name -> width of the levels of a matrix, as a share of its rows' root mean square; the first
that fits holds. RE rises by one (textures) to five (novel scenes) in a hundred for all of it. Embeddings are the
output's weights, too: at 0.1 they alone cost six on scenes."""
CHANGE_STEP = 0.15
"""The same of what training has changed in the layers that find a place."""
INDEX, PARTS = "index.json", "parts.safetensors"
_READING = tuple(f"language.model.layers.{i}." for i in range(micro_vlm.READING))
_VISION = "vision."
_TIED = "language.lm_head.weight"


def pack(models: Mapping[str, MiniGPT], room: micro_vlm_start.Room, folder: Path = FOLDER) -> None:
    """Write models into one folder; parts that are equal are written once, and the shipped micro-CLIP's not at all.

    Args:
        models: by name.
        room: the directions that their first layers were wired along.
        folder: where they go.
    """
    from safetensors.torch import save_file  # slow to import

    encoder = _encoder()
    parts: dict[str, torch.Tensor] = {f"room.{f.name}": getattr(room, f.name).contiguous() for f in fields(room)}
    index: dict[str, Any] = {"models": {}, "encoder": _encoder_hash()}
    for name, model in models.items():
        held: dict[str, str] = {}
        changes = _changes(model, room)
        for key, tensor in (model.state_dict() | changes).items():
            if key == _TIED or (key.startswith(_READING) and key not in changes):
                continue
            if key in encoder and torch.equal(tensor.cpu().float(), encoder[key]):
                held[key] = CLIP
                continue
            stored = few_bits.squeeze(tensor, CHANGE_STEP if key in changes else _step(key))
            content = b"".join(part.numpy().tobytes() for part in stored.values())
            digest = hashlib.sha256(content).hexdigest()[:10]  # names cost room, too
            held[key] = digest
            parts |= {f"{digest}.{kind}": part for kind, part in stored.items()}
        index["models"][name] = held
        index["vision"] = model.vision.config.to_diff_dict()
        index["language"] = model.language.config.to_diff_dict()
        index["settings"] = asdict(model.settings)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(parts, folder / PARTS)
    storage.make_readable(folder / PARTS)
    storage.atomic_write_json(folder / INDEX, index)


def _step(key: str) -> float:
    return next(step for start, step in STEPS.items() if key.startswith(start))


def _changes(model: MiniGPT, room: micro_vlm_start.Room) -> dict[str, torch.Tensor]:
    """Parameters of the first layers minus what was wired: of the layers that do anything else than that.

    A layer does what its last matrices let out; what is drawn at random behind zeros is no change.
    """
    language: Any = model.language
    found: dict[str, torch.Tensor] = {}
    for number, wired in enumerate(micro_vlm_start.new_layers(language, room, blank=True)):
        held = language.model.layers[number]
        if any(_differs(held, wired, name) for name in _LETTING_OUT) or _reads_otherwise(held, wired):
            own = held.state_dict()
            found |= {f"{_READING[number]}{k}": own[k].cpu().float() - v for k, v in wired.state_dict().items()}
    return found


def check_wired(model: MiniGPT, room: micro_vlm_start.Room) -> None:
    """Refuse directions other than those that a model, whose first layers were held, is wired along.

    Raises:
        ValueError: what of which layer is not as wired.
    """
    language: Any = model.language
    for number, wired in enumerate(micro_vlm_start.new_layers(language, room, blank=True)):
        if odd := [name for name in _LETTING_OUT if _differs(language.model.layers[number], wired, name)]:
            raise ValueError(f"{model.name}: {', '.join(odd)} of layer {number} is not what these directions give")


_LETTING_OUT = ("self_attn.o_proj.weight", "mlp.down_proj.weight")


def _differs(held: nn.Module, wired: nn.Module, name: str, rows: torch.Tensor | slice = slice(None)) -> bool:
    ours, theirs = (layer.get_parameter(name).detach().cpu().float()[rows] for layer in (held, wired))
    largest = float(theirs.abs().max()) if len(theirs) else 0.0
    return not torch.allclose(ours, theirs, rtol=2e-3, atol=2e-3 * largest + 1e-6)


def _reads_otherwise(held: nn.Module, wired: nn.Module) -> bool:
    """Whether the wired units take in something else than was wired: those of a quiet layer do."""
    used = wired.get_parameter("mlp.down_proj.weight").detach().cpu().abs().sum(0) > 0
    return _differs(held, wired, "mlp.up_proj.weight", used)


@cache
def _encoder() -> dict[str, torch.Tensor]:
    """The shipped micro-CLIP's image tower by the names that its parameters have in a model here."""
    clip: Any = MicroClip.load(CLIP).model
    return {f"{_VISION}{key}": value.float() for key, value in clip.vision_model.state_dict().items()}


@cache
def _encoder_hash() -> str:
    return storage.hash_file(shipped_folder(CLIP, "seewhere train clip --out FOLDER") / "model.safetensors")


@cache
def _stored(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    from safetensors.torch import load_file

    if not (folder / INDEX).is_file():
        raise FileNotFoundError(f"{folder} holds no {INDEX}: the micro pixel models are not part of this installation")
    return storage.read_json(folder / INDEX), load_file(folder / PARTS)


def unpack(name: str, folder: Path = FOLDER) -> MiniGPT:
    """A model that `pack` wrote, fp32, in evaluation mode.

    Raises:
        FileNotFoundError: the folder does not hold packed models, or none of this name.
        ValueError: made for another tokenizer or another micro-CLIP than those of this installation.
    """
    index, parts = _stored(folder)
    if name not in index["models"]:
        raise FileNotFoundError(f"{folder} holds {', '.join(index['models'])}; no {name!r}")
    settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in index["settings"].items()}
    vision = CLIPVisionModel._from_config(CLIPVisionConfig(**index["vision"]), attn_implementation="eager")
    language: Any = LlamaForCausalLM(LlamaConfig(**index["language"]))
    model = MiniGPT(vision, language, micro_vlm.extended_tokenizer(), MiniGPTSettings(**settings), name)
    if len(model.tokenizer) != language.config.vocab_size:
        raise ValueError(
            f"the weights know {language.config.vocab_size} tokens, the micro language model's tokenizer with ours "
            f"{len(model.tokenizer)}: they were made for another one"
        )
    state = model.state_dict()
    held = index["models"][name]
    if CLIP in held.values() and index["encoder"] != _encoder_hash():
        raise ValueError(f"{folder}: {name} has the encoder of another {CLIP} than the one of this installation")
    room = micro_vlm_start.Room(**{f.name: parts[f"room.{f.name}"] for f in fields(micro_vlm_start.Room)})
    for target, layer in zip(
        language.model.layers, micro_vlm_start.new_layers(language, room, blank=True), strict=False
    ):
        target.load_state_dict(layer.state_dict())
    for key, digest in held.items():
        if digest == CLIP:
            state[key].copy_(_encoder()[key])
            continue
        kinds = {kind: parts[f"{digest}.{kind}"] for kind in ("half", "whole", "scale") if f"{digest}.{kind}" in parts}
        if not key.startswith(_READING):
            state[key].zero_()  # else it is a change of what was wired
        state[key].add_(few_bits.expand(kinds, state[key].shape))
    return model.eval()


def fingerprint(name: str, folder: Path = FOLDER) -> str:
    """Hash of everything that a shipped model is made of.

    Raises:
        FileNotFoundError: no such model; the message lists the names.
    """
    index, _ = _stored(folder)
    if name not in index["models"]:
        raise FileNotFoundError(f"no shipped model {name!r}; expected one of {', '.join(MINIGPTS)}")
    held = index["models"][name]
    text = "".join(f"{key}{digest}" for key, digest in sorted(held.items()))
    if CLIP in held.values():
        text += str(index["encoder"])
    return hashlib.sha256(text.encode()).hexdigest()
