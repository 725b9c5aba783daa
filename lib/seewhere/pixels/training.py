"""Training of the micro vision-language model in stages: what is trained, on which mixture, and its losses.

Three stages (PVP, section 3.2). Stage 1: language model and connector, encoder frozen. Stage 2: the encoder too. Stage
3: frozen again, fewer questions for colours. Beside them two controls: the *frozen* baseline, which goes on from stage
1 with stage 2's mixture and steps but never touches the encoder, and *at-once*, which skips stage 1. What each asks,
how often and at which rate stands in the recipe (`seewhere.pixels.recipe`).

Where the paper adapts its language model by LoRA, all of ours is trained (of a width of 192, rank 64 would save little)
unless `lora_rank` asks for it, but for the three layers that find a place: these keep what
`seewhere.models.micro_vlm_start` set. Trained from the start, they lost it before they were of use; held, the encoder's
gradient is a clear one from the first step on. Where a recipe says ``reading`` they learn too, late: by then the tokens
hold more of a picture than the wiring reads.

Three losses, of colours, masks and words, are in every recipe that asks for these; a fourth tells some heads where to
look before a box is written (`seewhere.models.pointing`), where the recipe gives it a weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from seewhere.models import micro_vlm, pointing
from seewhere.models.lora import add_lora
from seewhere.models.micro_clip import MicroClip
from seewhere.models.minigpt import MiniGPT
from seewhere.models.prefix_training import question_inputs, question_loss
from seewhere.models.registry import MINIGPTS, load_minigpt
from seewhere.models.shared_attention import shared_attention
from seewhere.models.stepwise import StepwiseTraining
from seewhere.models.world_pairs import WorldPairs, load_pairs, pixels_of, rows_of_step
from seewhere.packing import IGNORED, Questions, collate_questions
from seewhere.pixels import mixture as asking
from seewhere.pixels import pictures as sources
from seewhere.pixels.recipe import PixelSettings
from seewhere.training import Loss, summed_cross_entropy
from seewhere.world.scenes import Scene

FIRST_SCENE = 7_000_000
"""Number of the first training scene; micro-CLIP was trained on the same ones."""
SIDE = 128  # of pictures, px
FITTED = 600  # pictures that the connector's first values are fitted on


def optimizers_of(model: nn.Module, learning_rate: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Muon for matrices, AdamW for embeddings, convolutions, biases and norms; of what is trainable."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name.rsplit(".", 2)[-2]]
    chosen = {id(p) for p in matrices}
    others = [p for _, p in named if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def start_model(settings: PixelSettings, scenes: WorldPairs) -> MiniGPT:
    """The model that a run begins with: `settings.start`, or a new one whose connector is fitted on some scenes."""
    if settings.start:
        source = settings.start
        return load_minigpt(source) if source in MINIGPTS else MiniGPT.load(source)
    clip = MicroClip.load(settings.clip)
    return micro_vlm.build(clip, np.asarray(scenes.images[:FITTED]), settings.seed, settings.language, settings.quiet)


class PixelTraining(StepwiseTraining):
    """One run of a stage.

    Args:
        settings: the recipe.
        folder: where checkpoint and log live.
        scenes: pictures and scenes to train on; composed or read from the cache when None.
        device: where it trains.
        model: what it begins with; by default `start_model`.

    Attributes:
        pictures: kind -> how many pictures of it are drawn from.
    """

    name = "pixels"

    def __init__(
        self,
        settings: PixelSettings,
        folder: Path,
        scenes: WorldPairs | None = None,
        device: str | torch.device = "cpu",
        model: MiniGPT | None = None,
    ) -> None:
        asking.check_mixture(settings.mixture)
        self.scenes = scenes or load_pairs(FIRST_SCENE, settings.scenes, SIDE)
        kinds = other_pictures(settings)
        self.pictures = {"scenes": len(self.scenes)} | {name: len(images) for name, images in kinds.items()}
        self.others = [image for images in kinds.values() for image in images]
        self.model = (model or start_model(settings, self.scenes)).to(device)
        self.model.requires_grad_(True)
        self.model.vision.requires_grad_(settings.adapt)
        held = 0 if settings.reading else micro_vlm.READING
        self.model.language.model.layers[:held].requires_grad_(False)
        if settings.lora_rank:
            with torch.random.fork_rng(devices=[]):  # adapters begin at random
                torch.manual_seed(settings.seed)
                self.model.language = with_lora(self.model.language, settings.lora_rank, held)
        for name, parameter in self.model.vision.named_parameters():
            # Positions are fixed by construction, and what comes after the last layer is not read.
            if "position_embedding" in name or "post_layernorm" in name or "class_embedding" in name:
                parameter.requires_grad_(False)
        tokenizer = self.model.tokenizer
        self._x, self._colour_y, self._mask_y = (
            micro_vlm.token_ids(tokenizer, texts).to(device)
            for texts in (micro_vlm.XS, micro_vlm.COLOUR_YS, micro_vlm.MASK_YS)
        )
        self._values = torch.stack([micro_vlm.token_ids(tokenizer, texts) for texts in micro_vlm.COLOURS]).to(device)
        self._sides = micro_vlm.token_ids(tokenizer, ("0", "1")).to(device)
        self._bells = bells(settings.spread, 256).to(device)
        self._words: Loss = summed_cross_entropy
        self._corners = micro_vlm.token_ids(tokenizer, micro_vlm.CORNERS).to(device)
        if settings.corner_spread:
            learnt = bells(settings.corner_spread, len(self._corners)).to(device)
            self._words = partial(near_loss, self._corners, learnt)
        trained = ((n, p) for n, p in self.model.named_parameters() if p.requires_grad and settings.averaged)
        self._before = {name: parameter.detach().clone() for name, parameter in trained}
        optimizers = optimizers_of(self.model, settings.learning_rate, settings.weight_decay)
        super().__init__(settings, folder, self.model, optimizers)

    def after_last(self) -> None:
        """Take the mean of the weights before training and now, where the settings ask for it; once."""
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                # LoRA's A began at random and its B at zero: half of B is half of the change.
                if name in self._before and "lora_A" not in name:
                    parameter.lerp_(self._before[name], 0.5)
        self._before = {}

    # ------------------------------------------------------------------------------------------------- one step

    def losses(self) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the sum of the losses of the current step's groups of pictures."""
        settings, step = self.settings, self.step
        # LoRA's dropout: on also after a snapshot was read, and the same in a run that was stopped and taken up again.
        self.model.train()
        torch.manual_seed(1_000_003 * settings.seed + step)
        groups = asking.pictures_of_step(settings.mixture, settings.images, step)
        rows = rows_of_step(len(self.scenes), settings.images, settings.seed, step)
        random = np.random.default_rng([settings.seed, 2, step])
        images = [np.asarray(self.scenes.images[row]) for row in rows]
        for place in range(groups["colour"]):
            if random.random() < settings.textured and len(self.others):
                images[place] = self.others[int(random.integers(len(self.others)))]
            images[place] = recoloured(images[place], random)
        stacked = np.stack(images)
        scenes = [self.scenes.scenes[row] for row in rows]
        with self.mixed(), shared_attention(self.model.language):
            with torch.set_grad_enabled(settings.adapt):
                patches = self.model.patch_tokens(torch.from_numpy(pixels_of(stacked)))
            tokens = self.model.connect(patches)
            colour, mask, words = tokens.split([groups["colour"], groups["mask"], groups["words"]])
            first = groups["colour"]
            parts: dict[str, torch.Tensor] = {}
            seen: dict[str, float] = {}
            if len(colour):
                parts["colour"], seen["re"] = self.colour_loss(colour, stacked[:first], random)
            if len(mask):
                asked = scenes[first : first + len(mask)]
                parts["mask"], seen["mask_right"] = self.mask_loss(mask, asked, Random(f"{settings.seed} {step} mask"))
            if len(words):
                parts |= self.words_losses(words, scenes[first + len(mask) :], step)
        total = torch.stack([part.float() for part in parts.values()]).sum()
        return total, {name: float(part.detach()) for name, part in parts.items()} | seen

    def colour_loss(
        self, tokens: torch.Tensor, pictures: np.ndarray, random: np.random.Generator
    ) -> tuple[torch.Tensor, float]:
        """Loss of colours of pictures (B, S, S, 3) uint8, and RE of the guesses where the channels before are true."""
        batch, count, grid = len(tokens), self.settings.colour_questions, micro_vlm.GRID
        cells = torch.from_numpy(micro_vlm.cells(pictures, grid).round().astype(np.int64)).to(self.device)
        x, y = (torch.from_numpy(random.integers(0, grid, (batch, count))).to(self.device) for _ in range(2))
        rgb = cells[torch.arange(batch, device=self.device)[:, None], y, x]
        asked = [self._x[x], self._colour_y[y], self._values[0][rgb[..., 0]], self._values[1][rgb[..., 1]]]
        states = self._states(tokens, " [reconstruct]", torch.stack(asked, dim=-1))
        weight = self.model.language.get_output_embeddings().weight
        losses, apart = [], []
        for channel in range(3):
            logits = (states[:, :, 1 + channel] @ weight[self._values[channel]].T).float()
            wanted = rgb[..., channel]
            losses.append(-(self._bells[wanted] * logits.log_softmax(-1)).sum(-1).mean())
            apart.append((logits.detach().argmax(-1) - wanted).abs().float().mean())
        return torch.stack(losses).mean(), float(100 * torch.stack(apart).sum() / 255)

    def mask_loss(self, tokens: torch.Tensor, scenes: Sequence[Scene], random: Random) -> tuple[torch.Tensor, float]:
        """Loss of 0 against 1 for cells of an object in each picture, and the share of right answers."""
        losses, right = [], []
        for image, scene in zip(tokens, scenes, strict=True):
            asked = asking.mask_question(scene, random, self.settings.mask_questions)
            x, y = torch.from_numpy(asked.cells).to(self.device).T
            questions = torch.stack([self._x[x], self._mask_y[y]], dim=-1)[None]
            states = self._states(image[None], f" [segmentation] {asked.phrase}", questions)[0, :, 1]
            logits = (states @ self.model.language.get_output_embeddings().weight[self._sides].T).float()
            truth = torch.from_numpy(asked.truth[asked.cells[:, 1], asked.cells[:, 0]].astype(np.int64))
            truth = truth.to(self.device)
            losses.append(functional.cross_entropy(logits, truth))
            right.append((logits.argmax(-1) == truth).float().mean())
        return torch.stack(losses).mean(), float(torch.stack(right).mean())

    def words_losses(self, tokens: torch.Tensor, scenes: Sequence[Scene], step: int) -> dict[str, torch.Tensor]:
        """Loss of the answers in words about some scenes and, where it is asked for, of where boxes are looked for."""
        settings, model = self.settings, self.model
        samples = [
            asking.words_samples(
                model,
                scene,
                settings.mixture,
                settings.word_questions,
                Random(f"{settings.seed} {step} {place}"),
                settings.longest,
            )
            for place, scene in enumerate(scenes)
        ]
        before, _ = model.split_prompts(["<Img><ImageHere></Img>"])
        questions = collate_questions(samples)
        with pointing.watched(body_of(model.language)) if settings.pointing else nullcontext() as seen:
            found = {"words": question_loss(model.language, model.prefix(tokens, before), questions, loss=self._words)}
            if seen is not None:
                loss = pointing.pointing_loss(seen, questions, len(before), model.grid, self._corners)
                if loss is not None:
                    found["pointing"] = settings.pointing * loss
        return found

    def _states(self, tokens: torch.Tensor, task: str, questions: torch.Tensor) -> torch.Tensor:
        """Last hidden states (B, N, W, D) of questions (B, N, W), token ids, behind their images and a task's text."""
        model, (batch, count, width) = self.model, questions.shape
        before, (shared,) = model.split_prompts([f"<Img><ImageHere></Img>{task}"])
        head = torch.tensor(shared, device=self.device).expand(batch, -1)
        packed = Questions(head, questions, torch.full_like(questions, IGNORED))
        inputs = question_inputs(model.language, model.prefix(tokens, before), packed)
        inputs.pop("labels")
        states = body_of(model.language)(**inputs, use_cache=False).last_hidden_state
        return states[:, -count * width :].reshape(batch, count, width, -1)


def with_lora(language: Any, rank: int, first: int = micro_vlm.READING) -> Any:
    """Return the language model with LoRA on its layers from `first` on (by default its own); the rest is held.

    Scale and dropout are in the paper's proportion (rank 64, alpha 16, dropout 0.05). Embeddings go on learning: the
    tokens of places and colours are new. `MiniGPT.write` merges what was learnt.
    """
    own = range(first, len(language.model.layers))
    kinds = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    targets = [f"model.layers.{number}.{kind}" for number in own for kind in kinds]
    adapted = add_lora(language, rank, max(1, rank // 4), 0.05, targets)
    adapted.get_input_embeddings().requires_grad_(True)
    return adapted


def body_of(language: Any) -> Any:
    """Return a language model without its output layer, LoRA or not."""
    return (language.get_base_model() if hasattr(language, "get_base_model") else language).model


def near_loss(values: torch.Tensor, near: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy, summed, that takes a value near the right one for nearly right.

    Args:
        values: tokens (K,) of a scale, in order; for every other token it is the plain cross-entropy.
        near: (K, K), what is learnt in place of each; see `bells`.
        logits: (N, V).
        targets: (N,).
    """
    found = logits.log_softmax(dim=-1)
    plain = -found.gather(1, targets[:, None]).squeeze(1)
    is_value, place = (targets[:, None] == values).float().max(dim=1)
    bell = -(near[place] * found[:, values]).sum(dim=1)
    return torch.where(is_value > 0, bell, plain).sum()


def bells(spread: float, values: int) -> torch.Tensor:
    """What is learnt in place of a value: rows (values, values) that sum to 1, a bell of deviation `spread` each."""
    if spread == 0:
        return torch.eye(values)
    apart = torch.arange(values)[:, None] - torch.arange(values)
    rows = torch.exp(-0.5 * (apart / spread) ** 2)
    return rows / rows.sum(dim=1, keepdim=True)


def recoloured(picture: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Half of the time the picture in other colours (channels changed places, some turned round), and mirrored.

    Where colours alone are asked for it need not look like a scene: more colours in more places.
    """
    if random.random() < 0.5:
        picture = picture[..., random.permutation(3)]
        turned = random.random(3) < 0.25
        picture = np.where(turned, 255 - picture, picture)
    if random.random() < 0.5:
        picture = picture[:, ::-1]
    return np.ascontiguousarray(picture)


def other_pictures(settings: PixelSettings) -> dict[str, list[np.ndarray]]:
    """Textures, and frames of the games: kind -> pictures. A game that is not installed is left out, and said so."""
    found = {"textures": [np.asarray(image) for image in sources.textures(settings.textures, settings.seed)]}
    for game in sources.GAMES if settings.frames else ():
        try:
            found[game] = list(sources.kept_frames(game, settings.frames, settings.seed, SIDE))
        except ImportError as error:
            print(f"{game}: no frames among the pictures to train on ({error})")
    return found
