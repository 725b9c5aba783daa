"""One argument for a resampler: the name of a micro one, a folder, or a hub id.

=================  ==================================================================================================
micro-blip2        Q-Former of stage 1 (contrast, matching, generation) on the frozen micro-CLIP
micro-instruct     the same, trained on through a small language model, with the instruction beside its queries
micro-perceiver    a Perceiver resampler through a small language model; sees no text
micro-patches      no resampler: the micro-CLIP's patch tokens themselves
=================  ==================================================================================================

The last two never see the text, so their tokens say nothing about what is asked; the text tower's state of the text
stands beside them as one last token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from seewhere.models import few_bits
from seewhere.models.inputs import model_family
from seewhere.models.micro_clip import MicroClip, shipped_folder
from seewhere.models.micro_qformer import TEXT_LENGTH, MicroBlip2, QFormerSettings, TextBatch
from seewhere.models.micro_qformer_data import LanguageReader
from seewhere.models.micro_resamplers import MicroInstruct, MicroPerceiver, ThroughLanguage
from seewhere.models.resampling import Matching, Resampler, fingerprint_of
from seewhere.models.world_questions import statement_question
from seewhere.storage import atomic_write_json, make_readable, read_json

NAMES = ("micro-blip2", "micro-instruct", "micro-perceiver", "micro-patches")
REAL = ("blip-2", "instructblip")
"""Families (``model_type``) of the real resamplers, see `seewhere.models.blip_resamplers`."""
COMMAND = "seewhere train qformer --kind {} --out FOLDER"


class MicroResampler(Matching):
    """A micro Q-Former or Perceiver resampler with its micro-CLIP; make one with `load_resampler`.

    Args:
        name: for tables and figures.
        clip: the frozen eye.
        module: the resampler.
        through: the language model that ``module`` was trained through, to ask the whole model.
        reader: how that language model reads.
    """

    def __init__(
        self,
        name: str,
        clip: MicroClip,
        module: MicroBlip2 | MicroInstruct | MicroPerceiver,
        through: ThroughLanguage | None = None,
        reader: LanguageReader | None = None,
    ) -> None:
        super().__init__()
        self.name, self.clip, self.module = name, clip.requires_grad_(False), module
        self.tokenizer, self.text_length = clip.tokenizer, TEXT_LENGTH
        settings = module.settings
        self.sees_text = not isinstance(module, MicroPerceiver)
        self.thread_safe = not isinstance(module, MicroPerceiver)  # which listens to its layers while it works
        self.layers, self.width = settings.layers, settings.width
        self.tokens = settings.queries + (0 if self.sees_text else 1)
        if not self.sees_text and clip.width != settings.width:
            raise ValueError(
                f"{name}: the text's token is {clip.width} wide; expected the resampler's {settings.width}"
            )
        # Kept out of the modules: neither an unfrozen arm nor the fingerprint has to do with the language model.
        self._whole = (through, reader)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Take the language model along wherever the resampler goes, though it is none of its modules."""
        through = self._whole[0]
        if through is not None:
            for apart in (through.language, through.projection):
                apart._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def see(self, images: Sequence[Image.Image]) -> Tensor:
        """Return micro-CLIP's patch tokens (N, patches, width)."""
        with torch.no_grad():
            return self.clip.patch_tokens(self.clip.pixels(images))

    def resample(self, image_tokens: Tensor, texts: TextBatch) -> tuple[Tensor, ...]:
        """Return the tokens (N, tokens, width) before the first layer and after every layer."""
        found = self.module.resample(image_tokens, texts.ids, texts.mask)
        return found if self.sees_text else beside_text(self.clip, found, texts)

    def trained_part(self) -> nn.Module:
        """Return the resampler without the eye."""
        return self.module

    @torch.no_grad()
    def match_tokens(self, image_tokens: Tensor, statements: Sequence[str]) -> np.ndarray:
        """Return the probability (N,) that each statement is true, from the eye's tokens (N, patches, width).

        ``micro-blip2`` answers by its matching head; the others by what their language model gives "yes" and "no" to
        the question whether it is true.

        Raises:
            ValueError: a resampler without its language model.
        """
        return matches(self.module, image_tokens, list(statements), self.clip, *self._whole).cpu().numpy()


def matches(
    module: MicroBlip2 | MicroInstruct | MicroPerceiver,
    image_tokens: Tensor,
    statements: list[str],
    clip: MicroClip,
    through: ThroughLanguage | None,
    reader: LanguageReader | None,
) -> Tensor:
    """Return the probability (B,) that statements are true of image tokens; see `MicroResampler.match_tokens`."""
    if isinstance(module, MicroBlip2):
        texts = _read(clip, statements)
        return module.match_logits(image_tokens, texts.ids, texts.mask).softmax(dim=1)[:, 1]
    if through is None or reader is None:
        raise ValueError("this resampler was loaded without its language model; nothing can answer for it")
    asked = [statement_question(s) for s in statements]
    texts = _read(clip, asked)
    losses = []
    for answer in ("no", "yes"):
        batch = reader.batch([(question, answer) for question in asked]).to(image_tokens.device)
        losses.append(through.answer_losses(image_tokens, texts.ids, texts.mask, batch)[0])
    return torch.stack(losses, dim=1).neg().softmax(dim=1)[:, 1]


def _read(clip: MicroClip, texts: Sequence[str]) -> TextBatch:
    read = clip.tokenizer(list(texts), padding=True, truncation=True, max_length=TEXT_LENGTH, return_tensors="pt")
    return TextBatch(read["input_ids"].to(clip.device), read["attention_mask"].to(clip.device))


def beside_text(clip: MicroClip, found: Sequence[Tensor], texts: TextBatch) -> tuple[Tensor, ...]:
    """Return sets of tokens (B, n, width) with the text tower's state of the text as one more, (B, n + 1, width)."""
    with torch.no_grad():
        state = clip.model.text_model(input_ids=texts.ids, attention_mask=texts.mask).pooler_output
    return tuple(torch.cat([tokens, state[:, None].to(tokens.dtype)], dim=1) for tokens in found)


class MicroPatches(Resampler):
    """The control without a resampler: the patch tokens that the others read, of the frozen micro-CLIP."""

    sees_text = False

    def __init__(self, clip: MicroClip) -> None:
        super().__init__()
        self.name, self.clip = "micro-patches", clip.requires_grad_(False)
        self.tokenizer, self.text_length = clip.tokenizer, TEXT_LENGTH
        self.layers, self.width = 0, clip.width
        self.tokens = clip.grid**2 + 1

    def see(self, images: Sequence[Image.Image]) -> Tensor:
        """Return micro-CLIP's patch tokens (N, patches, width)."""
        with torch.no_grad():
            return self.clip.patch_tokens(self.clip.pixels(images))

    def resample(self, image_tokens: Tensor, texts: TextBatch) -> tuple[Tensor, ...]:
        """Return the patch tokens as they are, and the text's: one set, layer 0."""
        return beside_text(self.clip, [image_tokens], texts)

    def trained_part(self) -> nn.Module:
        """Return an empty module: there is nothing between the eye and the probe."""
        return nn.Identity()


def load_resampler(source: str | Path, clip: str | Path | None = None, **options: Any) -> Resampler:
    """Load a resampler, frozen and in evaluation mode.

    Args:
        source: a name of `NAMES`, a folder that ``seewhere train qformer`` wrote, or the folder or hub id of a BLIP-2
            (``Salesforce/blip2-itm-vit-g``) or InstructBLIP (``Salesforce/instructblip-vicuna-7b``) model.
        clip: micro resamplers only: name or folder of the micro-CLIP; by default the one it was trained on.
        options: real ones only, see `seewhere.models.blip_resamplers`.

    Raises:
        FileNotFoundError: nothing of that name.
        ValueError: a model of another family, or a micro-CLIP other than the one the resampler was trained on.
    """
    if str(source) == "micro-patches":
        return MicroPatches(MicroClip.load(clip or "micro-clip")).eval()
    if str(source) in NAMES:
        return _load_micro(shipped_folder(source, COMMAND.format(str(source).removeprefix("micro-"))), clip)
    folder = Path(source)
    if (folder / "config.json").is_file() and "resampler" in read_json(folder / "config.json"):
        return _load_micro(folder, clip)
    known = f"known names are {', '.join(NAMES)}"
    try:
        family = model_family(source)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error} As a name it is unknown too: {known}.") from error
    if family not in REAL:
        raise ValueError(f"{str(source)!r} holds a {family!r} model, expected one of {', '.join(REAL)}; {known}.")
    from seewhere.models.blip_resamplers import load_blip2, load_instructblip

    return (load_blip2 if family == "blip-2" else load_instructblip)(source, **options)


def load_blip2_module(source: str | Path) -> MicroBlip2:
    """Return the Q-Former of a ``blip2`` folder or name, for ``instruct`` to start from."""
    found = load_resampler(source)
    if not isinstance(found, MicroResampler) or not isinstance(found.module, MicroBlip2):
        raise ValueError(f"{str(source)!r} is no micro-BLIP-2; expected a folder made by {COMMAND.format('blip2')}")
    return found.module


def _load_micro(folder: Path, clip_source: str | Path | None) -> MicroResampler:
    config = read_json(folder / "config.json")
    clip = MicroClip.load(clip_source or config["clip"])
    if fingerprint_of(clip) != config["clip_fingerprint"]:
        raise ValueError(
            f"{folder} was trained on another micro-CLIP than {clip_source or config['clip']!r}; "
            "pass clip=... with the one it was trained on"
        )
    kind, settings = config["resampler"], QFormerSettings(**config["shape"])
    state = few_bits.load_state(folder / "model.safetensors")
    through, reader = None, None
    module: MicroBlip2 | MicroInstruct | MicroPerceiver
    if kind == "blip2":
        module = MicroBlip2(settings)
        module.load_state_dict(state)
    else:
        module = MicroInstruct(settings) if kind == "instruct" else MicroPerceiver(settings)
        source = config["language"] or folder / "language"
        language = _language(source, written_apart=not any(k.startswith("language.") for k in state))
        reader = LanguageReader(AutoTokenizer.from_pretrained(source) if config["language"] else clip.tokenizer)
        through = ThroughLanguage(module, language, frozen=True)
        through.load_state_dict(state, strict=False)
        through.eval().requires_grad_(False)
    name = config.get("name", f"micro-{kind}")
    return MicroResampler(name, clip, module, through, reader).eval().requires_grad_(False)


def _language(source: str | Path, written_apart: bool) -> Any:
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    if written_apart:
        return AutoModelForCausalLM.from_pretrained(source, **options)
    return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source), **options)


def write_micro(
    folder: Path,
    kind: str,
    module: MicroBlip2 | ThroughLanguage,
    clip: MicroClip,
    clip_source: str,
    language_source: str = "",
    squeezed: bool = False,
) -> None:
    """Write a trained micro resampler into a folder that `load_resampler` reads: weights and configuration.

    Args:
        folder: an existing folder.
        kind: "blip2", "instruct" or "perceiver".
        module: what was trained.
        clip, clip_source: the frozen eye, and the name or folder it is loaded from again.
        language_source: the language model's folder or hub id; "" writes it along.
        squeezed: seven bits a number (`few_bits`) instead of fp16.
    """
    state = module.state_dict()
    if isinstance(module, ThroughLanguage):
        words = {k.removeprefix("language."): v.half() for k, v in state.items() if k.startswith("language.")}
        if squeezed and not language_source:
            module.language.config.save_pretrained(folder / "language")
            state.pop("language.lm_head.weight")  # it is the input embedding, as in every model made here
        else:
            state = {k: v for k, v in state.items() if not k.startswith("language.")}
            if not language_source:
                module.language.save_pretrained(folder / "language", state_dict=words)
    settings = module.settings if isinstance(module, MicroBlip2) else module.resampler.settings
    weights = folder / "model.safetensors"
    if squeezed:
        few_bits.save_state(state, weights)
    else:
        save_file({k: v.half().contiguous().clone() for k, v in state.items()}, weights)
        make_readable(weights)
    config = {
        "resampler": kind,
        "name": f"micro-{kind}",
        "shape": {n: getattr(settings, n) for n in settings.__dataclass_fields__},
        "clip": clip_source,
        "clip_fingerprint": fingerprint_of(clip),
        "language": language_source,
    }
    atomic_write_json(folder / "config.json", config)
