"""Training: the loss at answer positions, packed rows, resuming, LoRA counts."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from seewhere import training
from seewhere.training import Sample, TrainingSettings, answer_loss, collate, pack
from tiny_models import tiny_llama
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    Phi3Config,
    TrainingArguments,
)


def tiny(attention: str = "sdpa", tied: bool = False) -> LlamaForCausalLM:
    return tiny_llama(
        48, max_position_embeddings=256, initializer_range=0.3, tie_word_embeddings=tied, attn_implementation=attention
    )


def samples(seed: int = 0, lists: int = 3, each: int = 4) -> list[Sample]:
    random = np.random.default_rng(seed)
    made = []
    for _ in range(lists):
        shared = random.integers(3, 48, random.integers(18, 30)).tolist()
        for _ in range(each):
            own = random.integers(3, 48, random.integers(1, 6)).tolist()
            made.append(Sample((*shared, *own), (*random.integers(3, 48, random.integers(1, 3)).tolist(), 2)))
    return made


def separate_loss(model: torch.nn.Module, given: list[Sample]) -> torch.Tensor:
    """Sum over samples, each alone in a plain forward pass with logits everywhere, over all answer tokens."""
    total, count = torch.zeros(()), 0
    for sample in given:
        ids = torch.tensor([[*sample.prompt, *sample.answer]])
        logits = model(ids).logits[0, len(sample.prompt) - 1 : -1]
        total = total + functional.cross_entropy(logits, torch.tensor(sample.answer), reduction="sum")
        count += len(sample.answer)
    return total / count


def gradients(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad and p.grad is not None}


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys() and first
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("row_tokens", [45, 130, 500])
@pytest.mark.parametrize("lora", [False, True])
def test_packed_answer_loss_equals_each_sample_alone(attention: str, row_tokens: int, lora: bool) -> None:
    model = tiny(attention, tied=lora)
    if lora:
        model = training.add_lora(model, rank=4, alpha=8, dropout=0.0)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zero at the start, which would hide everything before it
                torch.nn.init.normal_(parameter, std=0.2)
    given = samples()
    batch = collate(pack(given, row_tokens), torch.float32 if attention == "eager" else None)
    packed, alone = answer_loss(model, batch), separate_loss(model, given)
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-5)
    assert_same(gradients(model, packed), gradients(model, alone))


def test_loss_equals_the_models_own_on_unpacked_rows() -> None:
    model = tiny()
    rows = [pack([sample], 100)[0] for sample in samples()]
    batch = collate(rows)
    mask = torch.tensor([[1] * len(row) + [0] * (batch["labels"].shape[1] - len(row)) for row in rows])
    own = model(input_ids=batch["input_ids"], attention_mask=mask, labels=batch["labels"]).loss
    ours = answer_loss(model, batch)
    torch.testing.assert_close(ours, own, atol=1e-5, rtol=1e-5)
    assert_same(gradients(model, answer_loss(model, batch)), gradients(model, own))


def test_output_layer_runs_at_answers_only() -> None:
    model = tiny()
    given = samples()
    seen: list[tuple[int, ...]] = []
    model.lm_head.register_forward_hook(lambda _, inputs, output: seen.append(tuple(output.shape)))
    answer_loss(model, collate(pack(given, 200)))
    assert seen == [(sum(len(s.answer) for s in given), 48)]
    model(torch.tensor([[1, 2, 3]]))
    assert seen[-1] == (1, 3, 48), "the hook must be gone after the loss"


def test_packing_stores_shared_beginnings_once_and_loses_nothing() -> None:
    given = samples()
    rows = pack(given, 200)
    assert sum(map(len, rows)) < 0.6 * sum(map(len, given))
    assert all(len(row) <= 200 for row in rows)
    labels = [token for row in rows for token in row.labels if token != -100]
    assert labels == [token for sample in given for token in sample.answer]


def test_packing_and_samples_refuse_what_cannot_be_used() -> None:
    with pytest.raises(ValueError, match="sample 0 has 12 tokens, a row at most 8"):
        pack([Sample(tuple(range(10)), (1, 2))], 8)
    with pytest.raises(ValueError, match="a prompt and an answer"):
        Sample((1, 2), ())
    batch = collate(pack([Sample((1, 2, 3), (4,))], 8))
    batch["labels"][:] = -100
    with pytest.raises(ValueError, match="no answer token"):
        answer_loss(tiny(), batch)


SETTINGS = TrainingSettings(learning_rate=5e-3, epochs=3, rows_per_step=2, save_every=2, warmup=0.1)


def trained_weights(folder: Path, evaluate: object = None, settings: TrainingSettings = SETTINGS) -> torch.Tensor:
    model = training.add_lora(tiny(), rank=4, alpha=8, dropout=0.1)
    training.train(model, pack(samples(lists=8), 60), folder, settings, evaluate=evaluate, progress=False)  # type: ignore[arg-type]
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])


class Killed(Exception):
    pass


def run_until_killed(folder: Path, step: int) -> None:
    calls = 0

    def kill(_: object) -> dict[str, float]:
        nonlocal calls
        calls += 1
        if calls == step:
            raise Killed
        return {}

    model = training.add_lora(tiny(), rank=4, alpha=8, dropout=0.1)
    rows = pack(samples(lists=8), 60)
    with pytest.raises(Killed):
        training.train(model, rows, folder, SETTINGS, evaluate=kill, evaluate_every=1, progress=False)


def test_loss_falls_and_the_history_holds_curves(tmp_path: Path) -> None:
    model = tiny()
    rows = pack(samples(), 120)
    settings = TrainingSettings(learning_rate=5e-3, epochs=25, rows_per_step=2, save_every=1000)
    result = training.train(
        model, rows, tmp_path, settings, evaluate=lambda m: {"p_at_1": 0.5}, evaluate_every=5, progress=False
    )
    losses = result.history["loss"].dropna()
    assert losses.iloc[-1] < 0.2 * losses.iloc[0]
    assert len(losses) == result.steps
    assert result.history["p_at_1"].notna().sum() >= result.steps // 5
    assert (tmp_path / "history.csv").is_file()


def test_a_killed_training_ends_where_an_unbroken_one_does(tmp_path: Path) -> None:
    whole = trained_weights(tmp_path / "whole")
    run_until_killed(tmp_path / "killed", 5)
    assert training.last_whole_checkpoint(tmp_path / "killed").name == "checkpoint-4"
    torch.testing.assert_close(trained_weights(tmp_path / "killed"), whole, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("damage", ["cut", "missing", "no list", "changed"])
def test_torn_checkpoints_are_set_aside(tmp_path: Path, damage: str) -> None:
    whole = trained_weights(tmp_path / "whole")
    run_until_killed(tmp_path / "torn", 7)
    newest = tmp_path / "torn" / "checkpoint-6"
    weights = newest / "adapter_model.safetensors"
    content = weights.read_bytes()
    if damage == "cut":
        weights.write_bytes(content[: len(content) // 2])
    elif damage == "changed":
        weights.write_bytes(content[:-8] + bytes(8))
    elif damage == "missing":
        (newest / "optimizer.pt").unlink()
    else:
        (newest / training.COMPLETE).unlink()
    with pytest.warns(UserWarning, match="checkpoint-6 is torn"):
        resumed = trained_weights(tmp_path / "torn")
    assert (tmp_path / "torn" / "torn-checkpoint-6").is_dir()
    torch.testing.assert_close(resumed, whole, atol=1e-6, rtol=1e-5)


def test_recomputing_activations_changes_nothing(tmp_path: Path) -> None:
    plain = trained_weights(tmp_path / "plain", settings=TrainingSettings(learning_rate=5e-3))
    less_memory = trained_weights(tmp_path / "less", settings=TrainingSettings(learning_rate=5e-3, recompute=True))
    torch.testing.assert_close(less_memory, plain, atol=1e-5, rtol=1e-4)


def test_a_folder_of_another_training_is_refused(tmp_path: Path) -> None:
    trained_weights(tmp_path)
    other = TrainingSettings(learning_rate=1e-3, epochs=3, rows_per_step=2, save_every=2, warmup=0.1)
    with pytest.raises(ValueError, match=r"learning_rate: 0.005 -> 0.001"):
        trained_weights(tmp_path, settings=other)
    with pytest.raises(ValueError, match="resume=False"):
        training.train(tiny(), pack(samples(), 60), tmp_path, SETTINGS, resume=False, progress=False)
    with pytest.raises(ValueError, match="no rows"):
        training.train(tiny(), [], tmp_path, progress=False)


def test_checkpoints_and_saved_adapters_hold_no_base_weights(tmp_path: Path) -> None:
    from peft import PeftModel
    from safetensors import safe_open

    model = training.add_lora(tiny(tied=True), rank=4, alpha=8, dropout=0.0)
    model.peft_config["default"].base_model_name_or_path = "/somewhere/here/base"
    training.train(model, pack(samples(), 60), tmp_path / "run", SETTINGS, progress=False)
    training.save_adapter(model, tmp_path / "adapter", torch.float32)
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == "base", "no path of this machine in what is shared"
    assert written["target_modules"] == sorted(written["target_modules"])
    for file in [next((tmp_path / "run").glob("checkpoint-*")), tmp_path / "adapter"]:
        with safe_open(file / "adapter_model.safetensors", "pt") as weights:
            assert all("lora_" in name for name in weights.keys())  # noqa: SIM118 - not a dict
    again = PeftModel.from_pretrained(tiny(tied=True), str(tmp_path / "adapter")).eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    torch.testing.assert_close(again(ids).logits, model(ids).logits, atol=1e-6, rtol=1e-5)


def test_factors_are_the_nearest_matrix_of_their_rank() -> None:
    from seewhere.models.lora import factors

    torch.manual_seed(0)
    exact = torch.randn(9, 2) @ torch.randn(2, 7)
    left, right = factors(exact, 2)
    assert left.shape == (9, 2) and right.shape == (2, 7) and torch.allclose(left @ right, exact, atol=1e-5)
    noisy = exact + 0.1 * torch.randn(9, 7)
    left, right = factors(noisy, 2)
    least = float(torch.linalg.svdvals(noisy)[2:].norm())
    assert float((left @ right - noisy).norm()) == pytest.approx(least, rel=1e-4)


def test_an_adapter_cut_to_a_lower_rank_is_the_nearest_of_that_rank(tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from seewhere.models.lora import cut_adapter

    model = training.add_lora(tiny(), rank=6, alpha=12, dropout=0.0)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    folder = training.save_adapter(model, tmp_path / "adapter")
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"

    def update() -> torch.Tensor:
        found = load_file(folder / "adapter_model.safetensors")
        config = json.loads((folder / "adapter_config.json").read_text())
        return config["lora_alpha"] / config["r"] * found[name.format("B")].float() @ found[name.format("A")].float()

    whole = update()
    share = cut_adapter(folder, 2)
    values = torch.linalg.svdvals(whole)
    assert update().shape == whole.shape and torch.linalg.matrix_rank(update(), rtol=1e-2) == 2
    torch.testing.assert_close((update() - whole).norm(), values[2:].norm(), atol=0, rtol=1e-2)
    assert 0.3 < share < 1
    with pytest.raises(ValueError, match="expected 1 to 2"):
        cut_adapter(folder, 4)


def meta_model(config: object) -> torch.nn.Module:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def test_lora_counts_of_the_paper() -> None:
    llama = LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    )
    mixtral = MixtralConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        num_local_experts=8,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        counts = [training.count_trainable(training.add_lora(meta_model(config))) for config in (llama, mixtral)]
    assert counts == [352_485_376, 113_672_192]


def test_layers_under_other_names_are_adapted_too(capsys: pytest.CaptureFixture[str]) -> None:
    gpt2 = GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=16)
    phi = Phi3Config(vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
                     num_key_value_heads=2, pad_token_id=0)  # fmt: skip
    blocks = tuple(name for name in training.LORA_TARGETS if name != "lm_head")
    expected = [
        (gpt2, training.LORA_TARGETS, {"c_attn", "c_proj", "c_fc", "lm_head"}),
        (gpt2, blocks, {"c_attn", "c_proj", "c_fc"}),
        (phi, training.LORA_TARGETS, {"qkv_proj", "o_proj", "gate_up_proj", "down_proj", "lm_head"}),
    ]
    for config, targets, names in expected:
        model = training.add_lora(AutoModelForCausalLM.from_config(config), 2, targets=targets)
        adapted = {
            name.split(".lora_A")[0].rpartition(".")[2] for name, _ in model.named_parameters() if "lora_A" in name
        }
        assert adapted == names
        assert "this model has no" in capsys.readouterr().out
    training.add_lora(tiny(), 2)
    assert not capsys.readouterr().out


def test_several_gpus_of_one_process_do_not_multiply_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(arguments: TrainingArguments) -> torch.device:
        arguments._n_gpu = 4
        return torch.device("cpu")

    monkeypatch.setattr(TrainingArguments, "_setup_devices", property(found))
    made = training._arguments(tmp_path, TrainingSettings(rows_per_step=2), False)
    assert made.train_batch_size == 2 and made.n_gpu == 1
