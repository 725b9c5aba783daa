"""Where the micro language model starts: not at random, but as a rough choice from a list of boxes.

From a random start a Llama of this size and lists of boxes as text stay at chance for tens of thousands of examples:
looking up a label needs layers that work together and none is rewarded alone. So it starts where a training would
sooner or later arrive, with parts known from trained transformers (heads that look back, heads that match), and the
training goes on from there. Random starts of that kind are known as "mimetic" (Trockman and Kolter 2023). Nothing is
held fixed: `prepare` only sets first values.

* Embeddings: the writings of a word (``dog``, `` dog``, ``dogs``) start out alike, numbers as smooth functions of
  their value, words of place and size as directions.
* Layers 0 to 3: see `wire_choice`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import LlamaAttention

from seewhere.world.language import SYNONYMS, plural

ROPE_THETA = 1e6
_FAST = 5  # rotary pairs of a head that turn fast enough to tell neighbours apart; the others compare content
LARGEST_NUMBER = 999  # numbers up to here are one token
# Words that start out as a direction: along x, along y, in size.
_DIRECTIONS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("left", "leftmost"), ("right", "rightmost")),
    (("top", "above", "highest", "higher"), ("bottom", "below", "lowest", "lower")),
    (("small", "smallest", "smaller", "tiny", "little"), ("big", "biggest", "large", "largest", "larger")),
)


def forms(names: Iterable[str]) -> dict[str, list[str]]:
    """Return each category's writings: its name, its synonyms and their plurals, without a space before them."""
    return {
        name: [form for noun in (name, *SYNONYMS.get(name, ())) for form in dict.fromkeys((noun, plural(noun)))]
        for name in names
    }


def prepare(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, names: Sequence[str] = ()) -> None:
    """Set a new model's embeddings and attention to their first values, in place.

    Args:
        model: a Llama with biases in its attention, of any depth; with fewer than four layers or heads that leave no
            room, only the embeddings are set.
        tokenizer: its tokenizer.
        names: category names whose writings start out alike.

    Raises:
        ValueError: too narrow for the parts that a box is made of.
    """
    hidden = model.config.hidden_size
    if hidden < 64:
        raise ValueError(f"hidden={hidden}: expected a width of at least 64, so that every part of a box has a place")
    codes = _Codes.draw(hidden)
    model.model.embed_tokens.weight.copy_(first_embeddings(tokenizer, hidden, names, codes.axes))
    wire_choice(model, codes)


def first_embeddings(
    tokenizer: PreTrainedTokenizerFast, hidden: int, names: Sequence[str] = (), axes: torch.Tensor | None = None
) -> torch.Tensor:
    """Return embeddings (V, hidden) in which related tokens start out alike.

    They fill the first half of the width, with entries of size about 1; the other half is left for what the first
    layer collects. Only names of categories use the first third of that half, so whatever is found there is what a
    text speaks of; the last third of a number is a smooth function of its value. Words of place and size start out on
    `axes` (3, hidden), which all others leave free.
    """
    half, third = hidden // 2, hidden // 6

    def draw(first: int, last: int, count: int = 1) -> torch.Tensor:
        return torch.nn.functional.pad(torch.randn(count, last - first), (first, hidden - last)).squeeze(0)

    def token_of(text: str) -> int | None:
        ids = tokenizer.encode(text, add_special_tokens=False)
        return ids[0] if len(ids) == 1 else None

    vectors = draw(third, half, len(tokenizer))
    in_plural, with_space, with_comma = (draw(third, half) for _ in range(3))
    for name, writings in forms(names).items():
        base = draw(0, third) + 0.6 * draw(third, half)
        for word in writings:
            if (number := token_of(word)) is not None:
                vectors[number] = base + (0.4 * in_plural if word != name else 0.0) + 0.1 * draw(0, half)
    vocabulary = tokenizer.get_vocab()
    for token, number in sorted(vocabulary.items()):
        if token.startswith("\u0120") and token[1:] in vocabulary:
            vectors[number] = vectors[vocabulary[token[1:]]] + 0.3 * with_space + 0.1 * draw(0, half)
    for value in range(LARGEST_NUMBER + 1):
        plain, comma = token_of(str(value)), token_of(f"{value}, ")
        if plain is not None:
            vectors[plain, half - third : half] = value_features(value, third)
        if plain is not None and comma is not None:
            vectors[comma] = vectors[plain] + 0.3 * with_comma
    if axes is not None:
        vectors -= vectors @ axes.T @ axes
        for axis, ends in zip(axes, _DIRECTIONS, strict=True):
            for sign, words in zip((-3, 3), ends, strict=True):
                for number in filter(None, (token_of(space + word) for word in words for space in ("", " "))):
                    vectors[number] += sign * axis
    return vectors


def value_features(value: int, size: int) -> torch.Tensor:
    """Return `size` smooth features of a number: a quarter linear in it, the rest waves of period 400 down to 8."""
    linear = size // 4
    waves = (size - linear) // 2
    angles = value * 2 * math.pi / 400 * 50 ** torch.linspace(0, 1, waves)
    features = torch.cat([torch.full((linear,), min(value, 150) / 30 - 1.7), angles.sin() * 1.4, angles.cos() * 1.4])
    return torch.nn.functional.pad(features, (0, size - len(features)))


# A box is written in nine tokens; counted back from the one that closes it: y2, x2, y1, x1, label, index.
_BACK = (1, 2, 3, 4, 6, 8)
_LABEL, _INDEX = 4, 5  # places in _BACK


def look_back(
    attention: LlamaAttention,
    head: int,
    distance: int,
    strength: float = 6.0,
    pairs: Sequence[int] = tuple(range(_FAST)),
) -> None:
    """Make a head start out attending to the token `distance` places before, whatever the tokens are.

    Rotary positions turn query and key biases into a fixed preference for a distance: a query bias that is ahead of
    the key bias by the rotation of `distance` steps meets it there and nowhere else. Fast `pairs` make the preference
    sharp, slower ones wide.
    """
    size = attention.head_dim
    half, used = size // 2, torch.tensor(pairs)
    angles = distance * ROPE_THETA ** (-used / half)
    for projection, first, second in (
        (attention.k_proj, torch.ones(len(used)), torch.zeros(len(used))),
        (attention.q_proj, angles.cos(), -angles.sin()),
    ):
        projection.bias[head * size + used] = strength * first
        projection.bias[head * size + half + used] = strength * second


def _directions(count: int, first: int, last: int, hidden: int) -> torch.Tensor:
    """Return random orthonormal rows (count, hidden) within a part of the width."""
    rows = torch.linalg.qr(torch.randn(last - first, count))[0].T
    return torch.nn.functional.pad(rows, (first, hidden - last))


@dataclass(frozen=True, slots=True)
class _Codes:
    """Where a box's parts are read from embeddings and written by the first layer; rows are (count, hidden).

    The parts stand in the order of `_BACK`. Row 0 of a number's code is linear in the number. Nothing else is read from
    the axes, or written to them, than what words of place and size say.
    """

    reads: list[torch.Tensor]
    writes: list[torch.Tensor]
    axes: torch.Tensor

    @classmethod
    def draw(cls, hidden: int) -> _Codes:
        """Draw codes: each is read from the third of the embeddings' half that `first_embeddings` gives it."""
        half, third = hidden // 2, hidden // 6
        widths = [half // 8] * 4 + [half // 4] * 2
        smooth = half - third
        linear = torch.zeros(hidden)
        linear[smooth : smooth + third // 4] = 1
        index, axes = _directions(widths[5] + len(_DIRECTIONS), third, smooth, hidden).split(
            [widths[5], len(_DIRECTIONS)]
        )
        reads = [_directions(widths[4], 0, third, hidden), index]
        for width in widths[:4][::-1]:
            rows = torch.cat([linear[None], _directions(width - 1, smooth, half, hidden)])
            reads.insert(0, torch.linalg.qr(rows.T)[0].T * torch.sign(torch.linalg.qr(rows.T)[1].diag())[:, None])
        return cls(reads, list(_directions(sum(widths), half, hidden, hidden).split(widths)), axes)


def wire_choice(model: LlamaForCausalLM, codes: _Codes) -> None:
    """Start the first four layers as a choice from a list of boxes; training changes all of it.

    Layer 0 looks back: the token that closes a box collects its numbers, label and index, each in a part of the width
    of its own. Layer 1 compares: a word meets the boxes whose collected label it is and takes over their index, an
    index meets its box and takes over the label. Layer 2 gathers what a question's words are and have met in its last
    token. From layer 3 on that token meets boxes by their label, and by how far they lie along the `axes` (x, y, size)
    of the words.
    Compare "mimetic" initialisation (Trockman and Kolter 2023).
    """
    layers, hidden = [layer.self_attn for layer in model.model.layers], model.config.hidden_size
    if hidden // layers[0].head_dim < len(_BACK) or len(layers) < 4:
        return  # too small for it
    for head, distance in enumerate(_BACK):
        look_back(layers[0], head, distance)
        _carry(layers[0], head, codes.reads[head], codes.writes[head])
    for head, (key, value) in enumerate([(_LABEL, _INDEX), (_INDEX, _LABEL), (_LABEL, None), (_INDEX, None)]):
        _match(layers[1], head, codes, key)
        _take(layers[1], head, codes, value)
    for head, value in enumerate((_INDEX, _LABEL, None, None)):
        look_back(layers[2], head, 5, strength=3.5, pairs=(2, 3, 4))
        if head == 2:
            _carry(layers[2], head, codes.axes, 8.0 * codes.axes)
        elif value is None:
            _take(layers[2], head, codes, None, strength=4.0)
        else:
            _carry(layers[2], head, 1.5 * codes.reads[value], (4.0 if value == _LABEL else 1.5) * codes.reads[value])
    for layer in layers[3:]:
        for head, value in enumerate((_INDEX, _INDEX, _INDEX, None)):
            _match(layer, head, codes, _LABEL, places=True)
            _take(layer, head, codes, value)


def _carry(attention: LlamaAttention, head: int, read: torch.Tensor, write: torch.Tensor) -> None:
    """Let a head read its values through `read` and write them through `write`, (count, hidden) both."""
    part = slice(head * attention.head_dim, head * attention.head_dim + len(read))
    attention.v_proj.weight[part] = read
    attention.o_proj.weight[:, part] = write.T


def _take(attention: LlamaAttention, head: int, codes: _Codes, value: int | None, strength: float = 1.0) -> None:
    """Let a head bring home the token that a collected code stands for, or (None) a bit of everything."""
    size, hidden = attention.head_dim, attention.o_proj.out_features
    if value is None:
        read, write = _directions(size, 0, hidden, hidden), _directions(size, 0, hidden, hidden)
        _carry(attention, head, read, strength * (write - write @ codes.axes.T @ codes.axes))
    else:
        _carry(attention, head, codes.writes[value], codes.reads[value])


def _match(attention: LlamaAttention, head: int, codes: _Codes, part: int, places: bool = False) -> None:
    """Let a head attend to boxes whose collected `part` is the asking token's word, or was gathered by it.

    Only rotary pairs that hardly turn take part. With `places`, four of them compare where a box is and how large with
    the directions that were gathered.
    """
    size, hidden = attention.head_dim, attention.q_proj.in_features
    half, start = size // 2, head * size
    rows = [*range(_FAST, half), *range(half + _FAST, size)]
    chosen = slice(start, start + size)
    attention.q_proj.weight[chosen], attention.k_proj.weight[chosen] = 0.0, 0.0
    if places:
        x1, y1, x2, y2 = (codes.writes[_BACK.index(distance)][0] for distance in (4, 3, 2, 1))
        slowest = [start + row for row in range(half - 4, half)]
        attention.k_proj.weight[slowest] = 3.0 * torch.stack([x1 + x2, y1 + y2, x2 - x1, y2 - y1])
        attention.q_proj.weight[slowest] = codes.axes[[0, 1, 2, 2]] + 0.02 * torch.randn(4, hidden)
        rows = [row for row in rows if row not in range(half - 4, half)]
    rows = [start + row for row in rows][: len(codes.reads[part])]
    attention.q_proj.weight[rows] = 1.6 * codes.reads[part][: len(rows)]
    attention.k_proj.weight[rows] = 1.6 * codes.writes[part][: len(rows)]
