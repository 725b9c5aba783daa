"""Micro-CLIP: a small image and text tower trained contrastively, and the frozen eye of every micro resampler.

It is transformers' `CLIPModel` at 2-4 million parameters. Positions are fixed by hand: nothing in
contrastive training on captions that tell no place rewards keeping them, and learned ones fade from the patch tokens;
so they are two-dimensional sines and cosines of the size of the patches' own content, and stay as they are.
`seewhere.models.position_probe` measures what comes through.

One thing is pooled otherwise than in CLIP: an image's embedding is the mean of its patches' embeddings, not the class
token's. So every patch has to say itself what it shows, and its token is worth reading.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig, PreTrainedTokenizerFast

from seewhere import boxes as frames
from seewhere.models.micro_text import CLS_ID, PAD_ID, SEP_ID, read_texts
from seewhere.models.world_pairs import pixels_of, square

TEXT_LENGTH = 64
WEIGHTS = Path(__file__).resolve().parents[1] / "weights"
NAME = "micro-clip"


def sine_cosine_positions(width: int, grid: int) -> Tensor:
    """Return fixed positions of a grid of patches, (grid * grid, width), row by row; each row has mean square 1.

    A quarter of the width each is sine and cosine of x and of y, with frequencies from one turn over twice the grid
    (monotonous over the picture) to one turn over two patches, in geometric steps.

    Raises:
        ValueError: the width is not a multiple of four.
    """
    if width % 4:
        raise ValueError(f"positions need a width that is a multiple of 4; got {width}")
    quarter = width // 4
    turns = torch.logspace(0, 1, quarter, base=grid) / (2 * grid)  # turns per patch
    angle = 2 * torch.pi * (torch.arange(grid)[:, None] + 0.5) * turns[None]  # (grid, quarter)
    axis = torch.cat([angle.sin(), angle.cos()], dim=1)  # (grid, width / 2)
    rows = axis[:, None].expand(grid, grid, -1)
    columns = axis[None].expand(grid, grid, -1)
    return torch.cat([columns, rows], dim=-1).reshape(grid * grid, width) * 2**0.5


def build_model(
    vocabulary: int,
    side: int = 128,
    patch: int = 16,
    width: int = 192,
    layers: int = 4,
    text_layers: int = 2,
    projection: int = 192,
    position_scale: float = 0.5,
) -> CLIPModel:
    """Return a randomly initialised micro-CLIP with fixed positions.

    Args:
        vocabulary: size of the tokenizer.
        side, patch: side of the square input and of its patches, pixels.
        width: width of both towers, a multiple of 64.
        layers, text_layers: number of layers of each.
        projection: width of the shared space.
        position_scale: root mean square of the positions; patch contents start at about 0.5.
    """
    heads = max(1, width // 64)
    vision = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        image_size=side,
        patch_size=patch,
        hidden_act="gelu",
    )
    text = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=text_layers,
        num_attention_heads=heads,
        max_position_embeddings=TEXT_LENGTH,
        hidden_act="gelu",
        pad_token_id=PAD_ID,
        bos_token_id=CLS_ID,
        eos_token_id=SEP_ID,
    )
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=projection)
    # Plain matrix products: at 65 tokens they train 1.8 times as fast on a processor as torch's fused attention.
    model = CLIPModel._from_config(config, attn_implementation="eager")
    embeddings = model.vision_model.embeddings
    with torch.no_grad():
        embeddings.position_embedding.weight.zero_()
        embeddings.position_embedding.weight[1:] = position_scale * sine_cosine_positions(width, side // patch)
    embeddings.position_embedding.weight.requires_grad_(False)
    return model


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """Return the symmetric loss (Radford et al. 2021) of normalised embeddings (B, D), pair i with i."""
    logits = scale * images @ texts.T
    target = torch.arange(len(logits), device=logits.device)
    return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2


def naming_loss(images: Tensor, names: Tensor, present: Tensor, scale: float) -> Tensor:
    """Return the loss of texts that name one thing, which are true of several pictures, and pictures of several texts.

    Softmax contrast in both directions with the mean over all that are true (supervised contrast, Khosla et al. 2020,
    eq. 2). Whole captions alone can be told apart without knowing each thing by itself.

    Args:
        images, names: normalised embeddings (B, D) and (C, D).
        present: (B, C) bool, whether text c is true of picture b.
        scale: inverse temperature.
    """
    logits, truth = scale * images @ names.T, present.float()
    total = images.new_zeros(())
    for axis in (0, 1):
        asked = truth.sum(axis)
        right = (logits.log_softmax(axis) * truth).sum(axis) / asked.clamp(min=1)
        total = total - right[asked > 0].mean()
    return total / 2


class MicroClip(nn.Module):
    """A micro-CLIP with its tokenizer.

    Args:
        model: see `build_model`.
        tokenizer: see `seewhere.models.micro_text`.
    """

    def __init__(self, model: CLIPModel, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer

    @classmethod
    def load(cls, source: str | Path = NAME) -> MicroClip:
        """Load from a folder, or by the name of a folder under ``seewhere/weights``; parameters are fp32 and frozen.

        Raises:
            FileNotFoundError: no such folder.
        """
        folder = shipped_folder(source, "seewhere train clip --out FOLDER")
        model = CLIPModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        return cls(model, tokenizer).eval().requires_grad_(False)

    def write(self, folder: Path) -> None:
        """Write fp16 weights, configuration and tokenizer into a folder that `load` and `CLIPModel` read."""
        state = {k: v.half() if v.is_floating_point() else v for k, v in self.model.state_dict().items()}
        self.model.save_pretrained(folder, state_dict=state)
        self.tokenizer.save_pretrained(folder)

    @property
    def side(self) -> int:
        """Side of the square input in pixels."""
        return int(self.model.vision_model.embeddings.image_size)

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.side // int(self.model.vision_model.embeddings.patch_size)

    @property
    def width(self) -> int:
        """Width of the patch tokens."""
        return int(self.model.vision_model.embeddings.embed_dim)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.model.parameters()).device

    def transform(self, size: tuple[int, int]) -> frames.ImageTransform:
        """How a picture of ``size`` (width, height) becomes the input, to map boxes there and back."""
        return frames.squash(size, (self.side, self.side))

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Return the input (N, 3, side, side) of pictures of any size and mode."""
        return torch.from_numpy(pixels_of(np.stack([square(image, self.side) for image in images])))

    def patch_contents(self, pixels: Tensor) -> Tensor:
        """Return the patches' states (N, grid * grid, width) after the last layer, row by row, standardised each.

        BLIP-2 has a layer norm there: what reads them needs no scale.
        """
        states = self.model.vision_model(pixel_values=pixels.to(self.device)).last_hidden_state[:, 1:]
        return functional.layer_norm(states.float(), (self.width,))

    def patch_tokens(self, pixels: Tensor) -> Tensor:
        """Return what a resampler reads, (N, grid * grid, width): `patch_contents` plus each patch's fixed position.

        Contrastive training lets place fade layer by layer (`seewhere.models.position_probe` shows how far), so it is
        added again in the size of the contents, as DETR's decoder and the Perceiver resampler read their images.
        """
        positions = self.model.vision_model.embeddings.position_embedding.weight[1:].float()
        return self.patch_contents(pixels) + positions / positions.square().mean().sqrt()

    def embed_pixels(self, pixels: Tensor) -> Tensor:
        """Return normalised image embeddings (N, projection) of inputs (N, 3, side, side)."""
        return functional.normalize(self.embed_patches(pixels).mean(dim=1).float(), dim=-1)

    def embed_patches(self, pixels: Tensor) -> Tensor:
        """Return each patch's own embedding (N, grid * grid, projection); the image's is their normalised mean."""
        eye = self.model.vision_model
        states = eye(pixel_values=pixels.to(self.device)).last_hidden_state[:, 1:]
        return self.model.visual_projection(eye.post_layernorm(states))

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Return normalised text embeddings (N, projection)."""
        pooled = self.text_states(texts)
        return functional.normalize(self.model.text_projection(pooled).float(), dim=-1)

    def text_states(self, texts: Sequence[str]) -> Tensor:
        """Return the text tower's state (N, width) at the end of each text."""
        ids, mask = read_texts(self.tokenizer, texts, TEXT_LENGTH)
        return self.model.text_model(input_ids=ids.to(self.device), attention_mask=mask.to(self.device)).pooler_output


def shipped_folder(source: str | Path, command: str) -> Path:
    """Return the folder of weights: a name under ``seewhere/weights`` or any folder with a config.json.

    Args:
        source: name or folder.
        command: what makes such weights, for the message.

    Raises:
        FileNotFoundError: neither.
    """
    for folder in (WEIGHTS / str(source), Path(source)):
        if (folder / "config.json").is_file():
            return folder
    raise FileNotFoundError(
        f"no weights {str(source)!r}: expected a name under {WEIGHTS} or a folder with config.json "
        f"(make one with: {command})"
    )


def with_article(name: str) -> str:
    """Return a category's name with "a" or "an"."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


@torch.no_grad()
def retrieval_recall(clip: MicroClip, images: np.ndarray, texts: Sequence[str], batch_size: int = 250) -> float:
    """Return image-to-text R@1 (0..1): the share of pictures whose own text is the nearest of all N texts.

    Args:
        clip: the model.
        images: (N, side, side, 3) uint8.
        texts: N texts, pair i with i. Equal texts count as one.
    """
    pictures, sentences = [], []
    for start in tqdm(range(0, len(texts), batch_size), desc="retrieval", leave=False, disable=len(texts) < 500):
        part = slice(start, start + batch_size)
        pictures.append(clip.embed_pixels(torch.from_numpy(pixels_of(images[part]))))
        sentences.append(clip.embed_texts(texts[part]))
    nearest = (torch.cat(pictures) @ torch.cat(sentences).T).argmax(dim=1).tolist()
    return float(np.mean([texts[k] == text for k, text in zip(nearest, texts, strict=True)]))


@torch.no_grad()
def zero_shot_scores(
    clip: MicroClip, images: np.ndarray, present: Sequence[set[str]], categories: Sequence[str], batch_size: int = 250
) -> dict[str, float]:
    """Return for each category how well "a picture of a ..." finds the pictures that show one: area under the ROC.

    0.5 is chance. Categories that all or none of the pictures show are left out.

    Args:
        clip: the model.
        images: (N, side, side, 3) uint8.
        present: the categories that each picture shows.
        categories: what to ask for.
    """
    asked = [f"a picture of {with_article(c)}" for c in categories]
    texts = clip.embed_texts(asked)
    parts = [
        clip.embed_pixels(torch.from_numpy(pixels_of(images[start : start + batch_size]))) @ texts.T
        for start in range(0, len(images), batch_size)
    ]
    scores = torch.cat(parts).cpu().numpy()
    found = {}
    for column, category in enumerate(categories):
        truth = np.array([category in names for names in present])
        if 0 < truth.sum() < len(truth):
            ranks = scores[:, column].argsort().argsort() + 1
            positives = int(truth.sum())
            wins = ranks[truth].sum() - positives * (positives + 1) / 2
            found[category] = float(wins / (positives * (len(truth) - positives)))
    return found
