"""Answering closed questions: `choose` beside generating the answer, and beside what the machine could do at most.

Compared, on the same questions and weights:
* one prompt at a time, greedy, up to 128 tokens (the way LLM-wrapper's released code answers);
* the same in batches, up to 128 tokens, and up to 4 (enough for an index and its end);
* whole prompts in batches without sharing;
* the limit: the operations that no method can do without (each distinct prompt beginning once), at the speed of this
  machine's own matrix product.

A model that has not been fine-tuned often goes on talking; a fine-tuned one (--adapter) stops after the index, and
generation is then cheaper: look at the row with up to 4 tokens for that case.

    python tests/benchmarks/bench_answering.py [--short] [--model smollm2] [--adapter FOLDER] [--coordinates pixels]
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from measure import arguments, matmul_peak, matrix_parameters, seconds, show, wrapper_questions
from seewhere.models import choose as engine
from seewhere.models.language_model import HubLanguageModel, load_language_model


def least_operations(model: HubLanguageModel, tokens: list[list[int]]) -> float:
    """Operations of the layers' and the output matrices for every distinct prompt beginning once.

    Attention scores and the second token of long indices are left out, so this is a lower bound.
    """
    layers, head = matrix_parameters(model.model)
    ordered = sorted(map(tuple, tokens))
    distinct = len(ordered[0]) + sum(
        len(b) - next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        for a, b in pairwise(ordered)
    )
    return 2.0 * (layers * distinct + head * len(tokens))


def compare(model: HubLanguageModel, title: str, pictures: int, phrases: int, one_by_one: int, chosen: Any) -> None:
    """Time every way on one set of questions and print them."""
    chats, options = wrapper_questions(pictures, phrases, chosen.seed, chosen.coordinates)
    tokens = model.prompt_tokens(chats)
    choices = [engine.close_options([model.answer_tokens(o) for o in row], model.end_token) for row in options]

    def whole() -> list[np.ndarray]:
        return engine.option_log_probabilities(model.model, tokens, choices, share=False)

    shared_scores = engine.option_log_probabilities(model.model, tokens, choices)
    difference = max(float(np.abs(a - b).max()) for a, b in zip(shared_scores, whole(), strict=True))
    ours = seconds(lambda: model.choose(chats, options), repeats=3)
    some = chats[:: max(len(chats) // one_by_one, 1)][:one_by_one]
    single = seconds(lambda: [model.generate([chat], 128) for chat in some]) * len(chats) / len(some)
    batched = seconds(lambda: model.generate(chats, 128))
    brief = seconds(lambda: model.generate(chats, 4))
    weights = model.model.get_input_embeddings().weight
    limit = least_operations(model, tokens) / matmul_peak(weights.device, weights.dtype)
    count, mean = len(chats), np.mean([len(t) for t in tokens])
    rows = [
        ("choose", ours, f"{count / ours:.2f} questions/s"),
        ("one at a time, generate up to 128 tokens", single, f"measured on {len(some)} of {count}, scaled"),
        ("batched, generate up to 128 tokens", batched, ""),
        ("batched, generate up to 4 tokens", brief, "free text all the same, can be unusable"),
        ("choose without sharing", seconds(whole), f"largest log-probability difference {difference:.1e}"),
        ("limit: needed operations at matrix-product speed", limit, f"choose reaches {limit / ours:.0%} of it"),
    ]
    show(f"{title}: {count} questions, {mean:.0f} tokens each (times as multiples of choose)", rows, ours)


def main() -> None:
    """Run both comparisons."""
    chosen = arguments(__doc__.splitlines()[0])
    model = load_language_model(chosen.model, chosen.adapter)
    if not isinstance(model, HubLanguageModel):
        raise SystemExit("this benchmark needs a model that runs here, not an address")
    model.progress = False
    torch.manual_seed(chosen.seed)
    pictures, one_by_one = (4, 2) if chosen.short else (16, 4)
    compare(model, "one question per picture", pictures, 1, one_by_one, chosen)
    compare(model, "six questions per picture", max(pictures // 6, 2), 6, one_by_one, chosen)


if __name__ == "__main__":
    main()
