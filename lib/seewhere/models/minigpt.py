"""MiniGPT-v2's layout from transformers' own classes: vision encoder, merged tokens, one linear layer, Llama.

Four consecutive tokens of the encoder (a strip of 1 x 4 patches in raster order) are laid side by side and mapped to
one token of the language model (MiniGPT-v2, section 3.1): a 32 x 32 grid of patches becomes 256 tokens. The same class
holds the micro model and the real one; only the parts differ. `minigpt_released` reads the published weights.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Blip2VisionConfig,
    Blip2VisionModel,
    CLIPVisionConfig,
    CLIPVisionModel,
)

from seewhere import storage
from seewhere.models.pixel_points import as_rgb
from seewhere.models.world_pairs import square

SETTINGS_FILE, CONNECTOR_FILE = "minigpt.json", "connector.safetensors"
VISION, LANGUAGE = "vision", "language"
_VISION_FAMILIES: dict[str, tuple[Any, Any]] = {
    "blip_2_vision_model": (Blip2VisionConfig, Blip2VisionModel),
    "clip_vision_model": (CLIPVisionConfig, CLIPVisionModel),
}


@dataclass(frozen=True, slots=True)
class MiniGPTSettings:
    """What the parts' own configurations do not say.

    `merge`: tokens laid side by side. `layer`: the encoder's hidden states that are read; -1 is its output (with its
    last norm, where it has one). `standardise`: each token over its width, where the encoder has no last norm.
    `mean`, `deviation`: of pixels 0..1, per channel. `image_mark`: where a prompt takes the image. `positions`: whether
    the connector adds to each token something of its place, for an encoder whose tokens hardly tell it.
    """

    merge: int = 4
    layer: int = -1
    standardise: bool = False
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    deviation: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_mark: str = "<ImageHere>"
    positions: bool = False


class PlacedLinear(nn.Linear):
    """A linear layer on tokens (B, T, W) that adds to each of the T places its own `positions` (T, D), first 0."""

    def __init__(self, inputs: int, outputs: int, places: int) -> None:
        super().__init__(inputs, outputs)
        self.positions = nn.Parameter(torch.zeros(places, outputs))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the tokens (B, T, D)."""
        return super().forward(input) + self.positions


class MiniGPT(nn.Module):
    """A vision-language model in MiniGPT-v2's layout.

    Args:
        vision: a `Blip2VisionModel` or `CLIPVisionModel`, square input.
        language: a causal language model, possibly with LoRA.
        tokenizer: the language model's.
        settings: see `MiniGPTSettings`.
        name: shown in tables.

    Attributes:
        connector: the linear layer between the two (`PlacedLinear` where the settings ask for positions).

    Raises:
        ValueError: a row of patches does not split into strips of `merge`.
    """

    def __init__(
        self, vision: Any, language: Any, tokenizer: Any, settings: MiniGPTSettings | None = None, name: str = "minigpt"
    ) -> None:
        super().__init__()
        self.vision, self.language, self.tokenizer = vision, language, tokenizer
        self.settings, self.name = settings or MiniGPTSettings(), name
        self.side, patch = int(vision.config.image_size), int(vision.config.patch_size)
        self.grid = self.side // patch
        if self.grid % self.settings.merge:
            raise ValueError(
                f"a row of {self.grid} patches ({self.side} px by {patch}) does not split into strips of "
                f"{self.settings.merge}; choose another merge, image size or patch size"
            )
        width = language.get_input_embeddings().weight.shape[1]
        given = vision.config.hidden_size * self.settings.merge
        self.connector = PlacedLinear(given, width, self.tokens) if self.settings.positions else nn.Linear(given, width)

    @property
    def tokens(self) -> int:
        """Tokens of an image in the language model."""
        return self.grid**2 // self.settings.merge

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.connector.weight.device

    # ------------------------------------------------------------------------------------------------ the image

    def pixels(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """The encoder's input (B, 3, side, side) float32 of pictures of any size and mode, squashed to a square."""
        squares = np.stack([square(as_rgb(image), self.side) for image in images])
        values = torch.from_numpy(squares).permute(0, 3, 1, 2).float().div_(255)
        mean, deviation = (torch.tensor(v)[:, None, None] for v in (self.settings.mean, self.settings.deviation))
        return (values - mean) / deviation

    def patch_tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        """Patch tokens (B, grid * grid, W) of inputs (B, 3, side, side), in raster order, without the class token."""
        given = pixels.to(self.device, next(self.vision.parameters()).dtype)
        if self.settings.layer == -1:
            states = self.vision(pixel_values=given).last_hidden_state
        else:
            states = self.vision(pixel_values=given, output_hidden_states=True).hidden_states[self.settings.layer]
        if self.settings.standardise:
            states = functional.layer_norm(states.float(), states.shape[-1:]).to(states.dtype)
        return states[:, 1:]

    def image_tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        """The image as the language model sees it: (B, `tokens`, D)."""
        return self.connect(self.patch_tokens(pixels))

    def connect(self, patches: torch.Tensor) -> torch.Tensor:
        """Patch tokens (B, P, W) as tokens of the language model (B, P / merge, D)."""
        merged = patches.reshape(len(patches), -1, patches.shape[-1] * self.settings.merge)
        return self.connector(merged.to(self.connector.weight.dtype))

    # ------------------------------------------------------------------------------------------------- the text

    def split_prompts(self, prompts: Sequence[str]) -> tuple[list[int], list[list[int]]]:
        """Token ids before the image, the same for all prompts, and after it; each side is read by itself.

        Raises:
            ValueError: the image's mark does not stand in a prompt once, nothing stands behind it, or prompts differ
                in front of it.
        """
        mark = self.settings.image_mark
        parts = [prompt.split(mark) for prompt in prompts]
        for prompt, split in zip(prompts, parts, strict=True):
            if len(split) != 2 or not split[1] or split[0] != parts[0][0]:
                raise ValueError(
                    f"expected prompts with {mark} once, text behind it and the same text in front, got {prompt!r}"
                )
        if not parts:
            raise ValueError("there are no prompts; expected at least one")
        texts = [parts[0][0], *(split[1] for split in parts)]
        before, *after = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        begin = self.tokenizer.bos_token_id
        return [*([] if begin is None else [begin]), *before], after

    def prefix(self, image_tokens: torch.Tensor, before: Sequence[int]) -> torch.Tensor:
        """What every question about an image begins with: embeddings (B, len(before) + `tokens`, D)."""
        embed = self.language.get_input_embeddings()
        words = embed(torch.tensor([list(before)], dtype=torch.long, device=self.device))
        return torch.cat([words.expand(len(image_tokens), -1, -1), image_tokens.to(words.dtype)], dim=1)

    # -------------------------------------------------------------------------------------------------- storing

    def write(self, folder: str | Path, dtype: torch.dtype = torch.float16) -> Path:
        """Write all parts into a folder that `load` reads; LoRA is merged into the language model written."""
        from safetensors.torch import save_file  # slow to import

        def stored(module: nn.Module) -> dict[str, torch.Tensor]:
            values = {k: v.detach().cpu() for k, v in module.state_dict().items()}
            return {k: (v.to(dtype) if v.is_floating_point() else v).contiguous() for k, v in values.items()}

        language = copy.deepcopy(self.language)
        language = language.merge_and_unload() if hasattr(language, "merge_and_unload") else language
        with storage.atomic_directory(Path(folder)) as work:
            target = Path(work)
            self.vision.save_pretrained(target / VISION, state_dict=stored(self.vision))
            language.to(dtype).save_pretrained(target / LANGUAGE)
            self.tokenizer.save_pretrained(target / LANGUAGE)
            save_file(stored(self.connector), target / CONNECTOR_FILE)
            storage.make_readable(target / CONNECTOR_FILE)
            storage.atomic_write_json(target / SETTINGS_FILE, {"name": self.name, **asdict(self.settings)})
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Self:
        """Read a folder made by `write`, in evaluation mode.

        Raises:
            FileNotFoundError: the folder does not hold such a model.
        """
        from safetensors.torch import load_file  # slow to import

        folder = Path(folder)
        if not (folder / SETTINGS_FILE).is_file():
            raise FileNotFoundError(f"{folder} holds no {SETTINGS_FILE}; expected a folder made by MiniGPT.write")
        stored = storage.read_json(folder / SETTINGS_FILE)
        name = stored.pop("name")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
        settings = MiniGPTSettings(**values)
        family = storage.read_json(folder / VISION / "config.json")["model_type"]
        vision = _VISION_FAMILIES[family][1].from_pretrained(folder / VISION, dtype=dtype)
        language = AutoModelForCausalLM.from_pretrained(folder / LANGUAGE, dtype=dtype)
        model = cls(vision, language, AutoTokenizer.from_pretrained(folder / LANGUAGE), settings, name)
        model.connector.load_state_dict(load_file(folder / CONNECTOR_FILE))
        return model.to(device, dtype).eval()


def micro_minigpt(
    clip: Any, language: Any, tokenizer: Any, merge: int = 4, name: str = "micro-vlm", positions: bool = False
) -> MiniGPT:
    """The layout from a micro-CLIP's vision tower (copied) and a micro language model.

    Tokens are micro-CLIP's own `patch_contents`: the last layer's, each standardised over its width.

    Args:
        clip: a `MicroClip`.
        language: a causal language model, possibly with LoRA.
        tokenizer: its tokenizer.
        merge: patches in a row that become one token.
        name: shown in tables.
        positions: see `MiniGPTSettings`.
    """
    tower: Any = clip.model.vision_model
    vision = CLIPVisionModel._from_config(copy.deepcopy(clip.model.config.vision_config), attn_implementation="eager")
    vision.load_state_dict(tower.state_dict())
    settings = MiniGPTSettings(merge=merge, standardise=True, positions=positions)
    return MiniGPT(vision, language, tokenizer, settings, name)
