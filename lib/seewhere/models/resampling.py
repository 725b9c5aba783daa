"""What every resampler can be asked, whatever its size: to see images, to read texts, and to give tokens per layer.

The three steps are apart because a probe needs them apart. What the frozen eye sees is the same for every text and
every step of training, so it can be kept; `resample` carries gradients, so that a resampler can be trained with its
probe. `Resampler.features` does all three without gradients and answers
`seewhere.models.protocols.FeatureModel`.
"""

from __future__ import annotations

import hashlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from seewhere.models.inputs import batched, check_pairs
from seewhere.models.micro_qformer import TextBatch

READING = threading.Lock()
"""A fast tokenizer refuses to be used by two threads at once."""


class Resampler(nn.Module, ABC):
    """A resampler with the frozen eye before it.

    Attributes:
        name: for tables and figures.
        sees_text: True where queries and text see each other; False where the text only stands beside the visual
            tokens, as one last token.
        layers: number of layers; there are ``layers + 1`` sets of tokens, 0 being what the first layer is given.
        tokens, width: shape of each set.
        tokenizer: reads the texts.
        text_length: longest text in tokens; longer ones are cut.
        thread_safe: whether several threads may ask it at once, as long as none trains it.
    """

    thread_safe: bool = True
    name: str
    sees_text: bool
    layers: int
    tokens: int
    width: int
    tokenizer: PreTrainedTokenizerBase
    text_length: int

    @abstractmethod
    def see(self, images: Sequence[Image.Image]) -> Tensor:
        """Return the frozen eye's image tokens (N, P, its width); no gradients."""

    @abstractmethod
    def resample(self, image_tokens: Tensor, texts: TextBatch) -> tuple[Tensor, ...]:
        """Return the tokens (N, tokens, width) before the first layer and after every layer, with gradients."""

    @abstractmethod
    def trained_part(self) -> nn.Module:
        """Return what an unfrozen arm trains: the resampler without the eye."""

    def preparation(self) -> str:
        """Return how pictures are prepared, where a file beside the weights may say it: part of the fingerprint."""
        return ""

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def read(self, texts: Sequence[str]) -> TextBatch:
        """Return texts as ids and mask, padded to the longest, at most ``text_length``."""
        with READING:
            found = self.tokenizer(
                list(texts), padding=True, truncation=True, max_length=self.text_length, return_tensors="pt"
            )
        return TextBatch(found["input_ids"].to(self.device), found["attention_mask"].to(self.device))

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return how many tokens each text has, uncut, special ones included."""
        with READING:
            return [len(ids) for ids in self.tokenizer(list(texts), verbose=False)["input_ids"]]

    @property
    def fingerprint(self) -> str:
        """Hash of class, parameters, vocabulary and preparation: all that tokens depend on beside image and text."""
        digest = hashlib.sha256(f"{type(self).__name__} {self.text_length}{self.preparation()}".encode())
        digest.update(fingerprint_of(self).encode())
        digest.update(repr(sorted(self.tokenizer.get_vocab().items())).encode())
        return digest.hexdigest()

    @torch.no_grad()
    def features(
        self,
        images: Sequence[Image.Image],
        texts: Sequence[str],
        layers: Sequence[int] = (-1,),
        batch_size: int = 64,
        progress: bool = True,
    ) -> dict[int, np.ndarray]:
        """Return the tokens (N, tokens, width) float32 after each asked layer, for ``texts[i]`` about ``images[i]``.

        Args:
            images: N pictures of any size and mode. One that occurs several times in a batch is looked at once.
            texts: N texts.
            layers: layer numbers, 0 to ``layers``; negative ones count from the last.
            batch_size: pairs at a time.
            progress: show a bar.

        Raises:
            ValueError: not one text per image, an empty text, or a layer that there is not.
        """
        images = check_pairs(images, texts, self.name)
        places = {layer: self._place(layer) for layer in layers}
        found = {layer: np.empty((len(texts), self.tokens, self.width), dtype=np.float32) for layer in places}
        training = self.training
        self.eval()
        for rows in batched(images, batch_size, self.name, progress):
            distinct = {id(images[i]): images[i] for i in rows}
            seen = self.see(list(distinct.values()))
            order = {key: k for k, key in enumerate(distinct)}
            tokens = seen[torch.tensor([order[id(images[i])] for i in rows], device=seen.device)]
            states = self.resample(tokens, self.read([texts[i] for i in rows]))
            for layer, place in places.items():
                found[layer][rows] = states[place].float().cpu().numpy()
        self.train(training)
        return found

    def _place(self, layer: int) -> int:
        place = layer + self.layers + 1 if layer < 0 else layer
        if not 0 <= place <= self.layers:
            raise ValueError(f"{self.name} has layers 0 to {self.layers}; got {layer}")
        return place


class Matching(Resampler):
    """A resampler that can be asked whether a statement is true of a picture."""

    @abstractmethod
    def match_tokens(self, image_tokens: Tensor, statements: Sequence[str]) -> np.ndarray:
        """Return the probability (N,) that each statement is true, from the eye's tokens (N, P, its width)."""

    @torch.no_grad()
    def match(self, images: Sequence[Image.Image], statements: Sequence[str], batch_size: int = 32) -> np.ndarray:
        """Return the probability (N,) that ``statements[i]`` is true of ``images[i]``.

        Raises:
            ValueError: not one statement per image, or nothing that could answer was loaded.
        """
        images = check_pairs(images, statements, self.name)
        found = []
        for rows in batched(images, batch_size, self.name, progress=False):
            found.append(self.match_tokens(self.see([images[i] for i in rows]), [statements[i] for i in rows]))
        return np.concatenate(found)


def fingerprint_of(module: nn.Module) -> str:
    """Return a hash of a module's parameters and buffers, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
