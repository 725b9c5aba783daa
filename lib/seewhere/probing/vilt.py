"""ViLT, the upper baseline of "Lost in Space": one transformer over words and patches, with no resampler in between.

It is fine-tuned as a whole; its one token is the pooled state of the first position, which its own heads read too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, ViltModel

from seewhere.models.inputs import check_family, check_pairs, resolve_device
from seewhere.models.resampling import fingerprint_of

HUB_ID = "dandelin/vilt-b32-mlm"


class Vilt:
    """ViLT with the attributes of `seewhere.probing.protocols.TrainableResampler`; make one with `Vilt.load`.

    Args:
        model: the transformer; all its parameters are trainable.
        processor: its image processor and tokenizer.
        name: for tables and figures.
    """

    layers: tuple[str, ...] = ("pooled",)

    def __init__(self, model: ViltModel, processor: Any, name: str = "vilt") -> None:
        self.module, self.processor, self.name = model.eval(), processor, name
        self.text_length = int(model.config.max_position_embeddings)
        prepared = processor.image_processor.to_json_string()
        # Features are kept under this name: other settings of the processor give others.
        self.weights_hash = hashlib.sha256(f"{fingerprint_of(model)} {prepared}".encode()).hexdigest()

    @classmethod
    def load(
        cls, source: str | Path = HUB_ID, device: str | torch.device | None = None, revision: str = "main"
    ) -> Vilt:
        """Load ViLT by hub id or folder.

        Raises:
            FileNotFoundError: no such model.
            ValueError: a model of another family.
        """
        check_family(source, "vilt", revision)
        model: Any = ViltModel.from_pretrained(source, revision=revision, dtype=torch.float32)
        processor = AutoProcessor.from_pretrained(source, revision=revision, backend="pil")
        return cls(model.to(resolve_device(device, "vilt")), processor)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return how many tokens each text has; more than ``text_length`` are cut."""
        return [len(ids) for ids in self.processor.tokenizer(list(texts), verbose=False)["input_ids"]]

    def forward(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Tensor:
        """Return the pooled token of N pairs, (N, 1, width), with gradients; pictures are resized, never cropped."""
        pictures = check_pairs(images, texts, self.name)
        inputs = self.processor(
            images=[picture.convert("RGB") for picture in pictures],
            text=list(texts),
            padding=True,
            truncation=True,
            max_length=self.text_length,
            return_tensors="pt",
        )
        device = next(self.module.parameters()).device
        return self.module(**{name: value.to(device) for name, value in inputs.items()}).pooler_output[:, None]

    @torch.no_grad()
    def features(
        self, images: Sequence[Image.Image], texts: Sequence[str], layers: Sequence[str] | None = None
    ) -> dict[str, NDArray]:
        """Return ``{"pooled": (N, 1, width)}`` float32."""
        training = self.module.training
        self.module.eval()
        found = self.forward(images, texts).float().cpu().numpy()
        self.module.train(training)
        return {"pooled": found}
