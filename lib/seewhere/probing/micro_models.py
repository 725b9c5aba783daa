"""The notebook's models: loading them, what they were trained to do and how well, and stand-ins where weights lack.

A stand-in has the shape of what it stands for and random weights. It lets every line of the notebook run; what it
scores is chance and says nothing about resamplers, so only the preset that checks code (``smoke``) admits it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd
import torch

from seewhere import storage
from seewhere.models import position_probe
from seewhere.models.micro_clip import NAME as CLIP_NAME
from seewhere.models.micro_clip import MicroClip, build_model, shipped_folder
from seewhere.models.micro_clip_training import FIRST_SCENE
from seewhere.models.micro_qformer import MicroBlip2
from seewhere.models.micro_qformer_training import ResamplerSettings, language_of, shape_of
from seewhere.models.micro_resamplers import MicroInstruct, MicroPerceiver, ThroughLanguage
from seewhere.models.micro_text import world_tokenizer
from seewhere.models.number_formats import quick_dtype
from seewhere.models.resamplers import NAMES, MicroPatches, MicroResampler
from seewhere.models.resampling import Resampler
from seewhere.models.world_pairs import load_pairs
from seewhere.probing.adapter import Probed, load_probed
from seewhere.world.sprites import load_sprites

UNTRAINED = "untrained stand-in"


def load_models(names: Sequence[str], stand_ins: bool = False, bf16: bool = True) -> dict[str, Any]:
    """Load what is to be probed: its own name (a hub id's last part, say) -> `Probed` (or `Vilt`).

    Args:
        names: see `seewhere.probing.adapter.load_probed`.
        stand_ins: where a micro model's weights are missing, let an untrained one stand in, and say so.
        bf16: mixed precision, on processors that are fast at it.

    Raises:
        FileNotFoundError: no such model, and none may stand in; the message has the command that makes it.
        ValueError: two models of one name, which no table could tell apart.
    """
    fast = bf16 and (quick_dtype() is not None or torch.cuda.is_available())
    found: dict[str, Any] = {}
    for name in names:
        try:
            model: Any = load_probed(name, bf16=fast)
        except FileNotFoundError:
            if not stand_ins or name not in NAMES:
                raise
            print(f"{name}: no weights in this package; an {UNTRAINED} takes its place, so its scores say nothing")
            model = Probed(untrained(name), fast)
            model.untrained = True
        if model.name in found:
            raise ValueError(
                f"{name!r} and another of {', '.join(map(repr, names))} are both called {model.name!r}, and tables "
                "could not tell them apart. Ask for them in runs of their own, or give the folder another name."
            )
        found[model.name] = model
    return found


def untrained(name: str, seed: int = 0) -> Resampler:
    """Return a micro resampler (one of `resamplers.NAMES`) with random weights, on the shipped micro-CLIP if any.

    Raises:
        ValueError: no micro resampler's name.
    """
    if name not in NAMES:
        raise ValueError(f"{name!r} is no micro resampler; expected one of {', '.join(NAMES)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip = untrained_clip()
        if name == "micro-patches":
            return MicroPatches(clip).eval()
        settings = ResamplerSettings(kind=name.removeprefix("micro-"))
        shape = shape_of(settings, clip)
        if settings.kind == "blip2":
            return MicroResampler(name, clip, MicroBlip2(shape)).eval()
        module = MicroInstruct(shape) if settings.kind == "instruct" else MicroPerceiver(shape)
        language, reader = language_of(settings, clip)
        through = ThroughLanguage(module, language, frozen=True).eval()
        return MicroResampler(name, clip, module, through, reader).eval()


def untrained_clip() -> MicroClip:
    """Return the shipped micro-CLIP, or where there is none a random one."""
    with suppress(FileNotFoundError):
        return MicroClip.load()
    tokenizer = world_tokenizer()
    return MicroClip(build_model(len(tokenizer)), tokenizer).eval().requires_grad_(False)


def training_scores(names: Sequence[str]) -> pd.DataFrame:
    """Return how good micro models are at what they were trained for, as their ``training.json`` says.

    One row per score: model, score, value (0..1), chance, out of, and the target that makes probing them worthwhile
    (NaN where there is none). Models that did not come with such a file have no row.
    """
    rows = []
    for name in [CLIP_NAME, *names]:
        with suppress(FileNotFoundError):
            scores = storage.read_json(shipped_folder(name, "") / "training.json")["scores"]
            rows += _clip_rows(scores) if "cell" in scores else _resampler_rows(name, scores)
    return pd.DataFrame(rows, columns=["model", "score", "value", "chance", "out of", "target"])


def _clip_rows(scores: dict[str, Any]) -> list[tuple[Any, ...]]:
    scenes = scores["retrieval_scenes"]
    presence = float(np.mean(list(scores["zero_shot"].values())))
    nan = float("nan")
    rows = [
        (CLIP_NAME, "picture finds its caption (R@1)", scores["retrieval_at_1"], 1 / scenes, scenes, 0.6),
        (CLIP_NAME, "category present or not (mean area under the ROC)", presence, 0.5, scenes, nan),
    ]
    asked = {"pointed": ("cell of an object pointed at", 0.9), "attention": ("cell of a named object", nan)}
    for probe, (text, target) in asked.items():
        cell = scores["cell"][probe]
        rows += [
            (CLIP_NAME, f"{text}, from patch tokens", cell["accuracy"], cell["majority"], cell["objects"], target),
            (CLIP_NAME, "the same, away from lines between cells", cell["away_from_lines"], cell["majority"], nan, nan),
        ]
    return rows


def _resampler_rows(name: str, scores: dict[str, Any]) -> list[tuple[Any, ...]]:
    matching = scores["matching"]
    target = 0.85 if "retrieval_at_1" in scores else float("nan")
    rows = [
        (name, "which of two is true, one word apart", matching["paired"], 0.5, matching["statements"] // 2, target),
        (name, "true or one word off, each alone", matching["accuracy"], 0.5, matching["statements"], target),
        (name, "the same with another scene's picture", matching["blind"], 0.5, matching["statements"], float("nan")),
    ]
    if "retrieval_at_1" in scores:
        count = scores["scenes"]
        rows.append((name, "picture finds its caption (R@1)", scores["retrieval_at_1"], 1 / count, count, float("nan")))
    if "answers" in scores:
        rows.append(
            (name, "short answers, word for word", scores["answers"]["all"], float("nan"), scores["scenes"],
             float("nan"))
        )  # fmt: skip
    return rows


def position_control(model: Any, scenes: int, seed: int = 0) -> pd.DataFrame:
    """Probe the frozen patch tokens of a micro model's eye for the cell of an object, on fresh scenes.

    Args:
        model: a probed micro resampler; any other has no micro-CLIP and gives an empty table.
        scenes: to train the probe on; a third as many more test it. 0: an empty table.
        seed: of the probe.

    Returns:
        A row for objects pointed at by their boxes, one for the same read from the encoder's last layer before
        positions are added again, and one for named objects: cell right, away from lines between cells, commonest
        cell, category of a patch right (all 0..1), number of objects; see
        `seewhere.models.position_probe`.
    """
    columns = ["object", "cell", "away from lines", "commonest cell", "category of a patch", "objects"]
    clip = getattr(getattr(model, "resampler", None), "clip", None)
    if not isinstance(clip, MicroClip) or not scenes:
        return pd.DataFrame(columns=columns)
    train = load_pairs(FIRST_SCENE - scenes, scenes, clip.side, "train")
    test = load_pairs(0, max(scenes // 3, 8), clip.side, "val")
    names = [category.name for category in load_sprites().coco]
    found = {
        "pointed at": position_probe.pointed_accuracy(clip, train, test, seed=seed),
        "pointed at, encoder alone": position_probe.pointed_accuracy(clip, train, test, seed=seed, placed=False),
        "named": position_probe.cell_accuracy(clip, train, test, names, seed=seed),
    }
    rows = [(kind, f.accuracy, f.away_from_lines, f.majority, f.what, f.objects) for kind, f in found.items()]
    return pd.DataFrame(rows, columns=columns)
