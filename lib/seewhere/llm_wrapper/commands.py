"""``seewhere train wrapper``: make an adapter from scenes of the world, resumable, with the recipe in its card."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from seewhere import storage, training
from seewhere.llm_wrapper.rehearsal import rehearse
from seewhere.llm_wrapper.training import ATTENTION_AND_MLP, LoraSettings, fine_tune
from seewhere.llm_wrapper.wrapper import WRAPPER_FILE
from seewhere.models.language_model import HubLanguageModel, load_language_model
from seewhere.world.sprites import load_sprites


def register(subparsers: Any) -> None:
    """Add ``seewhere train wrapper``."""
    parser = subparsers.add_parser(
        "wrapper", help="fine-tune a language model into LLM-wrapper, on scenes of the world"
    )
    parser.add_argument("--llm", default="smollm2", help="smollm2, micro, or a hub id or folder")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints, the log and adapter/")
    parser.add_argument("--scenes", type=int, default=3000, help="scenes; each gives up to ten questions")
    parser.add_argument("--rank", type=int, default=16, help="LoRA rank; alpha is twice that")
    parser.add_argument("--learning-rate", type=float, default=6e-4)
    parser.add_argument("--rows-per-step", type=int, default=2, help="packed rows, one scene each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="mixed precision: twice as fast on recent processors")
    parser.set_defaults(run=main)


def main(arguments: argparse.Namespace) -> int:
    """Train and write the adapter."""
    model = load_language_model(arguments.llm)
    if not isinstance(model, HubLanguageModel):
        raise ValueError(f"--llm {arguments.llm}: an endpoint cannot be trained; expected a model that loads here")
    scenes = rehearse(load_sprites(), arguments.scenes, arguments.seed)
    examples = [e for found in tqdm(scenes, total=arguments.scenes, desc="scenes") for e in found]
    lora = LoraSettings(arguments.rank, 2 * arguments.rank, 0.0, ATTENTION_AND_MLP)
    settings = training.TrainingSettings(
        learning_rate=arguments.learning_rate,
        rows_per_step=arguments.rows_per_step,
        schedule="cosine",
        warmup=0.03,
        seed=arguments.seed,
        bf16=arguments.bf16,
    )
    _, trained = fine_tune(model, examples, arguments.out, lora, settings)
    about = {"coordinates": "percent", "scores": False, "trained_on": "scenes", "questions": len(examples)}
    storage.atomic_write_json(arguments.out / "adapter" / WRAPPER_FILE, about)
    print(f"{len(examples)} questions, {trained.steps} steps; the adapter is in {arguments.out / 'adapter'}")
    return 0
