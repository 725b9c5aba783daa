"""What is put on top of a language model's weights, or done to them on the way in: LoRA adapters and a 4-bit base."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"


def add_adapter(model: Any, adapter: str | Path, merge: bool = True) -> Any:
    """`model` with a peft adapter, merged into its weights if asked (faster; exact up to rounding in float32).

    An adapter on the output layer of a model whose output and input embeddings are one tensor must not be merged into
    that tensor, or the input embeddings would change with it: the two are separated first.
    """
    from peft import PeftConfig, PeftModel  # slow to import, and needed only here

    source = adapter_source(adapter)
    settings = PeftConfig.from_pretrained(str(source))
    if merge and "lm_head" in (getattr(settings, "target_modules", None) or []):
        untie(model)
    adapted = PeftModel.from_pretrained(model, str(source))
    return adapted.merge_and_unload() if merge else adapted


def adapter_source(adapter: str | Path) -> str | Path:
    """Where an adapter is: the folder under the package's weights of that name, else a folder or hub id as given."""
    return WEIGHTS / str(adapter) if (WEIGHTS / str(adapter)).is_dir() else adapter


def untie(model: Any) -> None:
    """Give the output layer its own copy of the weights it shares with the input embeddings, if it does."""
    output, given = model.get_output_embeddings(), model.get_input_embeddings()
    if output.weight is given.weight:
        output.weight = torch.nn.Parameter(given.weight.detach().clone(), requires_grad=given.weight.requires_grad)
        model.config.tie_word_embeddings = False


def four_bit_settings(device: torch.device) -> Any:
    """The paper's 4-bit base: nf4, double quantisation, bfloat16 compute.

    Raises:
        ValueError: without CUDA or without bitsandbytes.
    """
    missing = [] if device.type == "cuda" else [f"a CUDA GPU (the device is {device.type})"]
    if importlib.util.find_spec("bitsandbytes") is None:
        missing.append("the package bitsandbytes (pip install bitsandbytes)")
    if missing:
        raise ValueError(f"a 4-bit base needs {' and '.join(missing)}. Load without four_bit, or there.")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def check_four_bit(source: str | Path) -> None:
    """Refuse a model that would hardly be smaller in four bits.

    Only linear layers are packed. Mixtures of experts keep theirs as one tensor of three dimensions (Mixtral's are 45
    of 47 billion weights), which stays in 16 bits, and would be widened to 32 for training.

    Raises:
        ValueError: more than half of the weights are in neither linear layers nor embeddings.
        OSError: nothing there.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source))
    plain = (torch.nn.Linear, torch.nn.Embedding)
    known = {id(layer.weight): layer.weight.numel() for layer in model.modules() if isinstance(layer, plain)}
    total = sum(parameter.numel() for parameter in model.parameters())
    left = total - sum(known.values())
    if left > total / 2:
        raise ValueError(
            f"{source}: {left / 1e9:.1f} of {total / 1e9:.1f} billion weights are experts kept in one tensor, which a "
            f"4-bit base leaves in 16 bits ({2 * left / 1e9:.0f} GB). Choose a model without experts, or load it "
            "without four_bit where it fits."
        )
