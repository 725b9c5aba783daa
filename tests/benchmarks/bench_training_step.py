"""One LoRA training step: output layer at answers only and packed rows, beside the usual way, and the machine's limit.

Compared, on the same questions and weights, forward and backward:
* padded rows, logits at every position (the usual way);
* padded rows, logits at the answers only;
* packed rows (shared candidate lists stored once), logits at the answers only;
* the limit: operations of the layers, forward and through-the-activations backward, on the packed tokens, at the speed
  of this machine's own matrix product.

    python tests/benchmarks/bench_training_step.py [--short] [--model smollm2]
"""

from __future__ import annotations

from typing import Any

import torch
from measure import arguments, matmul_peak, matrix_parameters, seconds, show, wrapper_questions
from seewhere.models.language_model import HubLanguageModel, load_language_model
from seewhere.training import Row, Sample, add_lora, answer_loss, collate, pack

RANK = 16


def step(model: Any, batch: dict[str, torch.Tensor], full: bool) -> float:
    """One forward and backward pass; gives the loss."""
    model.zero_grad(set_to_none=True)
    if full:
        given = {name: batch[name] for name in ("input_ids", "position_ids", "attention_mask")}
        logits = model(**given, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), batch["labels"][:, 1:].flatten(), ignore_index=-100
        )
    else:
        loss = answer_loss(model, batch)
    loss.backward()
    return float(loss.detach())


def padded(samples: list[Sample]) -> list[Row]:
    """One sample per row."""
    return [pack([sample], len(sample))[0] for sample in samples]


def compare(
    base: HubLanguageModel, model: Any, title: str, pictures: int, phrases: int, chosen: Any, times: int
) -> None:
    """Time the three ways on one set of samples and print them."""
    chats, options = wrapper_questions(pictures, phrases, chosen.seed, chosen.coordinates)
    samples = [
        Sample(tuple(prompt), (*base.answer_tokens(row[i % len(row)]), base.end_token))
        for i, (prompt, row) in enumerate(zip(base.prompt_tokens(chats), options, strict=True))
    ]
    device = next(model.parameters()).device

    def batch(rows: list[Row]) -> dict[str, torch.Tensor]:
        return {name: value.to(device) for name, value in collate(rows).items()}

    packed_rows = pack(samples, max(1024, max(map(len, samples))))
    wide, packed = batch(padded(samples)), batch(packed_rows)
    losses = [step(model, wide, True), step(model, wide, False), step(model, packed, False)]
    full = seconds(lambda: step(model, wide, True), times)
    answers = seconds(lambda: step(model, wide, False), times)
    ours = seconds(lambda: step(model, packed, False), times)
    layers, head = matrix_parameters(model)
    answer_tokens, tokens = sum(len(s.answer) for s in samples), sum(map(len, packed_rows))
    weights = model.get_input_embeddings().weight
    limit = 4.0 * (layers * tokens + head * answer_tokens) / matmul_peak(weights.device, weights.dtype)
    spread = max(losses) - min(losses)
    rows = [
        ("packed rows, logits at answers", ours, f"{len(samples) / ours:.2f} samples/s, {tokens} tokens"),
        ("padded rows, logits at answers", answers, f"{wide['input_ids'].numel()} tokens"),
        ("padded rows, logits everywhere", full, f"losses agree within {spread:.1e}"),
        ("limit: layers' operations at matrix-product speed", limit, f"packed reaches {limit / ours:.0%} of it"),
    ]
    show(f"{title}: {len(samples)} samples (times as multiples of packed)", rows, ours)


def main() -> None:
    """Run both comparisons."""
    chosen = arguments(__doc__.splitlines()[0])
    base = load_language_model(chosen.model)
    if not isinstance(base, HubLanguageModel):
        raise SystemExit("this benchmark needs a model that runs here, not an address")
    model = add_lora(base.model, rank=RANK, alpha=2 * RANK, dropout=0.0).train()
    pictures, times = (2, 1) if chosen.short else (8, 3)
    compare(base, model, "one question per picture", pictures, 1, chosen, times)
    compare(base, model, "four questions per picture", max(pictures // 4, 1), 4, chosen, times)


if __name__ == "__main__":
    main()
