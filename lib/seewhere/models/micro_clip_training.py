"""Training of micro-CLIP on pictures of the world and captions that tell no place: ``seewhere train clip``.

Every caption that is trained on names all objects with their numbers, most name backgrounds and colours too: what
contrastive training can learn is bounded by what tells two captions of a batch apart. That is little about each
thing: at 94 % retrieval the model could not say whether a picture shows a dog. So texts that name one thing are
contrasted too, with all pictures of the batch that show it (`micro_clip.naming_loss`).
"""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from seewhere import storage
from seewhere.models import position_probe
from seewhere.models.micro_clip import (
    MicroClip,
    build_model,
    contrastive_loss,
    naming_loss,
    retrieval_recall,
    with_article,
    zero_shot_scores,
)
from seewhere.models.micro_text import world_tokenizer
from seewhere.models.stepwise import StepwiseTraining, add_recipe_flags, optimizers_for, training_device
from seewhere.models.world_pairs import WorldPairs, full_caption, load_pairs, pixels_of, rows_of_step, some_caption
from seewhere.world.sprites import load_sprites

FIRST_SCENE = 7_000_000
"""Number of the first training scene: far from the scenes of the world's data sets, of probes and of detectors."""

NAMINGS = ("a picture of {}", "{}", "there is {}", "a picture with {}")
NAMING_SCALE = 20.0
"""Inverse temperature of naming: one thing is a part of what a picture shows, so its text lies farther away."""


@dataclass(frozen=True, slots=True)
class ClipSettings:
    """A recipe.

    Attributes:
        steps, batch: number of steps, and pairs in each; more pairs in a batch tell captions apart more finely.
        scenes: number of training scenes; seen mirrored half of the time.
        bf16: mixed precision, about twice as fast on processors with AVX512-BF16.
        colour_jitter: of brightness and of each channel.
        naming: weight of `micro_clip.naming_loss` beside the contrast of captions.
        start: a micro-CLIP folder to go on from; "" for random weights.
    """

    steps: int = 4000
    batch: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    optimizer: str = "muon"
    scenes: int = 40_000
    seed: int = 0
    bf16: bool = False
    colour_jitter: float = 0.05
    side: int = 128
    patch: int = 16
    width: int = 192
    layers: int = 4
    text_layers: int = 2
    position_scale: float = 0.5
    naming: float = 1.0
    start: str = ""


class ClipTraining(StepwiseTraining):
    """One run of training.

    Args:
        settings: the recipe.
        folder: where checkpoint and log live.
        pairs: what it trains on; composed or read from the cache when None.
        device: where it trains.
    """

    name = "micro-clip"

    def __init__(
        self,
        settings: ClipSettings,
        folder: Path,
        pairs: WorldPairs | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.pairs = pairs or load_pairs(FIRST_SCENE, settings.scenes, settings.side)
        tokenizer = world_tokenizer()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            model = build_model(
                len(tokenizer),
                settings.side,
                settings.patch,
                settings.width,
                settings.layers,
                settings.text_layers,
                settings.width,
                settings.position_scale,
            )
        if settings.start:
            model.load_state_dict(MicroClip.load(settings.start).model.state_dict())
        self.clip = MicroClip(model, tokenizer).to(device)
        self.names = [c.name for c in load_sprites().coco]
        optimizers = optimizers_for(model, settings.learning_rate, settings.weight_decay, settings.optimizer)
        super().__init__(settings, folder, model, optimizers)

    def batch_of(self, step: int) -> tuple[torch.Tensor, list[str], torch.Tensor]:
        """Return pictures (B, 3, S, S), captions, and which categories each shows (B, C); a function of the step."""
        settings = self.settings
        rows = rows_of_step(len(self.pairs), settings.batch, settings.seed, step)
        random = np.random.default_rng([settings.seed, 1, step])
        pixels = pixels_of(self.pairs.images[np.sort(rows)], random.random(len(rows)) < 0.5)
        jitter = settings.colour_jitter
        gain = np.exp(random.uniform(-jitter, jitter, (len(rows), 3, 1, 1))).astype(np.float32)
        scenes = [self.pairs.scenes[i] for i in np.sort(rows)]
        texts = [
            some_caption(scene, Random(f"{settings.seed} {step} {i}"))
            for i, scene in zip(np.sort(rows), scenes, strict=True)
        ]
        shown = [{o.category for o in scene.objects} for scene in scenes]
        present = torch.tensor([[name in names for name in self.names] for names in shown])
        return torch.from_numpy((pixels + 1) * gain - 1), texts, present

    def losses(self) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the contrastive loss of the current step."""
        pixels, texts, present = self.batch_of(self.step)
        naming = Random(f"{self.settings.seed} {self.step} naming").choice(NAMINGS)
        with self.mixed():
            images, sentences = self.clip.embed_pixels(pixels), self.clip.embed_texts(texts)
            names = self.clip.embed_texts([naming.format(with_article(name)) for name in self.names])
        right = (images @ sentences.T).argmax(1) == torch.arange(len(texts), device=images.device)
        loss = contrastive_loss(images, sentences, self.clip.model.logit_scale.exp())
        named = naming_loss(images, names, present.to(images.device), NAMING_SCALE)
        parts = {"in_batch": float(right.float().mean()), "naming": float(named.detach())}
        return loss + self.settings.naming * named, parts

    def after_update(self) -> None:
        """Keep the temperature from running away: a scale of at most 100, as in CLIP."""
        with torch.no_grad():
            self.clip.model.logit_scale.clamp_(0, math.log(100))


def score(clip: MicroClip, scenes: int = 1000, probe_scenes: int = 8000, progress: bool = True) -> dict[str, Any]:
    """Return the scores of a card: retrieval among validation scenes, zero-shot by category, cells by linear probes."""
    names = [c.name for c in load_sprites().coco]
    test = load_pairs(0, scenes, clip.side, "val", progress)
    train = load_pairs(FIRST_SCENE - probe_scenes, probe_scenes, clip.side, "train", progress)
    texts = [full_caption(scene, Random(i)) for i, scene in enumerate(test.scenes)]
    present = [{o.category for o in scene.objects} for scene in test.scenes]
    return {
        "retrieval_at_1": retrieval_recall(clip, test.images, texts),
        "retrieval_scenes": scenes,
        "zero_shot": zero_shot_scores(clip, test.images, present, names),
        "cell": {
            readout: position_probe.cell_accuracy(clip, train, test, names, readout, progress=progress).as_dict()
            for readout in position_probe.READOUTS
        }
        | {"pointed": position_probe.pointed_accuracy(clip, train, test, progress=progress).as_dict()},
    }


def write(training: ClipTraining, folder: Path, scores: dict[str, Any]) -> None:
    """Write the trained model, its scores and its card as one folder."""
    with storage.atomic_directory(folder, overwrite=True) as partial:
        training.clip.write(partial)
        storage.atomic_write_json(partial / "training.json", {"settings": training.described(), "scores": scores})
        weights = partial / "model.safetensors"
        card = card_text(training, scores, weights.stat().st_size / 1e6, storage.hash_file(weights))
        (partial / "README.md").write_text(card, encoding="utf-8")


def card_text(training: ClipTraining, scores: dict[str, Any], megabytes: float, digest: str) -> str:
    """Return the card of a trained micro-CLIP."""
    settings, defaults = asdict(training.settings), asdict(ClipSettings())
    names = ("steps", "seed", "bf16", "batch", "learning_rate", "scenes", "optimizer", "layers", "width", "side")
    command = "seewhere train clip --out FOLDER" + command_flags(settings, defaults, names, ("steps", "seed"))
    parameters = sum(p.numel() for p in training.module.parameters())
    if settings["start"]:
        command += " --start EARLIER/model"
    last = FIRST_SCENE + settings["scenes"] - 1
    zero = scores["zero_shot"]
    worst = sorted(zero, key=lambda name: zero[name])[:5]
    cell = scores["cell"]
    rows = "\n".join(f"| {name} | {value:.3f} |" for name, value in sorted(zero.items()))
    return f"""# micro-clip

A small image and a small text tower trained contrastively from scratch on the embedded world
(`seewhere.models.micro_clip`): the frozen eye of the micro resamplers.

| | |
| --- | --- |
| make it again | `{command}` |
| network | transformers' CLIPModel, {settings["layers"]} + {settings["text_layers"]} layers, \
width {settings["width"]}, \
patches of {settings["patch"]} in {settings["side"]} px, fixed sine-cosine positions; {parameters:,} parameters |
| data | {settings["scenes"]:,} scenes of the train split, numbers {FIRST_SCENE}-{last}; captions tell no place |
| objective | contrastive (Radford et al. 2021), {settings["steps"]:,} steps of {settings["batch"]} pairs, \
texts that name one thing among them{" (begun from an earlier run of the same command)" if settings["start"] else ""} |
| image-to-text R@1 | {scores["retrieval_at_1"]:.3f} of {scores["retrieval_scenes"]:,} unseen scenes (val split) |
| zero-shot presence | mean area under the ROC {np.mean(list(zero.values())):.3f}; weakest: {", ".join(worst)} |
| cell of an object pointed at by its box, place read from tokens | {cell["pointed"]["accuracy"]:.3f} \
({cell["pointed"]["away_from_lines"]:.3f} away from lines; commonest cell {cell["pointed"]["majority"]:.3f}) |
| cell of a named object, place read from tokens | {cell["attention"]["accuracy"]:.3f} \
({cell["attention"]["away_from_lines"]:.3f} away from lines; commonest cell {cell["attention"]["majority"]:.3f}) |
| cell of a named object, place read from patch numbers | {cell["evidence"]["accuracy"]:.3f} \
({cell["evidence"]["away_from_lines"]:.3f} away from lines) |
| category of a patch on an object | {cell["attention"]["what"]:.3f} |
| size | {megabytes:.1f} MB, fp16 |
| sha256 of model.safetensors | `{digest}` |

The sprites it was trained on are Twemoji (CC-BY 4.0).

## Zero-shot presence by category

| category | area under the ROC |
| --- | --- |
{rows}
"""


def command_flags(
    settings: dict[str, Any], defaults: dict[str, Any], names: tuple[str, ...], always: tuple[str, ...] = ()
) -> str:
    """Return the flags that make a command use ``settings``, beginning with a space; defaults are left out."""
    text = ""
    for name in names:
        if settings[name] != defaults[name] or name in always:
            value = settings[name]
            words = "" if value is True else " ".join(map(str, value if isinstance(value, tuple) else (value,)))
            text += f" --{name.replace('_', '-')} {words}".rstrip()
    return text


def register(subparsers: Any) -> None:
    """Add ``seewhere train clip``."""
    defaults = ClipSettings()
    parser = subparsers.add_parser("clip", help="train micro-CLIP on pictures of the world and their captions")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint, log and model/")
    add_recipe_flags(parser, defaults, ("steps", "batch", "scenes", "seed", "layers", "width", "side"))
    parser.add_argument("--naming", type=float, default=defaults.naming, help="weight of texts that name one thing")
    parser.add_argument("--start", default=defaults.start, help="a micro-CLIP folder to go on from")
    parser.set_defaults(handler=main)


def main(arguments: argparse.Namespace) -> int:
    """Train, score and write the model; the same call again goes on where it stopped."""
    chosen = {k: v for k, v in vars(arguments).items() if k in ClipSettings.__dataclass_fields__}
    training = ClipTraining(ClipSettings(**chosen), arguments.out, device=training_device())
    training.run()
    training.clip.to("cpu").eval()
    scores = score(training.clip)
    write(training, arguments.out / "model", scores)
    cells = ", ".join(f"{name} {cell['accuracy']:.3f}" for name, cell in scores["cell"].items())
    print(f"R@1 {scores['retrieval_at_1']:.3f}, cell of an object: {cells}")
    print(f"the model is in {arguments.out / 'model'}")
    return 0
