"""LoRA adapters that are trained: put on a model, counted, saved and read back, apart from the base they change."""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from seewhere import storage

# LLM-wrapper, appendix: every linear layer of the Llama family and the output layer.
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head")
OUTPUT = "lm_head"
ROUTERS = {"gate", "router", "shared_expert_gate"}
"""Small layers that choose experts: no part of what the published settings train."""


def add_lora(
    model: Any,
    rank: int = 128,
    alpha: int = 256,
    dropout: float = 0.1,
    targets: Sequence[str] = LORA_TARGETS,
) -> Any:
    """`model` with trainable LoRA adapters; the defaults are the paper's (LLM-wrapper, r 128, alpha 256).

    A 4-bit base is prepared for training first. Where the output layer is the input embedding (tied), LoRA on
    ``lm_head`` changes the output only. Layers under other names than Llama's (GPT-2's, or Phi-3's fused ones) get
    adapters as well, with a line that says which; routers of experts get none.

    Raises:
        ValueError: a model without any such layer.
    """
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training  # slow to import

    if getattr(model, "is_loaded_in_4bit", False):
        model = prepare_model_for_kbit_training(model)
    settings = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=_targets(model, targets), task_type="CAUSAL_LM"
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*")
        warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")  # peft sets it right by itself
        return get_peft_model(model, settings)


def _targets(model: Any, targets: Sequence[str]) -> list[str]:
    """The ends of the names of the layers that get adapters."""
    from transformers.pytorch_utils import Conv1D

    output = model.get_output_embeddings()
    linear = {name: layer for name, layer in model.named_modules() if isinstance(layer, (torch.nn.Linear, Conv1D))}
    found = [target for target in targets if any(f".{name}".endswith(f".{target}") for name in linear)]
    missing, wanted = {*targets} - {*found, OUTPUT}, {target.rpartition(".")[2] for target in targets}
    ends = {name.rpartition(".")[2] for name, layer in linear.items() if layer is not output}
    others = sorted(ends - wanted - ROUTERS) if missing else []
    if OUTPUT in wanted and OUTPUT not in found:
        found += [name.rpartition(".")[2] for name, layer in linear.items() if layer is output]
    if others:
        print(f"LoRA on {', '.join([*found, *others])}: this model has no {', '.join(sorted(missing))}")
    if not found and not others:
        raise ValueError(f"{type(model).__name__} has no linear layer that LoRA could change; expected a decoder")
    return [*found, *others]


def count_trainable(model: Any) -> int:
    """Number of parameters that training changes."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def save_adapter(model: Any, folder: str | Path, dtype: torch.dtype = torch.float16) -> Path:
    """Write a peft model's adapter, and nothing of its base, as half precision safetensors; whole or not at all."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    with storage.atomic_directory(Path(folder)) as work:
        target = Path(work)
        _portable(model.peft_config["default"]).save_pretrained(str(target))
        save_file(
            {k: v.detach().to("cpu", dtype).contiguous() for k, v in weights.items()},
            target / "adapter_model.safetensors",
            metadata={"format": "pt"},
        )
        storage.make_readable(target / "adapter_model.safetensors")
    return Path(folder)


def _portable(config: Any) -> Any:
    """The settings as another machine can read them: a local base by its folder's name, targets in a fixed order."""
    portable = copy.copy(config)
    base = str(config.base_model_name_or_path or "")
    portable.base_model_name_or_path = Path(base).name if Path(base).is_absolute() else base
    portable.target_modules = sorted(config.target_modules)
    return portable


def factors(change: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (rows, rank) and (rank, columns) whose product is the nearest matrix of that rank to ``change``."""
    left, sizes, right = torch.linalg.svd(change.detach().float(), full_matrices=False)
    roots = sizes[:rank].sqrt()
    return left[:, :rank] * roots, roots[:, None] * right[:rank]


def cut_adapter(folder: str | Path, rank: int) -> float:
    """Bring a saved adapter down to a lower rank, in its folder: the nearest updates of that rank (truncated SVD).

    Args:
        folder: as `save_adapter` wrote it; replaced whole or not at all.
        rank: to keep; the scaling alpha / rank stays.

    Returns:
        The mean share, over layers, of the squared singular values that were kept.

    Raises:
        ValueError: if the adapter's rank is lower already.
    """
    from safetensors.torch import load_file, save

    place = Path(folder)
    config = storage.read_json(place / "adapter_config.json")
    if rank > config["r"] or rank < 1:
        raise ValueError(f"rank: expected 1 to {config['r']}, the adapter's own, got {rank}")
    weights, cut, kept = load_file(place / "adapter_model.safetensors"), dict[str, torch.Tensor](), []
    for name in (name for name in weights if ".lora_A." in name):
        other = name.replace(".lora_A.", ".lora_B.")
        # Up (out, r) times down (r, in) has rank r: orthogonal bases of both leave a small r x r matrix to decompose.
        left, inner_left = torch.linalg.qr(weights[other].float())
        right, inner_right = torch.linalg.qr(weights[name].float().T)
        inner = inner_left @ inner_right.T
        up, down = factors(inner, rank)
        cut[other], cut[name] = (left @ up).half().contiguous(), (down @ right.T).half().contiguous()
        lost = (inner - up @ down).square().sum() / inner.square().sum().clamp_min(1e-12)
        kept.append(1 - float(lost))
    config.update(r=rank, lora_alpha=config["lora_alpha"] * rank / config["r"])
    with storage.atomic_directory(place, overwrite=True) as work:
        shutil.copytree(place, work, dirs_exist_ok=True)
        # Written over the copy's own bytes, so that the file keeps the rights that the folder's files have.
        (work / "adapter_model.safetensors").write_bytes(save(cut, metadata={"format": "pt"}))
        storage.atomic_write_json(work / "adapter_config.json", config)
    return sum(kept) / len(kept)


def load_adapter_weights(model: Any, folder: str | Path) -> None:
    """Put the weights of a saved adapter into a peft model with the same LoRA settings.

    Raises:
        ValueError: if names or shapes differ.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    stored = load_file(Path(folder) / "adapter_model.safetensors")
    wanted = {k: tuple(v.shape) for k, v in get_peft_model_state_dict(model, save_embedding_layers=False).items()}
    if (found := {k: tuple(v.shape) for k, v in stored.items()}) != wanted:
        odd = sorted(k for k in {*wanted, *found} if wanted.get(k) != found.get(k))
        raise ValueError(
            f"the adapter in {folder} does not fit: {len(odd)} of {len(wanted)} weights differ, first {odd[0]} "
            f"(expected {wanted.get(odd[0])}, got {found.get(odd[0])}). Use the rank and layers it was made with."
        )
    set_peft_model_state_dict(model, stored)
