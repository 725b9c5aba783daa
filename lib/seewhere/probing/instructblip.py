"""InstructBLIP asked directly: the whole model ranks "yes" and "no", as "Lost in Space" did (appendix C).

Its Q-Former's tokens, projected, stand before the prompt's words in the language model; an option's score is the
log-probability of its words after the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, InstructBlipForConditionalGeneration

from seewhere.models.inputs import check_family, check_pairs, resolve_device

HUB_ID = "Salesforce/instructblip-vicuna-7b"


class InstructBlipChooser:
    """The whole InstructBLIP with the attributes of `seewhere.probing.protocols.VisualChooser`.

    Args:
        model: the whole model, with a language model that only decodes (Vicuna, not Flan-T5).
        processor: its image processor and two tokenizers.
        name: for tables.

    Raises:
        ValueError: a language model with an encoder of its own.
    """

    def __init__(self, model: Any, processor: Any, name: str = "instructblip") -> None:
        if model.config.text_config.is_encoder_decoder:
            raise ValueError(
                f"{name}: expected a language model that only decodes, such as Vicuna; this one encodes too"
            )
        self.model, self.processor, self.name = model.eval(), processor, name

    @classmethod
    def load(
        cls,
        source: str | Path = HUB_ID,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        revision: str = "main",
    ) -> InstructBlipChooser:
        """Load InstructBLIP by hub id or folder, in half precision on a GPU if no ``dtype`` is given.

        Raises:
            FileNotFoundError: no such model.
            ValueError: a model of another family.
        """
        check_family(source, "instructblip", revision)
        place = resolve_device(device, "instructblip")
        usual = torch.float16 if torch.device(place).type == "cuda" else torch.float32
        model: Any = InstructBlipForConditionalGeneration.from_pretrained(
            source, revision=revision, dtype=dtype or usual
        )
        processor = AutoProcessor.from_pretrained(source, revision=revision, backend="pil")
        return cls(model.to(place), processor)

    @torch.no_grad()
    def choose(
        self, images: Sequence[Image.Image], prompts: Sequence[str], options: Sequence[Sequence[str]]
    ) -> list[NDArray]:
        """Return for each question the probabilities of its options, (number of options,) float64, summing to 1.

        Raises:
            ValueError: not one prompt and one list of options per picture, or an empty option.
        """
        pictures = check_pairs(images, prompts, self.name)
        if len(options) != len(prompts) or not all(row and all(row) for row in options):
            raise ValueError(f"{self.name}: expected for each of {len(prompts)} prompts a list of non-empty options")
        visual = self._visual(pictures, prompts)
        asked = [self.processor.tokenizer(prompt)["input_ids"] for prompt in prompts]
        rows = [(question, option) for question, row in enumerate(options) for option in row]
        answers = [self.processor.tokenizer(text, add_special_tokens=False)["input_ids"] for _, text in rows]
        scores = self._scores(visual, [question for question, _ in rows], asked, answers)
        found, start = [], 0
        for row in options:
            part = scores[start : start + len(row)]
            weights = np.exp(part - part.max())
            found.append(weights / weights.sum())
            start += len(row)
        return found

    def _visual(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> Tensor:
        """Projected query tokens (N, queries, width of the language model); the Q-Former reads the prompt too."""
        pixels = self.processor.image_processor(images=list(pictures), return_tensors="pt")["pixel_values"]
        read = self.processor.qformer_tokenizer(list(prompts), padding=True, truncation=True, return_tensors="pt")
        device, dtype = self.model.device, self.model.dtype
        return self.model.get_image_features(
            pixel_values=pixels.to(device, dtype),
            qformer_input_ids=read["input_ids"].to(device),
            qformer_attention_mask=read["attention_mask"].to(device),
        ).pooler_output

    def _scores(
        self, visual: Tensor, questions: Sequence[int], asked: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
    ) -> NDArray[np.float64]:
        """Log-probability of each answer after its question, (rows,)."""
        whole = [[*asked[question], *answer] for question, answer in zip(questions, answers, strict=True)]
        width = max(map(len, whole))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in whole], device=visual.device)
        words = self.model.get_input_embeddings()(ids)
        tokens = visual[torch.tensor(questions, device=visual.device)].to(words.dtype)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in whole], device=visual.device)
        seen = torch.ones(tokens.shape[:2], dtype=mask.dtype, device=mask.device)
        logits = self.model.language_model(
            inputs_embeds=torch.cat([tokens, words], dim=1), attention_mask=torch.cat([seen, mask], dim=1)
        ).logits.float()
        found = []
        for row, (question, answer) in enumerate(zip(questions, answers, strict=True)):
            # The token at a place is predicted from the place before it.
            start = tokens.shape[1] + len(asked[question]) - 1
            table = logits[row, start : start + len(answer)].log_softmax(dim=-1)
            found.append(table[torch.arange(len(answer)), torch.tensor(answer)].sum().item())
        return np.array(found, dtype=np.float64)
