"""Fine-tuning a language model into LLM-wrapper: LoRA on the answers only, resumable, with its curve.

Questions about one candidate list share it in a packed row (`seewhere.packing`), so a scene with ten expressions costs
little more than a scene with one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from seewhere import training
from seewhere.llm_wrapper import prompts
from seewhere.llm_wrapper.examples import Example
from seewhere.models.language_model import HubLanguageModel

ATTENTION_AND_MLP = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """LoRA as in the paper (r 128, alpha 256, dropout 0.1, also on the output layer)."""

    rank: int = 128
    alpha: int = 256
    dropout: float = 0.1
    targets: tuple[str, ...] = training.LORA_TARGETS


def to_samples(language_model: HubLanguageModel, examples: Sequence[Example]) -> list[training.Sample]:
    """Tokenise examples with the model's chat template; the answer ends with the end-of-turn token."""
    tokens = language_model.prompt_tokens([prompts.messages(e.prompt) for e in examples])
    return [
        training.Sample(tuple(t), (*language_model.answer_tokens(e.answer), language_model.end_token))
        for t, e in zip(tokens, examples, strict=True)
    ]


def share_right(model: HubLanguageModel, examples: Sequence[Example]) -> float:
    """Return the share (0..1) of examples whose right index is chosen among all of its list."""
    turns = [prompts.messages(e.prompt) for e in examples]
    options = [[str(i) for i in range(prompts.count_candidates(e.prompt))] for e in examples]
    chosen = model.choose(turns, options)
    return float(np.mean([int(np.argmax(p)) == int(e.answer) for p, e in zip(chosen, examples, strict=True)]))


def fine_tune(
    language_model: HubLanguageModel,
    examples: Sequence[Example],
    folder: Path,
    lora: LoraSettings | None = None,
    settings: training.TrainingSettings | None = None,
    *,
    row_tokens: int = 1024,
    evaluate: Callable[[HubLanguageModel], dict[str, float]] | None = None,
    evaluate_every: int = 0,
    start: Path | None = None,
    progress: bool = True,
) -> tuple[HubLanguageModel, training.Trained]:
    """Fine-tune a language model on examples; a call that was killed goes on where it stopped.

    Args:
        language_model: the zero-shot model; its weights stay as they are, the adapter is wrapped around them.
        examples: see `examples.build_examples`.
        folder: checkpoints, history.csv and, at the end, ``adapter/`` (fp16 safetensors).
        lora: LoRA settings; the paper's by default.
        settings: optimiser settings; the paper's by default.
        row_tokens: longest packed row.
        evaluate: called with the model so far every `evaluate_every` steps; its numbers join the history.
        start: an adapter of the same LoRA settings whose weights training starts from.
        progress: show a progress bar.

    Returns:
        (fine-tuned model, log).

    Raises:
        ValueError: without examples, or if the weights of `start` do not fit.
    """
    if not examples:
        raise ValueError("no training examples: expected at least one sample with two candidates and IoU > 0.5")
    chosen = lora or LoraSettings()
    rows = training.pack(to_samples(language_model, examples), row_tokens)
    model: Any = training.add_lora(language_model.model, chosen.rank, chosen.alpha, chosen.dropout, chosen.targets)
    if start is not None:
        training.load_adapter_weights(model, start)
    tuned = HubLanguageModel(
        model, language_model.tokenizer, f"{language_model.name}+wrapper", language_model.batch_tokens, progress
    )

    def score(_: Any) -> dict[str, float]:
        return evaluate(tuned) if evaluate else {}

    trained = training.train(
        model,
        rows,
        folder,
        settings,
        evaluate=score if evaluate else None,
        evaluate_every=evaluate_every,
        progress=progress,
    )
    training.save_adapter(model, folder / "adapter")
    tuned.model.eval()
    return tuned, trained
