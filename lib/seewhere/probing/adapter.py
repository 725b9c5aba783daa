"""A resampler of `seewhere.models.resampling` as the probes want it: named layers, and an encoder apart.

Layers are named by number, "0" (what the first layer is given) to the last. What is trained along is the resampler
without its eye; the eye's tokens are computed once per picture.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from seewhere.models.inputs import model_family
from seewhere.models.micro_qformer import TextBatch
from seewhere.models.resampling import Resampler, fingerprint_of
from seewhere.probing.vilt import Vilt
from seewhere.storage import read_json


class Probed:
    """A resampler with the attributes of `seewhere.probing.protocols.EncodedResampler`.

    Args:
        resampler: see `seewhere.models.resamplers.load_resampler`. The parameters of its trained part are made
            trainable; its eye stays frozen.
        bf16: run the resampler in mixed precision: three times as fast on processors with AVX512-BF16.
    """

    untrained = False
    """Whether its weights are random, for checks of the code alone."""

    def __init__(self, resampler: Resampler, bf16: bool = False) -> None:
        self.resampler, self.name, self.bf16 = resampler, resampler.name, bf16
        self.text_length = resampler.text_length
        self.sees_text, self.thread_safe = resampler.sees_text, resampler.thread_safe
        self.layers: tuple[str, ...] = tuple(str(layer) for layer in range(resampler.layers + 1))
        self.weights_hash = resampler.fingerprint
        self.encoder_hash = _eye_hash(resampler)
        self.module = resampler.trained_part().requires_grad_(True)
        self.module.eval()

    def __deepcopy__(self, memo: dict[int, Any]) -> Probed:
        """A copy with a trained part of its own, and the same frozen eye: of a large model that is most of it."""
        eye = _eye(self.resampler)
        if eye is not None:
            memo[id(eye)] = eye
        other = object.__new__(type(self))
        memo[id(self)] = other
        other.__dict__ = copy.deepcopy(self.__dict__, memo)
        return other

    def to(self, device: str | torch.device) -> Probed:
        """Move the whole resampler, eye included; the trained part alone would leave the two on different devices."""
        self.resampler.to(device)
        return self

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return how many tokens each text has; more than ``text_length`` are cut."""
        return self.resampler.count_tokens(texts)

    def features(
        self, images: Sequence[Image.Image], texts: Sequence[str], layers: Sequence[str] | None = None
    ) -> dict[str, NDArray]:
        """Return tokens (N, tokens, width) float32 of the asked layers; None means the last one."""
        wanted = list(layers) if layers is not None else [self.layers[-1]]
        found = self.resampler.features(images, texts, [int(layer) for layer in wanted], progress=False)
        return {layer: found[int(layer)] for layer in wanted}

    def encode(self, images: Sequence[Image.Image]) -> NDArray:
        """Return the frozen eye's tokens of pictures, (N, patches, width) float32."""
        return self.resampler.see(images).float().cpu().numpy()

    def forward_encoded(self, encoded: Tensor, texts: Sequence[str]) -> Tensor:
        """Return the last layer's tokens, with gradients, from the eye's tokens (N, patches, width)."""
        return self._states(encoded, texts)[-1]

    @torch.no_grad()
    def features_encoded(
        self, encoded: NDArray, texts: Sequence[str], layers: Sequence[str] | None = None
    ) -> dict[str, NDArray]:
        """Return tokens of the asked layers, as ``features``, from the eye's tokens (N, patches, width)."""
        training = self.resampler.training
        self.resampler.eval()
        device = next(iter(self.module.parameters()), torch.zeros(0)).device
        states = self._states(torch.from_numpy(np.asarray(encoded, dtype=np.float32)).to(device), texts)
        self.resampler.train(training)
        wanted = list(layers) if layers is not None else [self.layers[-1]]
        return {layer: states[int(layer)].float().cpu().numpy() for layer in wanted}

    def _states(self, encoded: Tensor, texts: Sequence[str]) -> tuple[Tensor, ...]:
        read = self.resampler.read(texts)
        batch = TextBatch(read.ids.to(encoded.device), read.mask.to(encoded.device))
        with torch.autocast(encoded.device.type, torch.bfloat16, enabled=self.bf16):
            return self.resampler.resample(encoded, batch)

    def forward(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Tensor:
        """Return the last layer's tokens, with gradients, from pictures."""
        device = next(iter(self.module.parameters()), torch.zeros(0)).device
        return self.forward_encoded(self.resampler.see(images).float().to(device), texts)

    @property
    def has_attention(self) -> bool:
        """Whether it has a Q-Former's cross-attention, which `attention` can show."""
        return any(name.endswith("crossattention.attention") for name, _ in self.module.named_modules())

    @torch.no_grad()
    def attention(self, images: Sequence[Image.Image], texts: Sequence[str]) -> dict[str, NDArray]:
        """Return where the queries look: layer -> cross-attention (N, queries, patches), mean over the heads.

        Layers are named as their output is; a Q-Former may look in every other one only. Each row sums to 1 over the
        eye's tokens, with its class token first where it has one.

        Raises:
            ValueError: a resampler without a Q-Former's cross-attention.
        """
        found: dict[str, NDArray] = {}
        places = {
            module: str(int(name.split("layer.")[-1].split(".")[0]) + 1)
            for name, module in self.module.named_modules()
            if name.endswith("crossattention.attention")
        }
        if not places:
            raise ValueError(f"{self.name} has no cross-attention from queries to patches to show")

        def keep(module: torch.nn.Module, _: Any, output: Any) -> None:
            found[places[module]] = output[1].mean(dim=1).float().cpu().numpy()

        hooks = [module.register_forward_hook(keep) for module in places]
        configs: list[Any] = [module.config for module in places]
        before = [config._attn_implementation for config in configs]
        try:
            for config in configs:  # the faster implementations do not tell their weights
                config._attn_implementation = "eager"
            self.features_encoded(self.encode(images), texts)
        finally:
            for hook in hooks:
                hook.remove()
            for config, name in zip(configs, before, strict=True):
                config._attn_implementation = name
        return dict(sorted(found.items(), key=lambda item: int(item[0])))

    def match(self, images: Sequence[Image.Image], statements: Sequence[str]) -> NDArray:
        """Return the whole model's probability (N,) that each statement is true of its picture.

        Raises:
            ValueError: a resampler that has nothing to answer with.
        """
        return np.asarray(self._whole("match")(images, statements))

    def match_encoded(self, encoded: NDArray, statements: Sequence[str]) -> NDArray:
        """As `match`, from the eye's tokens (N, patches, width)."""
        device = next(iter(self.module.parameters()), torch.zeros(0)).device
        tokens = torch.from_numpy(np.asarray(encoded, dtype=np.float32)).to(device)
        return np.asarray(self._whole("match_tokens")(tokens, statements))

    def _whole(self, name: str) -> Any:
        """How the whole model answers by itself."""
        found = getattr(self.resampler, name, None)
        if found is None:
            raise ValueError(f"{self.name} has no way to answer by itself; only its tokens can be probed")
        return found


def load_probed(source: str | Path, bf16: bool = False, **options: Any) -> Probed | Vilt:
    """Load what is to be probed: a resampler, or ViLT, by name, folder or hub id.

    Args:
        source: see `seewhere.models.resamplers.load_resampler`; or a ViLT, such as ``dandelin/vilt-b32-mlm``.
        options: passed on to the model.

    Raises:
        FileNotFoundError: nothing of that name.
        ValueError: a model of another family.
    """
    from seewhere.models.resamplers import NAMES, load_resampler

    if str(source) not in NAMES and not _is_micro_folder(Path(source)):
        with suppress(FileNotFoundError):  # the other loader knows the names to list
            if model_family(source) == "vilt":
                return Vilt.load(source, **options)
    resampler = load_resampler(source, **options)
    if torch.cuda.is_available():  # of several, the one that the launcher gave this process
        resampler.to("cuda")
    return Probed(resampler, bf16)


def _is_micro_folder(folder: Path) -> bool:
    path = folder / "config.json"
    return path.is_file() and "resampler" in read_json(path)


def _eye(resampler: Resampler) -> Any:
    """The frozen image encoder of a resampler; None where it has none apart."""
    eye = getattr(resampler, "clip", None)
    return eye if eye is not None else getattr(getattr(resampler, "model", None), "vision_model", None)


def _eye_hash(resampler: Resampler) -> str:
    """Hash of everything that the eye's tokens depend on: resamplers on one eye share them."""
    eye = _eye(resampler)
    if eye is None:
        return resampler.fingerprint
    return hashlib.sha256(f"{type(eye).__name__} {fingerprint_of(eye)}{resampler.preparation()}".encode()).hexdigest()
