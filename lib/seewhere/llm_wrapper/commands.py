"""``seewhere train wrapper``: make an adapter from scenes of the world, resumable, with the recipe in its card."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from seewhere import storage, training
from seewhere.llm_wrapper import prompts
from seewhere.llm_wrapper.rehearsal import detector_lists, imperfect_candidates, rehearse
from seewhere.llm_wrapper.training import ATTENTION_AND_MLP, LoraSettings, fine_tune, share_right
from seewhere.llm_wrapper.wrapper import HISTORY_FILE, WRAPPER_FILE, describe_adapter, keep_rank
from seewhere.models.language_model import HubLanguageModel, load_language_model
from seewhere.models.number_formats import quick_dtype
from seewhere.models.registry import load_grounder
from seewhere.world.sprites import load_sprites

VALIDATION_SCENES = 20
ROW_TOKENS = 640  # a row holds one long list or two short ones; longer lists are left out


def register(subparsers: Any) -> None:
    """Add ``seewhere train wrapper``."""
    parser = subparsers.add_parser(
        "wrapper", help="fine-tune a language model into LLM-wrapper, on scenes of the world"
    )
    parser.add_argument("--llm", default="smollm2", help="smollm2, micro, or a hub id or folder")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints, the log and adapter/")
    parser.add_argument("--scenes", type=int, default=4400, help="scenes, one packed row each")
    parser.add_argument("--questions", type=int, default=14, help="most questions about one scene")
    parser.add_argument("--rank", type=int, default=16, help="LoRA rank; alpha is twice that")
    parser.add_argument("--keep-rank", type=int, help="cut the finished adapter to this rank: smaller to ship")
    parser.add_argument("--learning-rate", type=float, default=6e-4)
    parser.add_argument("--rows-per-step", type=int, default=2, help="packed rows, one scene each")
    parser.add_argument("--two-sources", type=float, default=0.15, help="share of scenes with two detectors' boxes")
    parser.add_argument("--start", type=Path, help="an adapter to go on from; lists then have full length at once")
    parser.add_argument("--no-drills", action="store_true", help="referring questions only, no ordering of boxes")
    parser.add_argument("--detector", help="train on this detector's boxes, not on the scenes' own")
    parser.add_argument("--evaluate-every", type=int, default=200, help="steps between looks at validation scenes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="mixed precision: twice as fast on recent processors")
    parser.set_defaults(run=main)


def main(arguments: argparse.Namespace) -> int:
    """Train and write the adapter."""
    model = load_language_model(arguments.llm, dtype=quick_dtype() if arguments.bf16 else None, progress=False)
    if not isinstance(model, HubLanguageModel):
        raise ValueError(f"--llm {arguments.llm}: an endpoint cannot be trained; expected a model that loads here")
    before = storage.read_json(arguments.start / WRAPPER_FILE) if arguments.start else {}
    # An adapter reads boxes as it was taught to.
    coordinates: prompts.Coordinates = before.get("coordinates", "percent")
    sprites = load_sprites()
    lists = detector_lists(load_grounder(arguments.detector), sprites) if arguments.detector else imperfect_candidates
    scenes = rehearse(
        sprites,
        arguments.scenes,
        arguments.seed,
        arguments.questions,
        coordinates=coordinates,
        two_sources=arguments.two_sources,
        growing=arguments.start is None,
        drilling=not arguments.no_drills,
        lists=lists,
    )
    examples = [e for found in tqdm(scenes, total=arguments.scenes, desc="scenes") for e in found]
    lengths = map(len, model.prompt_tokens([prompts.messages(e.prompt) for e in examples]))
    # An answer has at most as many tokens as characters, and an end.
    examples = [e for e, n in zip(examples, lengths, strict=True) if n + len(e.answer) + 1 <= ROW_TOKENS]
    held_out = [
        e
        for found in rehearse(sprites, VALIDATION_SCENES, 0, 8, coordinates=coordinates, split="val", lists=lists)
        for e in found
    ]
    lora = LoraSettings(arguments.rank, 2 * arguments.rank, 0.0, ATTENTION_AND_MLP)
    settings = training.TrainingSettings(
        learning_rate=arguments.learning_rate,
        rows_per_step=1,
        accumulate=arguments.rows_per_step,
        schedule="cosine",
        warmup=0.03,
        seed=arguments.seed,
        bf16=arguments.bf16,
        shuffle=False,
    )
    _, trained = fine_tune(
        model,
        examples,
        arguments.out,
        lora,
        settings,
        row_tokens=ROW_TOKENS,
        evaluate=lambda tuned: {"validation_p_at_1": share_right(tuned, held_out)},
        evaluate_every=arguments.evaluate_every,
        start=arguments.start,
    )
    if arguments.keep_rank:
        keep_rank(arguments.out / "adapter", arguments.keep_rank)
    boxes = arguments.detector or "scenes"
    trained_on = [*before.get("trained_on", []), {"boxes": boxes, "questions": len(examples)}]
    history = joined(arguments.start, thinned(trained.history).assign(stage=boxes))
    describe_adapter(arguments.out / "adapter", coordinates, False, trained_on, history)
    print(f"{len(examples)} questions, {trained.steps} steps; the adapter is in {arguments.out / 'adapter'}")
    return 0


def joined(start: Path | None, history: pd.DataFrame) -> pd.DataFrame:
    """Return a log behind that of the adapter it went on from, steps running on.

    The column ``stage`` says whose boxes were read, in training and in what is held out: the two halves of a curve are
    not measured on the same lists. An earlier log without it takes the name from ``wrapper.json``.
    """
    if start is None or not (start / HISTORY_FILE).is_file():
        return history
    before = pd.read_csv(start / HISTORY_FILE)
    if "stage" not in before:
        parts = storage.read_json(start / WRAPPER_FILE)["trained_on"]
        before["stage"] = ", ".join(dict.fromkeys(str(part["boxes"]) for part in parts))
    return pd.concat([before, history.assign(step=history.step + before.step.max())], ignore_index=True)


def thinned(history: pd.DataFrame, every: int = 20) -> pd.DataFrame:
    """Return a training's log small enough to ship: the loss as means over `every` steps, and every evaluation."""
    block = ((history.step - 1) // every).rename("block")
    loss = history[history.loss.notna()].groupby(block).agg({"step": "max", "loss": "mean"}).round(4)
    looks = history[["step", "validation_p_at_1"]].dropna().round(4)
    return loss.merge(looks, on="step", how="outer")
