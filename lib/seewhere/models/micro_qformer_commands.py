"""``seewhere train qformer``: train a micro resampler, score it on unseen scenes, and write its folder with a card."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from seewhere import storage
from seewhere.models import few_bits
from seewhere.models import micro_qformer_data as data
from seewhere.models.micro_clip import MicroClip
from seewhere.models.micro_clip_training import command_flags
from seewhere.models.micro_qformer import MatchingWeights, MicroBlip2, QFormerSettings, TextBatch, similarities
from seewhere.models.micro_qformer_training import (
    KINDS,
    LanguageTraining,
    ResamplerSettings,
    StageOneTraining,
    make_training,
)
from seewhere.models.micro_resamplers import ThroughLanguage
from seewhere.models.resamplers import load_blip2_module, matches, write_micro
from seewhere.models.stepwise import add_recipe_flags
from seewhere.models.world_pairs import TWISTS, full_caption, twist

Scores = dict[str, Any]
CROWDS = ((2, 3), (4, 5), (6, 10))
"""Fewest and most objects of the scenes that matching is told for: a statement that lists more can go wrong in more."""


@torch.no_grad()
def matching_scores(training: StageOneTraining | LanguageTraining, seen: data.SeenScenes, seed: int = 0) -> Scores:
    """Return how well true statements are told from twisted ones: accuracy (0..1), by twist, by crowd, blind, paired.

    Each scene gives a true and a false statement, which differ in one word. Accuracy asks each alone, "true or not",
    at a probability of 0.5. Paired asks both and counts the scenes whose true one is found likelier, as benchmarks of
    hard negatives do (Winoground's text score, ARO, SugarCrepe): no threshold enters. Chance is 0.5 in both. Blind
    means with another scene's image: what the words alone give away.
    """
    made = [twist(scene, Random(f"{seed} {i}")) for i, scene in enumerate(seen.scenes)]
    right: dict[bool, list[Tensor]] = {True: [], False: []}
    blind, paired = [], []
    for start in tqdm(range(0, len(seen), 128), desc="matching", leave=False):
        rows = slice(start, min(start + 128, len(seen)))
        tokens = seen.image_tokens(rows)
        given = []
        for statements, truth in (([t.true for t in made[rows]], True), ([t.false for t in made[rows]], False)):
            given.append(_match(training, tokens, statements))
            right[truth].append((given[-1] > 0.5) == truth)
            blind.append((_match(training, tokens.roll(1, 0), statements) > 0.5) == truth)
        paired.append(given[0] > given[1])
    # All true statements, then all false ones, each in the order of the scenes.
    hits, guesses = torch.cat(right[True] + right[False]).float().numpy(), torch.cat(blind).float().numpy()
    kinds, crowd = np.array([t.kind for t in made] * 2), np.array([len(s.objects) for s in seen.scenes] * 2)
    by_twist = {k: float(hits[kinds == k].mean()) for k in TWISTS if k in kinds}
    parts = {f"{low}-{high}": (crowd >= low) & (crowd <= high) for low, high in CROWDS}
    return {
        "accuracy": float(hits.mean()),
        "by_twist": by_twist,
        "by_objects": {name: float(hits[part].mean()) for name, part in parts.items() if part.any()},
        "blind": float(guesses.mean()),
        "paired": float(torch.cat(paired).float().mean()),
        "statements": len(hits),
    }


def _match(training: StageOneTraining | LanguageTraining, tokens: Tensor, statements: list[str]) -> Tensor:
    if isinstance(training, StageOneTraining):
        return matches(training.blip2, tokens, statements, training.clip, None, None)
    return matches(training.through.resampler, tokens, statements, training.clip, training.through, training.reader)


@torch.no_grad()
def contrast_recall(model: MicroBlip2, clip: MicroClip, seen: data.SeenScenes) -> float:
    """Return image-to-text R@1 (0..1) of the Q-Former's contrast among the full captions of some scenes."""
    captions = [full_caption(scene, Random(i)) for i, scene in enumerate(seen.scenes)]
    parts, texts = [], []
    for start in range(0, len(seen), 250):
        rows = slice(start, min(start + 250, len(seen)))
        read: TextBatch = data.read(clip.tokenizer, captions[rows])
        (states,) = model.states(seen.image_tokens(rows), read.ids[:, :1], read.mask[:, :1], "contrast")
        parts.append(model.embed_queries(states))
        texts.append(model.embed_texts(read.ids, read.mask))
    nearest = similarities(torch.cat(parts), torch.cat(texts)).argmax(dim=1).tolist()
    return float(np.mean([captions[k] == text for k, text in zip(nearest, captions, strict=True)]))


@torch.no_grad()
def answer_scores(training: LanguageTraining, seen: data.SeenScenes, seed: int = 0) -> dict[str, float]:
    """Return the share (0..1) of short answers that are right word for word, by the first two words of the question."""
    asked = data.questions_about(seen.scenes, Random(f"answers {seed}"))
    kept = np.array([i for i, (_, answer) in enumerate(asked) if len(answer.split()) == 1])
    hits: dict[str, list[bool]] = {}
    for rows in np.split(kept, range(128, len(kept), 128)):
        questions = [asked[i] for i in rows]
        texts = data.read(training.clip.tokenizer, [q for q, _ in questions])
        answers = training.reader.batch(questions)
        _, right = training.through.answer_losses(seen.image_tokens(rows), texts.ids, texts.mask, answers)
        for (question, _), hit in zip(questions, right.tolist(), strict=True):
            hits.setdefault(" ".join(question.split()[:2]), []).append(hit)
    return {
        "all": float(np.mean([h for part in hits.values() for h in part])),
        **{k: float(np.mean(v)) for k, v in sorted(hits.items())},
    }


def score(training: StageOneTraining | LanguageTraining, scenes: int = 1000, progress: bool = True) -> Scores:
    """Return the scores of a card, on the first scenes of the validation split; the module is left on the CPU."""
    training.module.to("cpu").eval()
    seen = data.SeenScenes(training.clip, 0, scenes, "val", progress)
    found: Scores = {"scenes": scenes, "matching": matching_scores(training, seen)}
    if isinstance(training, StageOneTraining):
        found["retrieval_at_1"] = contrast_recall(training.blip2, training.clip, seen)
    else:
        found["answers"] = answer_scores(training, seen)
    return found


def write(training: StageOneTraining | LanguageTraining, folder: Path, scores: Scores, squeezed: bool = False) -> None:
    """Write the trained resampler, its scores and its card as one folder; `squeezed`: in seven bits a number."""
    settings: ResamplerSettings = training.settings
    module: MicroBlip2 | ThroughLanguage
    module = training.blip2 if isinstance(training, StageOneTraining) else training.through
    with storage.atomic_directory(folder, overwrite=True) as partial:
        write_micro(partial, settings.kind, module, training.clip, settings.clip, settings.language, squeezed)
        storage.atomic_write_json(partial / "training.json", {"settings": training.described(), "scores": scores})
        weights = partial / "model.safetensors"
        size = sum(p.stat().st_size for p in partial.rglob("*.safetensors")) / 1e6
        shape = module.settings if isinstance(module, MicroBlip2) else module.resampler.settings
        card = card_text(settings, shape, scores, size, storage.hash_file(weights), squeezed)
        (partial / "README.md").write_text(card, encoding="utf-8")


_ABOUT = {
    "blip2": (
        "A small Q-Former on the frozen micro-CLIP (`seewhere.models.micro_qformer`).",
        "stage 1 of BLIP-2: contrast, matching (twisted and hard negatives), image-grounded generation; "
        "a share of text alone",
    ),
    "instruct": (
        "A small instruction-aware Q-Former on the frozen micro-CLIP (`seewhere.models.micro_resamplers`).",
        "InstructBLIP's: from micro-BLIP-2, the answers' loss through a causal language model",
    ),
    "perceiver": (
        "A small Perceiver resampler on the frozen micro-CLIP (`seewhere.models.micro_resamplers`); it sees no text.",
        "the answers' loss through a causal language model",
    ),
}


FRESH = ", a small Llama that begins at random and learns along (InstructBLIP's is trained before, and frozen)"


def card_text(
    settings: ResamplerSettings,
    shape: QFormerSettings,
    scores: Scores,
    megabytes: float,
    digest: str,
    squeezed: bool = False,
) -> str:
    """Return the card of a trained micro resampler."""
    about, objective = _ABOUT[settings.kind]
    names = ("steps", "seed", "bf16", "batch", "learning_rate", "scenes", "first", "clip", "start", "language",
             "optimizer", "layers", "width", "queries", "matching_weights", "pairs", "every")  # fmt: skip
    flags = command_flags(asdict(settings), asdict(ResamplerSettings()), names, ("steps", "seed"))
    flags += " --few-bits" if squeezed else ""
    if settings.kind != "blip2":
        objective += f" ({settings.language}, frozen)" if settings.language else FRESH
    matching = scores["matching"]
    twists, crowds = (
        ", ".join(f"{name} {value:.3f}" for name, value in matching[by].items()) for by in ("by_twist", "by_objects")
    )
    if "retrieval_at_1" in scores:
        own = (
            f"| image-to-text R@1 of contrast | {scores['retrieval_at_1']:.3f} of {scores['scenes']:,} unseen scenes |"
        )
    else:
        answers = ", ".join(f"{name} {value:.3f}" for name, value in scores["answers"].items())
        own = f"| short answers right | {answers} |"
    last = settings.first + settings.scenes - 1
    after = f", begun with `{settings.start}`" if settings.start else ""
    return f"""# micro-{settings.kind}

{about}

| | |
| --- | --- |
| make it again | `seewhere train qformer --kind {settings.kind} --out FOLDER{flags}` |
| shape | {shape.layers} layers, width {shape.width}, {shape.queries} queries |
| data | {settings.scenes:,} scenes of the train split, numbers {settings.first}-{last}; no sentence tells a place |
| objective | {objective} |
| steps | {settings.steps:,} of {settings.batch} images{after} |
| true or twisted statement | {matching["accuracy"]:.3f} of {matching["statements"]:,} on unseen scenes \
(chance 0.5; with another scene's image {matching["blind"]:.3f}) |
| which of the two is true | {matching["paired"]:.3f} of the same {matching["statements"] // 2:,} pairs (chance 0.5) |
| by what was twisted | {twists} |
| by the number of objects in the scene | {crowds} |
{own}
| size | {megabytes:.1f} MB, {"seven bits a number, rounded before scoring" if squeezed else "fp16"} |
| sha256 of model.safetensors | `{digest}` |

The sprites it was trained on are Twemoji (CC-BY 4.0).
"""


def register(subparsers: Any) -> None:
    """Add ``seewhere train qformer``."""
    defaults = ResamplerSettings()
    parser = subparsers.add_parser("qformer", help="train a micro resampler on the frozen micro-CLIP")
    parser.add_argument("--kind", choices=KINDS, required=True, help="which resampler, and by which objectives")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint, log and model/")
    parser.add_argument("--clip", default=defaults.clip, help="name or folder of the micro-CLIP (default: %(default)s)")
    parser.add_argument("--start", default=defaults.start, help="a micro-BLIP-2 to start from: instruct begins "
                        "with the shipped one, blip2 anew")  # fmt: skip
    parser.add_argument("--language", default="", help="instruct, perceiver: folder or hub id of a causal language "
                        "model, kept frozen (default: a new small Llama that learns along)")  # fmt: skip
    add_recipe_flags(parser, defaults, ("steps", "batch", "scenes", "first", "seed", "layers", "width", "queries"))
    parser.add_argument("--matching-weights", nargs=4, type=float, default=defaults.matching_weights,
                        metavar=tuple(name.upper() for name in MatchingWeights._fields), help="blip2: what true "
                        "statements, own captions, twisted statements and hard negatives weigh in matching; 0 leaves "
                        "out (default: %(default)s)")  # fmt: skip
    parser.add_argument("--pairs", type=int, default=defaults.pairs, help="blip2: true and twisted statements about "
                        "each image of a step (default: %(default)s)")  # fmt: skip
    parser.add_argument("--every", type=int, default=defaults.every, help="blip2: ask for contrast, generation and "
                        "hard negatives in every so manieth step only (default: %(default)s)")  # fmt: skip
    parser.add_argument("--few-bits", action="store_true", help="round weights to seven bits before scoring, and store "
                        "them so (default: fp16)")  # fmt: skip
    parser.set_defaults(handler=main)


def main(arguments: argparse.Namespace) -> int:
    """Train, score and write a resampler; the same call again goes on where it stopped."""
    chosen = {k: v for k, v in vars(arguments).items() if k in ResamplerSettings.__dataclass_fields__}
    chosen["matching_weights"] = tuple(chosen["matching_weights"])
    training = make_training(ResamplerSettings(**chosen), arguments.out, load_blip2_module)
    training.run()
    if arguments.few_bits:
        few_bits.round_parameters(training.module)
    scores = score(training)
    write(training, arguments.out / "model", scores, arguments.few_bits)
    print(f"matching {scores['matching']['accuracy']:.3f} (blind {scores['matching']['blind']:.3f})")
    print(f"the model is in {arguments.out / 'model'}")
    return 0
