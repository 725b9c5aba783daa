"""The shipped micro vision-language models in little space: few bits a number, and nothing stored twice.

Three models of which two share an encoder, all share the layers that find a place, and none needs sixteen bits. The
numbers are stored as `few_bits` does. The layers that find a place follow from the directions that they use
(`micro_vlm_start.Room`), so only these are kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from seewhere import storage
from seewhere.models import few_bits, micro_vlm, micro_vlm_start
from seewhere.models.micro_clip import WEIGHTS
from seewhere.models.minigpt import MiniGPT, MiniGPTSettings
from seewhere.models.registry import MINIGPTS

FOLDER = WEIGHTS / "micro-pixels"
STEP = 0.1
"""Width of the levels of a matrix, as a share of its rows' root mean square: five bits and a half a number. RE rises by
one or two in a hundred for it, by four at 0.16."""
INDEX, PARTS = "index.json", "parts.safetensors"
_READING = tuple(f"language.model.layers.{i}." for i in range(micro_vlm.READING))
_TIED = "language.lm_head.weight"


def pack(models: Mapping[str, MiniGPT], room: micro_vlm_start.Room, folder: Path = FOLDER) -> None:
    """Write models into one folder; parts that are equal are written once.

    Args:
        models: by name.
        room: the directions that their first layers were wired along.
        folder: where they go.

    Raises:
        ValueError: a model whose first layers are not those of `room`.
    """
    from safetensors.torch import save_file  # slow to import

    parts: dict[str, torch.Tensor] = {f"room.{f.name}": getattr(room, f.name).contiguous() for f in fields(room)}
    index: dict[str, Any] = {"models": {}}
    for name, model in models.items():
        _check_reading(model, room)
        held: dict[str, str] = {}
        for key, tensor in model.state_dict().items():
            if key.startswith(_READING) or key == _TIED:
                continue
            stored = few_bits.squeeze(tensor, STEP)
            content = b"".join(part.numpy().tobytes() for part in stored.values())
            digest = hashlib.sha256(content).hexdigest()[:16]
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


def _check_reading(model: MiniGPT, room: micro_vlm_start.Room) -> None:
    """Compare what the model's first layers do with what the wiring says: the parts that anything comes out of."""
    language: Any = model.language
    wired = micro_vlm_start.new_layers(language, room)
    for number, layer in enumerate(wired):
        held = language.model.layers[number]
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            ours, theirs = layer.get_parameter(f"{name}.weight"), held.get_parameter(f"{name}.weight")
            if not torch.allclose(ours, theirs, rtol=2e-3, atol=2e-3 * float(ours.detach().abs().max()) + 1e-6):
                raise ValueError(f"{model.name}: {name} of layer {number} is not what these directions give")


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
    for key, digest in index["models"][name].items():
        kinds = {kind: parts[f"{digest}.{kind}"] for kind in ("half", "whole", "scale") if f"{digest}.{kind}" in parts}
        state[key].copy_(few_bits.expand(kinds, state[key].shape))
    room = micro_vlm_start.Room(**{f.name: parts[f"room.{f.name}"] for f in fields(micro_vlm_start.Room)})
    for target, layer in zip(language.model.layers, micro_vlm_start.new_layers(language, room), strict=False):
        target.load_state_dict(layer.state_dict())
    return model.eval()


def fingerprint(name: str, folder: Path = FOLDER) -> str:
    """Hash of everything that a shipped model is made of.

    Raises:
        FileNotFoundError: no such model; the message lists the names.
    """
    index, _ = _stored(folder)
    if name not in index["models"]:
        raise FileNotFoundError(f"no shipped model {name!r}; expected one of {', '.join(MINIGPTS)}")
    text = "".join(f"{key}{digest}" for key, digest in sorted(index["models"][name].items()))
    return hashlib.sha256(text.encode()).hexdigest()
