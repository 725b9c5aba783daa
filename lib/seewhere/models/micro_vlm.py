"""The micro vision-language model: micro-CLIP, one linear layer, and the micro language model with three layers more.

It is MiniGPT-v2's layout (`seewhere.models.minigpt`) with three changes that its size asks for:

* **No merging of tokens.** The paper lays four tokens of 1408 side by side for a language model of 4096: 1.4 numbers
  into one. Four of micro-CLIP's 192 into one of 192 would be four into one, and a patch alone covers 8 x 8 cells of
  three colours. One token each keeps the paper's proportion, and 64 tokens cost little.
* **Tokens that are whole numbers with what stands beside them.** ``loc: [12,`` and ``7] rgb:`` are one token each, and
  so are ``[34,``, ``5,`` and ``250]``: a question for a colour with its answer is five tokens, of which three carry
  something to learn. The text is the paper's.

* **Places are added behind the connector.** Micro-CLIP learnt from captions that tell no place, and a linear layer
  finds the column of a patch in fewer than half of its tokens. So each of the 64 places has a vector of its own.

The first values are partly set by hand, see `seewhere.models.micro_vlm_start`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from seewhere.models import micro_vlm_start
from seewhere.models.micro_clip import MicroClip, shipped_folder
from seewhere.models.micro_language_start import value_features
from seewhere.models.minigpt import MiniGPT, micro_minigpt
from seewhere.models.packed_folders import plain
from seewhere.models.world_pairs import pixels_of

LANGUAGE = "micro-lm"
GRID = 64
READING = micro_vlm_start.LAYERS
"""How many layers stand in front of the micro language model's own, to find a place."""
VALUES = 256
PHRASES = (
    "<Img>",
    "</Img>",
    " [reconstruct]",
    " [segmentation]",
    " [refer] give me the location of",
    " [identify] what is this ",
    " [caption] briefly describe this image",
    " [vqa]",
)
"""Text that stands unchanged in every prompt of a task."""
XS = tuple(f" loc: [{x}," for x in range(GRID))
COLOUR_YS = tuple(f"{y}] rgb:" for y in range(GRID))
MASK_YS = tuple(f"{y}] mask:" for y in range(GRID))
COLOURS = tuple(
    tuple(f"{opening}{v}{closing}" for v in range(VALUES)) for opening, closing in (("[", ","), ("", ","), ("", "]"))
)
CORNERS = tuple(f"<{share}>" for share in range(101))


def new_tokens() -> list[str]:
    """Everything that the micro language model's tokenizer learns to read as one token, in the order of the ids."""
    return [*PHRASES, *XS, *COLOUR_YS, *MASK_YS, *(text for channel in COLOURS for text in channel), *CORNERS]


def extended_tokenizer(source: str = LANGUAGE) -> Any:
    """The micro language model's tokenizer with `new_tokens`."""
    tokenizer = AutoTokenizer.from_pretrained(shipped_folder(source, "seewhere train language --out FOLDER"))
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in new_tokens()])
    return tokenizer


def token_ids(tokenizer: Any, texts: Sequence[str]) -> torch.Tensor:
    """Ids of texts that are one token each.

    Raises:
        ValueError: one of them is not.
    """
    found = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    for text, ids in zip(texts, found, strict=True):
        if len(ids) != 1:
            raise ValueError(f"expected {text!r} to be one token of this tokenizer, it is {len(ids)}")
    return torch.tensor([ids[0] for ids in found])


def build(
    clip: MicroClip, pictures: np.ndarray, seed: int = 0, language: str = LANGUAGE, quiet: bool = False
) -> MiniGPT:
    """The untrained micro vision-language model.

    Args:
        clip: the encoder, copied.
        pictures: (N, side, side, 3) uint8, some to fit the connector on.
        seed: of what is drawn at random.
        language: name or folder of a micro language model.
        quiet: see `micro_vlm_start.new_layers`.
    """
    tokenizer = extended_tokenizer(language)
    folder = plain(shipped_folder(language, "seewhere train language --out FOLDER"))
    base: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        side = round(GRID**0.5)
        room = micro_vlm_start.Room.of(base.get_input_embeddings().weight, side)
        model = micro_minigpt(clip, _with_layers(base, tokenizer, room, quiet), tokenizer, 1, "micro-pixels", True)
        if model.grid != side:
            raise ValueError(f"the encoder has {model.grid} patches a side; the wiring is made for {side}")
        tokens = torch.cat([model.patch_tokens(torch.from_numpy(pixels_of(part))) for part in _parts(pictures)])
        targets = torch.from_numpy(np.concatenate([cells(part, GRID) for part in _parts(pictures)]))
        weight, bias = micro_vlm_start.fit_connector(room, tokens, targets)
        connector: Any = model.connector
        connector.weight.copy_(weight)
        connector.bias.copy_(bias)
        connector.positions.copy_(micro_vlm_start.positions(room))
    return model


def cells(pictures: np.ndarray, grid: int) -> np.ndarray:
    """Mean colours (N, grid, grid, 3) float32, 0..255, of the cells of square pictures (N, S, S, 3), S = k * grid."""
    step = pictures.shape[1] // grid
    return pictures.reshape(len(pictures), grid, step, grid, step, 3).mean(axis=(2, 4), dtype=np.float32)


def _parts(pictures: np.ndarray, size: int = 100) -> list[np.ndarray]:
    return [np.asarray(pictures[start : start + size]) for start in range(0, len(pictures), size)]


def _with_layers(base: Any, tokenizer: Any, room: micro_vlm_start.Room, quiet: bool) -> Any:
    """The language model with three wired layers in front and embeddings for the new tokens."""
    config = copy.deepcopy(base.config)
    config.num_hidden_layers += micro_vlm_start.LAYERS
    old = base.get_input_embeddings().weight
    config.vocab_size = len(tokenizer)
    layer_types = getattr(config, "layer_types", None)
    if layer_types:
        config.layer_types = [layer_types[0]] * config.num_hidden_layers
    model: Any = LlamaForCausalLM(config)
    model.model.norm.load_state_dict(base.model.norm.state_dict())
    for target, layer in zip(model.model.layers[micro_vlm_start.LAYERS :], base.model.layers, strict=True):
        target.load_state_dict(layer.state_dict())
    for target, layer in zip(model.model.layers, micro_vlm_start.new_layers(base, room, quiet=quiet), strict=False):
        target.load_state_dict(layer.state_dict())
    embeddings = model.get_input_embeddings().weight
    embeddings[: len(old)] = old
    embeddings[len(old) :] = old.std() * torch.randn(len(tokenizer) - len(old), old.shape[1])
    _set_embeddings(embeddings, tokenizer, room)
    return model


def _set_embeddings(embeddings: torch.Tensor, tokenizer: Any, room: micro_vlm_start.Room) -> None:
    for texts, role in ((XS, "x"), (COLOUR_YS, "colour"), (MASK_YS, "mask")):
        embeddings[token_ids(tokenizer, texts)] = micro_vlm_start.tokens_of_places(room, role)
    codes = micro_vlm_start.tokens_of_colours(room)
    for channel, texts in enumerate(COLOURS):
        embeddings[token_ids(tokenizer, texts)] = codes[channel]
    # Shares of a side start as smooth functions of their value, as the language model's own numbers once did.
    size = len(room.content) // 2
    features = torch.stack([value_features(share, size) for share in range(len(CORNERS))])
    embeddings[token_ids(tokenizer, CORNERS)] = features @ room.content[-size:]
    # A task's phrase says nothing about a place.
    phrases = token_ids(tokenizer, PHRASES)
    kept = torch.cat([room.place, room.patch, room.constant, room.slots, room.value])
    embeddings[phrases] -= embeddings[phrases] @ kept.T @ kept
