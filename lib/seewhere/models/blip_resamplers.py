"""The real resamplers: BLIP-2's Q-Former of stage 1 and InstructBLIP's, by hub id or folder.

As in "Lost in Space" (appendix B): the text's tokens are joined after the queries in self-attention, and the first 32
positions, the queries', are what a probe reads, after any layer. Of InstructBLIP only the eye and the Q-Former are
loaded; its language model, nine tenths of its weights, is left on the disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoProcessor, Blip2ForImageTextRetrieval, InstructBlipConfig, InstructBlipQFormerModel
from transformers.models.instructblip.modeling_instructblip import InstructBlipPreTrainedModel, InstructBlipVisionModel

from seewhere.models.inputs import check_family, resolve_device
from seewhere.models.micro_qformer import TextBatch
from seewhere.models.resampling import Matching, Resampler

BLIP2_HUB_ID = "Salesforce/blip2-itm-vit-g"
INSTRUCTBLIP_HUB_ID = "Salesforce/instructblip-vicuna-7b"
TEXT_LENGTH = 32
"""Longest text of BLIP-2's stage 1, [CLS] and [SEP] included."""


class InstructBlipEyeAndQFormer(InstructBlipPreTrainedModel):
    """InstructBLIP without its language model, under the names of `InstructBlipForConditionalGeneration`."""

    config_class = InstructBlipConfig
    main_input_name = "pixel_values"
    _keys_to_ignore_on_load_unexpected = [r"^language_model\.", r"^language_projection\."]  # noqa: RUF012

    def __init__(self, config: InstructBlipConfig) -> None:
        super().__init__(config)
        self.vision_model = InstructBlipVisionModel._from_config(config.vision_config)
        self.qformer = InstructBlipQFormerModel._from_config(config.qformer_config)
        width = self.qformer.config.hidden_size
        self.query_tokens = nn.Parameter(torch.zeros(1, config.num_query_tokens, width))
        self.post_init()


class BlipResampler(Resampler):
    """What the two real resamplers share.

    Args:
        model: eye and Q-Former.
        image_processor: makes the eye's input.
        tokenizer: reads the texts.
        name: for tables and figures.
        text_length: longest text in tokens.
    """

    sees_text = True

    def __init__(self, model: Any, image_processor: Any, tokenizer: Any, name: str, text_length: int) -> None:
        super().__init__()
        self.model, self.image_processor, self.tokenizer = model, image_processor, tokenizer
        self.name, self.text_length = name, text_length
        qformer = model.config.qformer_config
        self.layers, self.width = int(qformer.num_hidden_layers), int(qformer.hidden_size)
        self.tokens = int(model.config.num_query_tokens)
        model.vision_model.requires_grad_(False)

    def see(self, images: Sequence[Image.Image]) -> Tensor:
        """Return the ViT's class and patch tokens (N, 1 + patches, width); pictures are squashed to its square."""
        pixels = self.image_processor(images=[i.convert("RGB") for i in images], return_tensors="pt")["pixel_values"]
        eye = self.model.vision_model
        with torch.no_grad():
            return eye(pixel_values=pixels.to(self.device, next(eye.parameters()).dtype)).last_hidden_state

    def preparation(self) -> str:
        """Return the image processor's settings: size, mean, spread and resampling."""
        return str(self.image_processor.to_json_string())

    def _queries_and_mask(self, texts: TextBatch) -> tuple[Tensor, Tensor]:
        queries = self.model.query_tokens.expand(len(texts.ids), -1, -1)
        seen = torch.ones(queries.shape[:2], dtype=texts.mask.dtype, device=queries.device)
        return queries, torch.cat([seen, texts.mask], dim=1)


class Blip2Resampler(BlipResampler, Matching):
    """The Q-Former of BLIP-2's stage 1 (`Blip2ForImageTextRetrieval`)."""

    def resample(self, image_tokens: Tensor, texts: TextBatch) -> tuple[Tensor, ...]:
        """Return the query tokens (N, 32, 768 in the released model) before the first layer and after every layer."""
        queries, mask = self._queries_and_mask(texts)
        output = self.model.qformer(
            query_embeds=self.model.embeddings(input_ids=texts.ids, query_embeds=queries),
            query_length=self.tokens,
            attention_mask=mask,
            encoder_hidden_states=image_tokens,
            output_hidden_states=True,
        )
        return tuple(states[:, : self.tokens] for states in output.hidden_states)

    def trained_part(self) -> nn.Module:
        """Return Q-Former, queries and text embeddings; sharing parameters with the model."""
        part = nn.Module()
        part.qformer, part.embeddings = self.model.qformer, self.model.embeddings
        part.query_tokens = self.model.query_tokens
        return part

    @torch.no_grad()
    def match_tokens(self, image_tokens: Tensor, statements: Sequence[str]) -> np.ndarray:
        """Return the matching head's probability (N,) of statements on the eye's tokens (N, 1 + patches, width)."""
        last = self.resample(image_tokens, self.read(statements))[-1]
        logits = self.model.itm_head(last.to(self.model.itm_head.weight.dtype)).mean(dim=1)
        return logits.float().softmax(dim=1)[:, 1].cpu().numpy()


class InstructBlipResampler(BlipResampler):
    """InstructBLIP's Q-Former, which reads the instruction itself."""

    def resample(self, image_tokens: Tensor, texts: TextBatch) -> tuple[Tensor, ...]:
        """Return the query tokens (N, 32, 768 in the released model) before the first layer and after every layer."""
        queries, mask = self._queries_and_mask(texts)
        output = self.model.qformer(
            input_ids=texts.ids,
            attention_mask=mask,
            query_embeds=queries,
            encoder_hidden_states=image_tokens,
            output_hidden_states=True,
        )
        return tuple(states[:, : self.tokens] for states in output.hidden_states)

    def trained_part(self) -> nn.Module:
        """Return Q-Former and queries; sharing parameters with the model."""
        part = nn.Module()
        part.qformer, part.query_tokens = self.model.qformer, self.model.query_tokens
        return part


def _name(family: str, source: str | Path) -> str:
    """Return the name a model has in tables: its family, and which one of it, so that two of a family stay apart."""
    return f"{family} ({Path(source).name})"


def load_blip2(
    source: str | Path = BLIP2_HUB_ID,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    revision: str = "main",
    text_length: int = TEXT_LENGTH,
) -> Blip2Resampler:
    """Load BLIP-2's stage-1 Q-Former with its eye, frozen.

    Args:
        source: hub id or folder of a `Blip2ForImageTextRetrieval`.
        device: where to run; the best found by default, and the reason is printed.
        dtype: of the eye; the Q-Former stays in fp32, as transformers keeps it.
        revision: of the hub repository.
        text_length: longest text in tokens.

    Raises:
        FileNotFoundError: no such model.
        ValueError: a model of another family.
    """
    check_family(source, "blip-2", revision)
    model = Blip2ForImageTextRetrieval.from_pretrained(source, revision=revision, dtype=dtype)
    processor = AutoProcessor.from_pretrained(source, revision=revision, backend="pil")
    made = Blip2Resampler(model, processor.image_processor, processor.tokenizer, _name("blip-2", source), text_length)
    return made.to(resolve_device(device, "blip-2")).eval().requires_grad_(False)


def load_instructblip(
    source: str | Path = INSTRUCTBLIP_HUB_ID,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    revision: str = "main",
    text_length: int = TEXT_LENGTH,
) -> InstructBlipResampler:
    """Load InstructBLIP's Q-Former with its eye, frozen; arguments and errors as for `load_blip2`."""
    check_family(source, "instructblip", revision)
    model = InstructBlipEyeAndQFormer.from_pretrained(source, revision=revision, dtype=dtype)
    processor = AutoProcessor.from_pretrained(source, revision=revision, backend="pil")
    tokenizer = processor.qformer_tokenizer
    made = InstructBlipResampler(
        model, processor.image_processor, tokenizer, _name("instructblip", source), text_length
    )
    return made.to(resolve_device(device, "instructblip")).eval().requires_grad_(False)
