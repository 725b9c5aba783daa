"""MiniGPT-v2 as released: its checkpoint's names mapped onto transformers' classes.

Three files make the model: EVA ViT-g (``eva_vit_g.pth``), Llama-2-7B-chat (a folder in transformers' form), and the
checkpoint, which holds only what was trained: the linear layer and LoRA of rank 64 on queries and values, and the
encoder where that was adapted. EVA was trained at 224 pixels; its positions are interpolated to the 32 x 32 patches of
448 pixels. The encoder has 39 layers: the file's 40th is not used.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, Blip2VisionConfig, Blip2VisionModel

from seewhere.models.minigpt import MiniGPT, MiniGPTSettings
from seewhere.training import add_lora

EVA_FILE, LLAMA_FOLDER = "eva_vit_g.pth", "llama"
LORA: dict[str, Any] = {"rank": 64, "alpha": 16, "dropout": 0.05, "targets": ("q_proj", "v_proj")}
# CLIP's pixel statistics, which EVA-CLIP was trained with.
MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
_VISION, _NORM, _LINEAR, _LANGUAGE = "visual_encoder.", "ln_vision.", "llama_proj.", "llama_model."
_OUTER = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.weight": "embeddings.patch_embedding.weight",
    "patch_embed.proj.bias": "embeddings.patch_embedding.bias",
}
_INNER = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def load_released(
    folder: str | Path,
    checkpoint: str | None = None,
    vision_config: Blip2VisionConfig | None = None,
    dtype: torch.dtype = torch.float16,
    device: str = "cuda",
) -> MiniGPT:
    """MiniGPT-v2, or a model trained further from it, from a folder with the released files.

    Args:
        folder: holds ``eva_vit_g.pth``, ``llama/`` and the checkpoint.
        checkpoint: its file name; by default the only other ``.pth`` file there.
        vision_config: the encoder; by default EVA ViT-g at 448 pixels.
        dtype, device: of the model.

    Raises:
        FileNotFoundError: a part is missing, or it is not clear which file is the checkpoint.
        ValueError: names or shapes that do not fit.
    """
    folder = Path(folder)
    file = _checkpoint_file(folder, checkpoint)
    config = vision_config or Blip2VisionConfig(image_size=448)
    vision: Any = Blip2VisionModel(config)
    vision.to(dtype)
    # The norm behind the encoder has the usual epsilon, those inside it 1e-6.
    vision.post_layernorm.eps = 1e-5
    torch.nn.init.ones_(vision.post_layernorm.weight)
    torch.nn.init.zeros_(vision.post_layernorm.bias)
    _fill(vision, eva_weights(_read(folder / EVA_FILE), config), EVA_FILE, may_miss=("post_layernorm.",))
    language = AutoModelForCausalLM.from_pretrained(folder / LLAMA_FOLDER, dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(folder / LLAMA_FOLDER)
    language = add_lora(language, **LORA)
    settings = MiniGPTSettings(merge=4, mean=MEAN, deviation=DEVIATION)
    model = MiniGPT(vision, language, tokenizer, settings, name="minigpt-v2").to(dtype)
    load_checkpoint(model, _read(file), file.name)
    return model.to(device).eval()


def load_checkpoint(model: MiniGPT, stored: Mapping[str, Any], source: str = "the checkpoint") -> None:
    """Put a checkpoint's weights into a model: linear layer and LoRA always, the encoder and its norm if there.

    Raises:
        ValueError: a weight is missing, left over, or of another shape.
    """
    weights = dict(stored.get("model", stored))
    _fill(model.connector, _below(weights, _LINEAR), source)
    adapters = {_with_adapter_name(k): v for k, v in _below(weights, _LANGUAGE).items() if "lora_" in k}
    wanted = {name: parameter for name, parameter in model.language.named_parameters() if "lora_" in name}
    _check_names(wanted, adapters, source)
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(adapters[name])
    if trained := _below(weights, _VISION):
        _fill(model.vision, eva_weights(trained, model.vision.config), source, may_miss=("post_layernorm.",))
    if norm := _below(weights, _NORM):
        _fill(model.vision.post_layernorm, norm, source)


def eva_weights(stored: Mapping[str, torch.Tensor], config: Blip2VisionConfig) -> dict[str, torch.Tensor]:
    """Weights of EVA ViT under the names of `Blip2VisionModel`, for its number of layers and image size.

    Raises:
        ValueError: a name that is not known.
    """
    found: dict[str, torch.Tensor] = {}
    biases: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in stored.items():
        if name in _OUTER:
            found[_OUTER[name]] = value
            continue
        kind, _, rest = name.partition(".")
        if kind != "blocks":
            if kind in ("norm", "fc_norm", "head", "mask_token", "rel_pos_bias"):
                continue  # parts of EVA that nothing behind its blocks uses
            raise ValueError(f"the encoder's weights hold {name!r}, which is not a part of EVA ViT")
        number, _, part = rest.partition(".")
        if int(number) >= config.num_hidden_layers:
            continue
        place = f"encoder.layers.{number}."
        stem, _, end = part.rpartition(".")
        if part in ("attn.q_bias", "attn.v_bias"):
            biases.setdefault(place, {})[end[0]] = value
        elif stem in _INNER:
            found[f"{place}{_INNER[stem]}.{end}"] = value
        else:
            raise ValueError(f"the encoder's weights hold {name!r}, which is not a part of EVA ViT")
    for place, two in biases.items():
        # Keys have no bias in EVA.
        found[f"{place}self_attn.qkv.bias"] = torch.cat([two["q"], torch.zeros_like(two["q"]), two["v"]])
    positions = "embeddings.position_embedding"
    if positions in found:
        side, patch = config.image_size, config.patch_size
        assert isinstance(side, int) and isinstance(patch, int), "EVA ViT reads square pictures"
        found[positions] = resized_positions(found[positions], side // patch)
    return found


def resized_positions(positions: torch.Tensor, grid: int) -> torch.Tensor:
    """Position embeddings (1, 1 + g * g, W) of a g x g grid, interpolated (bicubic) to (1, 1 + grid * grid, W)."""
    old = round((positions.shape[1] - 1) ** 0.5)
    if old == grid:
        return positions
    square = positions[:, 1:].float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    square = functional.interpolate(square, size=(grid, grid), mode="bicubic", align_corners=False)
    flat = square.permute(0, 2, 3, 1).flatten(1, 2).to(positions.dtype)
    return torch.cat([positions[:, :1], flat], dim=1)


def _checkpoint_file(folder: Path, name: str | None) -> Path:
    for part in (EVA_FILE, LLAMA_FOLDER, *([name] if name else [])):
        if not (folder / part).exists():
            raise FileNotFoundError(
                f"{folder / part} is missing; expected {EVA_FILE}, {LLAMA_FOLDER}/ (Llama-2-7b-chat-hf) and "
                "MiniGPT-v2's checkpoint in one folder"
            )
    if name:
        return folder / name
    others = sorted(p.name for p in folder.glob("*.pth") if p.name != EVA_FILE)
    if len(others) != 1:
        raise FileNotFoundError(f"expected one checkpoint (.pth) beside {EVA_FILE} in {folder}, found {others}")
    return folder / others[0]


def _read(file: Path) -> dict[str, Any]:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{file} holds more than weights and is not read, as it could run code ({error}). Save its 'model' entry "
            "anew with torch.save in an environment that you trust it in."
        ) from error


def _below(weights: Mapping[str, torch.Tensor], start: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(start): value for name, value in weights.items() if name.startswith(start)}


def _with_adapter_name(name: str) -> str:
    """Old checkpoints of peft leave out the adapter's name: lora_A.weight for lora_A.default.weight."""
    for part in ("lora_A", "lora_B"):
        name = name.replace(f"{part}.weight", f"{part}.default.weight")
    return name


def _fill(
    module: torch.nn.Module, weights: Mapping[str, torch.Tensor], source: str, may_miss: tuple[str, ...] = ()
) -> None:
    wanted = {k: v for k, v in module.state_dict().items() if not (may_miss and k.startswith(may_miss))}
    _check_names(wanted, weights, source)
    module.load_state_dict(dict(weights), strict=False)


def _check_names(wanted: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor], source: str) -> None:
    expected, given = ({k: tuple(v.shape) for k, v in part.items()} for part in (wanted, found))
    odd = sorted(k for k in {*expected, *given} if expected.get(k) != given.get(k))
    if odd:
        raise ValueError(
            f"{source}: {len(odd)} of {len(expected)} weights do not fit, first {odd[0]} (expected "
            f"{expected.get(odd[0], 'none')}, got {given.get(odd[0], 'none')}). Is this another model's file?"
        )
