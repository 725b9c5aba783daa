"""Where the micro vision-language model starts to read places: with the look-up wired, not with what is to be seen.

A Transformer of this size finds out late and slowly which of an image's tokens a question's coordinates mean. So three
layers are put in front of the micro language model, whose values spell that out and are held until late in training;
the micro language model's own layers follow and are trained.

* *Look back*: the tokens from which an answer is predicted collect the two coordinates.
* *Fetch*: they meet the image's token in that column and row of patches and take over what it holds.
* *Read off*: each cell within a patch has a unit that opens for its own column, row and colour channel and reads that
  colour as a weighted sum of what was fetched; in the third layer the sum becomes a number's token.

What an image's token holds is up to the encoder and the connector: `fit_connector` starts the connector as the least
squares from the *frozen* encoder's tokens to the patch's two-dimensional cosines. The model's words move
in other directions of the width: those in which embeddings of text have the least energy are taken for places.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from seewhere.models.micro_language_start import look_back

LAYERS = 3
AMPLITUDE = 5.0  # of every direction that says where, or which channel
_STEEP = 3.0  # of the units that open for a cell
_THRESHOLDS = 96  # pieces of the line that turns a sum into a number
# Orthonormal: brightness, blue against yellow, red against green.
_OPPONENT = ((3**-0.5, 3**-0.5, 3**-0.5), (-(6**-0.5), -(6**-0.5), 2 * 6**-0.5), (2**-0.5, -(2**-0.5), 0.0))


@dataclass(frozen=True, slots=True)
class Room:
    """Directions of the width, orthonormal rows: what is kept where.

    For n patches a side and n cells a side of a patch: `place` (4 n, D) of what is asked (column of the patch, column
    in it, row of the patch, row in it); `patch` (2 n, D), column and row of an image's token; `constant` (1, D);
    `slots` (3, D), red, green or blue is asked for; `value` (2, D), a colour as a number; `answer` (2, A, D), a colour
    as a token, the second of each being green's; `content` (C, D), of an image's patch.
    """

    place: torch.Tensor
    patch: torch.Tensor
    constant: torch.Tensor
    slots: torch.Tensor
    value: torch.Tensor
    answer: torch.Tensor
    content: torch.Tensor

    @classmethod
    def of(cls, embeddings: torch.Tensor, side: int) -> Room:
        """Divide the width of embeddings (V, D) for `side` patches a side, of `side` cells a side.

        Raises:
            ValueError: too narrow.
        """
        width = embeddings.shape[1]
        answer = width // 9
        sizes = [4 * side, 2 * side, 1, 3, 2, 2 * answer]
        if width < 2 * sum(sizes):
            raise ValueError(f"a width of {width} has no room for {side} patches a side; expected {2 * sum(sizes)}")
        rows = torch.linalg.eigh(embeddings.double().T @ embeddings.double())[1].T.float()  # least energy first
        place, patch, constant, slots, value, answers, content = rows.split([*sizes, width - sum(sizes)])
        return cls(place, patch, constant, slots, value, answers.view(2, answer, width), content)

    @property
    def side(self) -> int:
        """Patches a side."""
        return len(self.place) // 4

    def places(self, axis: int) -> torch.Tensor:
        """Embeddings (n * n, D) of the coordinates along an axis: 0 is x, 1 is y."""
        n = self.side
        rows = self.place[2 * axis * n : 2 * (axis + 1) * n]
        at = torch.arange(n * n)
        return AMPLITUDE * (rows[at // n] + rows[n + at % n])


def value_codes(size: int, values: int = 256) -> torch.Tensor:
    """Smooth codes (values, size) of the numbers from 0, of norm about 1: waves from a long to a short period."""
    waves = size // 2
    angles = torch.arange(values)[:, None] * torch.logspace(math.log10(0.0075), math.log10(0.4), waves)
    return functional.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, size - 2 * waves)) / waves**0.5


def cosines(side: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What of a patch is kept first: weights (count, 3, side, side) of orthonormal sums over channel, row and column.

    Products of a colour direction and two cosines; low frequencies first, brightness before colour. With them the size
    (count,) that such a sum typically has in a picture, for colours in -1..1.
    """
    cells = (torch.arange(side) + 0.5) / side
    waves = torch.stack([(math.pi * k * cells).cos() * ((1 if k == 0 else 2) / side) ** 0.5 for k in range(side)])
    order = [
        ((1 if colour == 0 else 1.7) * (1 + math.hypot(u, v)), colour, u, v)
        for colour in range(3)
        for u in range(side)
        for v in range(side)
    ]
    chosen = sorted(order)[:count]
    opponent = torch.tensor(_OPPONENT)
    weights = [opponent[colour][:, None, None] * torch.outer(waves[v], waves[u]) for _, colour, u, v in chosen]
    return torch.stack(weights), torch.tensor([side / cost**1.2 for cost, *_ in chosen])


# ---------------------------------------------------------------------------------------------------- the layers


def new_layers(model: Any, room: Room, blank: bool = False, quiet: bool = False) -> list[LlamaDecoderLayer]:
    """The three layers, wired for a model of the same shape (which is not changed).

    Args:
        model: Llama of the shape.
        room: directions to wire them along.
        blank: what is not wired is zero. By default it is drawn at random behind zeros, so that it can be learnt.
        quiet: the third layer leaves an image's tokens alone, until training changes that. Otherwise it adds a number
            to these too, asked or not, and much larger than what they hold: the answers' tokens never look at that, but
            later layers have to look past it where they compare the image's tokens with words.

    Raises:
        ValueError: a model whose layers are too small for the wiring.
    """
    config, side = model.config, room.side
    head, heads = config.hidden_size // config.num_attention_heads, config.num_attention_heads
    needed = max(3 * side * side, 2 * _THRESHOLDS + 2)
    if heads < 4 or head < len(room.place) or head * heads < len(room.content) or config.intermediate_size < needed:
        raise ValueError(
            f"heads {heads} of {head} and {config.intermediate_size} inner units; expected at least 4 heads of "
            f"{len(room.place)} with {len(room.content)} in all, and {needed} inner units"
        )
    layers = [LlamaDecoderLayer(config, i) for i in range(LAYERS)]
    for layer in layers:
        for name, weight in layer.named_parameters():
            ends = ("o_proj.weight", "down_proj.weight", "bias")
            if name.endswith(ends) or (blank and weight.ndim > 1):
                weight.data.zero_()
    with torch.no_grad():
        _wire_look_back(layers[0], room)
        _wire_fetch(layers[1], room, heads)
        _wire_cells(layers[1], room)
        _wire_numbers(layers[2], room, quiet)
    return layers


def _norms(room: Room) -> tuple[torch.Tensor, float]:
    """How much the norm in front of a layer stretches the tokens that ask for red, green, blue (3,), and an image's."""
    width, one = room.place.shape[1], AMPLITUDE**2
    asking = torch.tensor([6 * one, 6 * one + CODE**2, 6 * one + CODE**2]) + CONTENT**2
    return (width / asking).sqrt(), (width / (4 * one + CONTENT**2)) ** 0.5


CODE, CONTENT = 2.0, 5.0
"""Norm of a colour's embedding beside its place, and typical norm of what an image's token holds."""


def _wire_look_back(layer: LlamaDecoderLayer, room: Room) -> None:
    """Heads that look one, two and three tokens back and copy coordinates, and nothing else."""
    attention, size = layer.self_attn, layer.self_attn.head_dim
    stretch = (room.place.shape[1] / (4 * AMPLITUDE**2)) ** 0.5
    for head, distance in enumerate((1, 2, 3)):
        look_back(attention, head, distance, strength=8.0)
        part = slice(head * size, head * size + len(room.place))
        attention.q_proj.weight[head * size : (head + 1) * size] = 0
        attention.k_proj.weight[head * size : (head + 1) * size] = 0
        attention.v_proj.weight[part] = room.place
        attention.o_proj.weight[:, part] = room.place.T / stretch


def _wire_fetch(layer: LlamaDecoderLayer, room: Room, heads: int) -> None:
    """Heads that meet the image's token of the same column and row, and share out what it holds."""
    attention, size, n = layer.self_attn, layer.self_attn.head_dim, room.side
    asked = torch.cat([room.place[:n], room.place[2 * n : 3 * n]])
    # Slow rotary pairs only: these hardly turn within a text.
    pairs = size // 2 - n
    rows = torch.tensor([*range(pairs, size // 2), *range(size // 2 + pairs, size)])
    shares = torch.arange(len(room.content)).tensor_split(heads)
    _, stretch = _norms(room)
    for head, share in enumerate(shares):
        attention.q_proj.weight[head * size : (head + 1) * size] = 0
        attention.k_proj.weight[head * size : (head + 1) * size] = 0
        attention.q_proj.weight[head * size + rows] = 1.5 * asked
        attention.k_proj.weight[head * size + rows] = 1.5 * room.patch
        part = slice(head * size, head * size + len(share))
        attention.v_proj.weight[part] = room.content[share]
        attention.o_proj.weight[:, part] = room.content[share].T / stretch


def _wire_cells(layer: LlamaDecoderLayer, room: Room) -> None:
    """Units that open for one cell of the patch and one channel, and read that colour off what was fetched."""
    n, mlp = room.side, layer.mlp
    weights, sizes = cosines(n, len(room.content))
    scale = content_scale(sizes)
    asking, _ = _norms(room)
    columns, rows = room.place[n : 2 * n], room.place[3 * n :]
    unit = 0
    for channel in range(3):
        # Open where column, row and channel agree: the constant stands against any two of them alone.
        opened = _STEEP * 0.5 * asking[channel] * AMPLITUDE
        for row in range(n):
            for column in range(n):
                told = columns[column] + rows[row] + room.slots[channel] - 2.5 * room.constant[0]
                mlp.gate_proj.weight[unit] = _STEEP * told
                read = (weights[:, channel, row, column] / scale) @ room.content
                mlp.up_proj.weight[unit] = read / asking[channel]
                mlp.down_proj.weight[:, unit] = AMPLITUDE * room.value[channel % 2] / opened
                unit += 1


def content_scale(sizes: torch.Tensor) -> torch.Tensor:
    """What sums of these typical sizes are multiplied by, to have the norm `CONTENT` together."""
    flattened = sizes**-0.5  # the large ones stay larger, but not by as much
    return flattened * 2.5 * CONTENT / (sizes * flattened).norm()


def _wire_numbers(layer: LlamaDecoderLayer, room: Room, quiet: bool) -> None:
    """Units along the line from 0 to 255, whose sum is the code of the number that was read."""
    mlp, size = layer.mlp, room.answer.shape[1]
    at = torch.linspace(-1.15, 1.15, _THRESHOLDS)
    codes = value_codes(size)
    where = torch.linspace(-1, 1, 256)
    given = torch.cat([torch.linspace(-1.3, -1, 64), where, torch.linspace(1, 1.3, 64)])
    codes = codes[((given.clamp(-1, 1) + 1) * 127.5).round().long()]  # beyond the ends it stays
    asking, _ = _norms(room)
    steep = 8.0
    for parity in (0, 1):
        stretch = float(asking[parity])
        gates = functional.silu(steep * stretch * AMPLITUDE * (given[:, None] - at)) * stretch * AMPLITUDE
        gates = torch.cat([gates, torch.full((len(gates), 1), stretch * AMPLITUDE) * 1.0], dim=1).double()
        always = functional.silu(torch.tensor(steep * stretch * AMPLITUDE))
        gates[:, -1] *= float(always)
        system = gates.T @ gates + 1e-3 * torch.eye(gates.shape[1], dtype=torch.float64) * gates.square().mean()
        found = torch.linalg.solve(system, gates.T @ codes.double()).float()  # (thresholds + 1, size)
        first = parity * (_THRESHOLDS + 1)
        rows = slice(first, first + _THRESHOLDS + 1)
        mlp.gate_proj.weight[rows] = steep * torch.cat(
            [room.value[parity] - at[:, None] * room.constant, room.constant]
        )
        # An image's token holds the constant sqrt(2) times, and its column and row: together they close the unit.
        mlp.up_proj.weight[rows] = room.constant - quiet * room.patch.sum(0) / 2**0.5
        mlp.down_proj.weight[:, rows] = 48 * CODE * (found @ room.answer[parity]).T


# -------------------------------------------------------------------------------------------------- the connector


def patch_content(pictures: torch.Tensor, side: int, count: int) -> torch.Tensor:
    """What the wiring expects of patches: (B, side * side, count) of pictures (B, G, G, 3), colours 0..255."""
    weights, sizes = cosines(side, count)
    batch = len(pictures)
    patches = pictures.view(batch, side, side, side, side, 3) / 127.5 - 1  # patch row, row, patch column, column
    sums = torch.einsum("bpyqxc,kcyx->bpqk", patches.float(), weights)
    return (sums * content_scale(sizes)).reshape(batch, side * side, count)


def fit_connector(
    room: Room, tokens: torch.Tensor, pictures: torch.Tensor, ridge: float = 1e-3
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight (D, W) and bias (D,) that come closest to what the wiring expects of a patch's content.

    Args:
        room: see `Room`.
        tokens: the frozen encoder's, (B, n * n, W).
        pictures: what they are of, (B, n * n, n * n, 3), colours 0..255.
        ridge: share of the tokens' mean square that is added to each.
    """
    wanted = patch_content(pictures, room.side, len(room.content)).flatten(0, 1).double()
    given = functional.pad(tokens.flatten(0, 1).double(), (0, 1), value=1.0)
    system = given.T @ given
    system += ridge * len(given) * torch.eye(len(system), dtype=torch.float64)
    found = torch.linalg.solve(system, given.T @ wanted).float()  # (W + 1, C)
    bias = found[-1] @ room.content + 2**0.5 * AMPLITUDE * room.constant[0]
    return (room.content.T @ found[:-1].T).contiguous(), bias


def positions(room: Room) -> torch.Tensor:
    """What is added to an image's tokens, (n * n, D): column and row."""
    one_hot, n = torch.eye(room.side), room.side
    place = torch.cat([one_hot.repeat(n, 1), one_hot.repeat_interleave(n, 0)], dim=1)
    return AMPLITUDE * place @ room.patch


def tokens_of_places(room: Room, role: str) -> torch.Tensor:
    """Embeddings (n * n, D) of coordinates, by what they stand in: "x", "colour" (y, red is next), "mask" (y)."""
    if role == "x":
        return room.places(0) + AMPLITUDE * 2**0.5 * room.constant
    slot = AMPLITUDE * room.slots[0] if role == "colour" else 0.0
    return room.places(1) + AMPLITUDE * room.constant + slot


def tokens_of_colours(room: Room) -> torch.Tensor:
    """Embeddings (3, 256, D) of the numbers of a colour; each but the last says which channel comes next."""
    codes = CODE * value_codes(room.answer.shape[1])
    found = torch.stack([codes @ room.answer[channel % 2] for channel in range(3)])
    for channel in (0, 1):
        found[channel] += AMPLITUDE * (room.constant[0] + room.slots[channel + 1])
    return found
