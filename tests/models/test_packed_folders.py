"""Packed model folders: little room, read by transformers like any other, and never mixed up."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from seewhere.models import few_bits, packed_folders
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "tiny")
    (tmp_path / "tiny" / "words.txt").write_text("beside the weights")
    return tmp_path / "tiny"


def test_a_packed_folder_is_small_and_unpacks_to_the_rounded_weights(folder: Path, tmp_path: Path) -> None:
    packed = packed_folders.pack(folder, tmp_path / "packed" / "tiny")
    assert not (packed / packed_folders.PLAIN).exists() and (packed / "words.txt").is_file()
    size = [(place / name).stat().st_size for place, name in
            ((packed, packed_folders.PACKED), (folder, packed_folders.PLAIN))]  # fmt: skip
    assert size[0] < 0.35 * size[1]
    place = packed_folders.plain(packed)
    assert place.name == "tiny" and (place / "words.txt").is_file()
    loaded, original = (AutoModelForCausalLM.from_pretrained(p, dtype=torch.float32) for p in (place, folder))
    for (name, ours), theirs in zip(loaded.named_parameters(), original.parameters(), strict=True):
        expected = few_bits.expand(few_bits.squeeze(theirs), theirs.shape)
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-6, msg=name)


def test_other_weights_never_get_the_copy_of_these(folder: Path, tmp_path: Path) -> None:
    first = packed_folders.plain(packed_folders.pack(folder, tmp_path / "a" / "tiny"))
    assert packed_folders.plain(tmp_path / "a" / "tiny") == first
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight[0] += 1
    model.save_pretrained(folder)
    assert packed_folders.plain(packed_folders.pack(folder, tmp_path / "b" / "tiny")) != first


def test_a_plain_folder_stays_where_it_is_and_an_empty_one_is_refused(folder: Path, tmp_path: Path) -> None:
    assert packed_folders.plain(folder) == folder
    with pytest.raises(FileNotFoundError, match=r"no model.safetensors"):
        packed_folders.pack(tmp_path, tmp_path / "packed")
