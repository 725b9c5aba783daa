"""Micro-BLIP-2: a small Q-Former on the frozen micro-CLIP, with BLIP-2's three objectives of stage 1.

The parts are transformers' own (`Blip2QFormerModel`, `Blip2TextEmbeddings`) under the names they have in
`Blip2ForImageTextRetrieval`, and a head for generation, which that class lacks. One set of weights is asked in three
ways, told apart by the attention mask alone (Li et al. 2023, section 3.1):

- contrast (ITC): queries and text do not see each other;
- match (ITM): everything sees everything;
- generate (ITG): queries see queries; text sees the queries and the text before it.

Under the mask of generation the queries see no text, so one pass serves ITC's image side and ITG.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Blip2QFormerConfig, Blip2QFormerModel
from transformers.models.blip_2.modeling_blip_2 import Blip2TextEmbeddings

from seewhere.models.micro_text import DEC_ID, PAD_ID

MASKS = ("contrast", "match", "generate")
BLOCKED = -30_000.0  # added to a score; far below any real one, and still a number in half precision
TEXT_LENGTH = 48
POSITIVE = ("true", "caption")  # kinds of statements that match (see `MatchingWeights`)


@dataclass(frozen=True, slots=True)
class QFormerSettings:
    """Shape of a Q-Former. ``sees`` is the width of the image tokens; ``projection`` that of the shared space."""

    vocabulary: int = 1536
    sees: int = 192
    width: int = 192
    layers: int = 4
    heads: int = 6
    queries: int = 16
    cross_attention_frequency: int = 1
    projection: int = 128


def attention_mask(kind: str, text_mask: Tensor, queries: int) -> Tensor:
    """Return the additive mask (B, 1, L, L) of ``queries`` query tokens followed by text; 0 where row may see column.

    Args:
        kind: one of `MASKS`.
        text_mask: (B, T), 1 for real tokens, 0 for padding.
        queries: number of query tokens; L = queries + T.

    Raises:
        ValueError: unknown kind.
    """
    if kind not in MASKS:
        raise ValueError(f"unknown mask {kind!r}; expected one of {MASKS}")
    count, length = text_mask.shape
    allowed = torch.ones(count, queries + length, queries + length, dtype=torch.bool, device=text_mask.device)
    if kind != "match":
        allowed[:, :queries, queries:] = False
    if kind == "contrast":
        allowed[:, queries:, :queries] = False
    if kind == "generate":
        allowed[:, queries:, queries:] = allowed[:, queries:, queries:].tril()
    allowed[:, :, queries:] &= text_mask[:, None].bool()
    return torch.zeros(allowed.shape, device=text_mask.device).masked_fill(~allowed, BLOCKED)[:, None]


def qformer_config(settings: QFormerSettings) -> Blip2QFormerConfig:
    """Return transformers' configuration of a Q-Former that reads text."""
    return Blip2QFormerConfig(
        vocab_size=settings.vocabulary,
        hidden_size=settings.width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        intermediate_size=4 * settings.width,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=TEXT_LENGTH,
        pad_token_id=PAD_ID,
        cross_attention_frequency=settings.cross_attention_frequency,
        encoder_hidden_size=settings.sees,
        use_qformer_text_input=True,
    )


class MicroBlip2(nn.Module):
    """The Q-Former of stage 1 with its heads; image tokens come from outside, (B, P, sees)."""

    def __init__(self, settings: QFormerSettings) -> None:
        super().__init__()
        self.settings = settings
        config = qformer_config(settings)
        width = settings.width
        # transformers starts queries at zero, where all of them would stay alike for ever.
        self.query_tokens = nn.Parameter(torch.randn(1, settings.queries, width) * 0.02)
        self.embeddings = Blip2TextEmbeddings(config)
        nn.init.normal_(self.embeddings.word_embeddings.weight, std=0.02)
        nn.init.normal_(self.embeddings.position_embeddings.weight, std=0.02)
        self.qformer = Blip2QFormerModel._from_config(config, attn_implementation="eager")
        self.vision_projection = nn.Linear(width, settings.projection)
        self.text_projection = nn.Linear(width, settings.projection)
        self.itm_head = nn.Linear(width, 2)
        self.generation_head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    def states(
        self, image_tokens: Tensor, ids: Tensor, text_mask: Tensor, kind: str, every_layer: bool = False
    ) -> tuple[Tensor, ...]:
        """Return the states (B, queries + T, width) after the last layer, or before and after every layer.

        Args:
            image_tokens: (B, P, sees).
            ids, text_mask: (B, T).
            kind: one of `MASKS`.
            every_layer: return layers + 1 tensors, from the embeddings on.
        """
        queries = self.query_tokens.expand(len(ids), -1, -1)
        output = self.qformer(
            query_embeds=self.embeddings(input_ids=ids, query_embeds=queries),
            query_length=queries.shape[1],
            attention_mask=attention_mask(kind, text_mask, queries.shape[1]),
            encoder_hidden_states=image_tokens,
            output_hidden_states=every_layer,
        )
        return tuple(output.hidden_states) if every_layer else (output.last_hidden_state,)

    def resample(self, image_tokens: Tensor, ids: Tensor, text_mask: Tensor) -> tuple[Tensor, ...]:
        """Return the query tokens (B, queries, width) before and after every layer; queries and text see each other."""
        found = self.states(image_tokens, ids, text_mask, "match", every_layer=True)
        return tuple(states[:, : self.settings.queries] for states in found)

    def embed_queries(self, states: Tensor) -> Tensor:
        """Return normalised image embeddings (B, queries, projection) of states that saw no text."""
        return functional.normalize(self.vision_projection(states[:, : self.settings.queries]).float(), dim=-1)

    def embed_texts(self, ids: Tensor, text_mask: Tensor) -> Tensor:
        """Return normalised text embeddings (B, projection), read at the first token."""
        states = self.qformer(
            query_embeds=self.embeddings(input_ids=ids), query_length=0, attention_mask=text_mask
        ).last_hidden_state
        return functional.normalize(self.text_projection(states[:, 0]).float(), dim=-1)

    def match_logits(self, image_tokens: Tensor, ids: Tensor, text_mask: Tensor) -> Tensor:
        """Return logits (B, 2) of (does not match, matches): the head's mean over queries."""
        (states,) = self.states(image_tokens, ids, text_mask, "match")
        return self.itm_head(states[:, : self.settings.queries]).mean(dim=1).float()

    def word_logits(self, states: Tensor) -> Tensor:
        """Return next-word logits (B, T, vocabulary) of text states (B, T, width); the output matrix is the input's."""
        return (self.generation_head(states) @ self.embeddings.word_embeddings.weight.T).float()


@dataclass(frozen=True, slots=True)
class TextBatch:
    """Texts read: ids (B, T) and mask (B, T)."""

    ids: Tensor
    mask: Tensor

    def __getitem__(self, rows: Tensor) -> TextBatch:
        return TextBatch(self.ids[rows], self.mask[rows])

    def to(self, device: torch.device) -> TextBatch:
        """Return the same texts on a device."""
        return TextBatch(self.ids.to(device), self.mask.to(device))

    @staticmethod
    def joined(parts: Sequence[TextBatch]) -> TextBatch:
        """Return all texts of several batches, padded to one length."""
        length = max(p.ids.shape[1] for p in parts)
        ids = [functional.pad(p.ids, (0, length - p.ids.shape[1]), value=PAD_ID) for p in parts]
        return TextBatch(
            torch.cat(ids), torch.cat([functional.pad(p.mask, (0, length - p.mask.shape[1])) for p in parts])
        )


def by_length(texts: TextBatch, parts: int) -> list[tuple[Tensor, TextBatch]]:
    """Return texts in groups of like length, each with its rows and padded only to its own longest.

    Half of a mixed batch is padding otherwise, and all of it is paid for.
    """
    lengths = texts.mask.sum(dim=1)
    found = []
    for rows in lengths.argsort(stable=True).tensor_split(min(parts, len(lengths))):
        longest = int(lengths[rows].max())
        found.append((rows, TextBatch(texts.ids[rows, :longest], texts.mask[rows, :longest])))
    return found


def in_order(rows: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
    """Return the values of groups, joined in the order of their rows (see `by_length`)."""
    return torch.cat(list(values))[torch.cat(list(rows)).argsort()]


def similarities(queries: Tensor, texts: Tensor) -> Tensor:
    """Return ITC's similarities (images, texts): each text's best over the queries (Li et al. 2023, section 3.1).

    Args:
        queries: normalised (B, queries, D).
        texts: normalised (B, D).
    """
    return torch.einsum("iqd,td->iqt", queries, texts).amax(dim=1)


def generation_loss(model: MicroBlip2, states: Tensor, texts: TextBatch, reduction: str = "mean") -> Tensor:
    """Return the loss, mean or sum, of predicting every next word of texts whose first token was [DEC].

    Args:
        model: gives the head.
        states: (B, T, width), states at the texts' tokens.
        texts: the texts.
        reduction: "mean" or "sum" over words.
    """
    real = texts.mask[:, 1:].bool()
    logits = model.word_logits(states[:, :-1][real])
    return functional.cross_entropy(logits, texts.ids[:, 1:][real], reduction=reduction)


def for_generation(ids: Tensor) -> Tensor:
    """Return ids (B, T) that begin with [DEC] instead of [CLS]."""
    return torch.cat([torch.full_like(ids[:, :1], DEC_ID), ids[:, 1:]], dim=1)


def language_loss(model: MicroBlip2, texts: TextBatch) -> Tensor:
    """Return the loss of next words from words alone, no image: what starting from BERT gives the large one."""
    mask = attention_mask("generate", texts.mask, 0)
    states = model.qformer(
        query_embeds=model.embeddings(input_ids=for_generation(texts.ids)), query_length=0, attention_mask=mask
    ).last_hidden_state
    return generation_loss(model, states, texts)


def hard_negatives(scores: Tensor, same: Tensor, generator: torch.Generator) -> Tensor:
    """Return for each row another column (B,), drawn by softmax of the scores: the more alike, the likelier.

    Args:
        scores: (B, B).
        same: (B, B) bool, pairs that are no negatives; the diagonal is among them.
        generator: source of choices, on the CPU.
    """
    weights = functional.softmax(scores.detach().float(), dim=1).masked_fill(same, 0) + 1e-8 * ~same
    weights = torch.where(weights.sum(dim=1, keepdim=True) > 0, weights, torch.ones_like(weights))
    return torch.multinomial(weights.cpu(), 1, generator=generator).squeeze(1).to(scores.device)


class MatchingWeights(NamedTuple):
    """What a statement of each kind weighs in ITM; a kind that weighs nothing is not asked.

    Attributes:
        true: a true statement about the image.
        caption: the image's own caption, the positive of BLIP-2.
        twisted: the true statement with one thing changed.
        hard: a caption with an image that contrast finds alike (half of them another image, half another caption),
            the negative of BLIP-2.
    """

    true: float = 1.0
    caption: float = 0.0
    twisted: float = 0.5
    hard: float = 0.5


MATCHING_WEIGHTS = MatchingWeights()


def stage_one_losses(
    model: MicroBlip2,
    image_tokens: Tensor,
    captions: TextBatch,
    true: TextBatch,
    false: TextBatch,
    generator: torch.Generator,
    weights: MatchingWeights = MATCHING_WEIGHTS,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return ITC + ITM + ITG of a batch, and its parts: the losses, and the share (0..1) of each kind that is right.

    Args:
        model: the Q-Former.
        image_tokens: (B, P, sees).
        captions: captions of the B images.
        true, false: true and twisted statements, see `statements`.
        generator: source of the hard negatives.
        weights: what each kind of statement weighs in ITM.
    """
    found, generate = contrast_and_generate(model, image_tokens, captions)
    scale = model.logit_scale.exp()
    target = torch.arange(len(found), device=found.device)
    contrast = (functional.cross_entropy(scale * found, target) + functional.cross_entropy(scale * found.T, target)) / 2
    same = (captions.ids[:, None] == captions.ids[None]).all(dim=2)
    other_text = hard_negatives(scale * found, same, generator)
    other_image = hard_negatives(scale * found.T, same, generator)
    half = target < len(found) // 2
    images, texts = torch.where(half, other_image, target), torch.where(half, target, other_text)
    asked = {
        **statements(true, false, len(found)),
        "caption": (captions, target),
        "hard": (captions[texts], images),
    }
    match, right = matching_loss(model, image_tokens, asked, weights)
    parts = {
        "itc": contrast,
        "itm": match,
        "itg": generate,
        "in_batch": (found.argmax(1) == target).float().mean(),
        **right,
    }
    return contrast + match + generate, {name: value.detach() for name, value in parts.items()}


def statements(true: TextBatch, false: TextBatch, images: int) -> dict[str, tuple[TextBatch, Tensor]]:
    """Return true and twisted statements, and the images' rows that they are asked about, for `matching_loss`.

    Args:
        true, false: k * B statements about B images: about each in turn, then about each again.
        images: B.
    """
    rows = torch.arange(images, device=true.ids.device).repeat(len(true.ids) // images)
    return {"true": (true, rows), "twisted": (false, rows)}


def matching_loss(
    model: MicroBlip2, image_tokens: Tensor, asked: dict[str, tuple[TextBatch, Tensor]], weights: MatchingWeights
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return ITM's weighted mean loss, and the share (0..1) of each kind that is right.

    Args:
        model: the Q-Former.
        image_tokens: (B, P, sees).
        asked: by kind (see `MatchingWeights`) texts and the images' rows (n,) that they are asked about.
        weights: what a statement of each kind weighs.
    """
    share = weights._asdict()
    kinds = [kind for kind in asked if share[kind]]
    texts, rows = TextBatch.joined([asked[k][0] for k in kinds]), torch.cat([asked[k][1] for k in kinds])
    groups = by_length(texts, 4)
    logits = in_order(
        [part for part, _ in groups],
        [model.match_logits(image_tokens[rows[part]], read.ids, read.mask) for part, read in groups],
    )
    counts = [len(asked[kind][1]) for kind in kinds]
    labels = torch.cat([torch.full((n,), int(k in POSITIVE)) for k, n in zip(kinds, counts, strict=True)])
    each = torch.cat([torch.full((n,), share[k]) for k, n in zip(kinds, counts, strict=True)])
    labels, each = labels.to(logits.device), each.to(logits.device)
    losses = functional.cross_entropy(logits, labels, reduction="none")
    right = (logits.argmax(1) == labels).float().split(counts)
    return (losses * each).sum() / each.sum(), {k: part.mean() for k, part in zip(kinds, right, strict=True)}


def contrast_and_generate(model: MicroBlip2, image_tokens: Tensor, captions: TextBatch) -> tuple[Tensor, Tensor]:
    """Return ITC's similarities (B, B), images by texts, and ITG's mean loss per word, from one pass of generation."""
    rows, images, texts, losses = [], [], [], []
    for group, part in by_length(captions, 2):
        (states,) = model.states(image_tokens[group], for_generation(part.ids), part.mask, "generate")
        losses.append(generation_loss(model, states[:, model.settings.queries :], part, reduction="sum"))
        images.append(model.embed_queries(states))
        texts.append(model.embed_texts(part.ids, part.mask))
        rows.append(group)
    words = captions.mask[:, 1:].sum()
    return similarities(in_order(rows, images), in_order(rows, texts)), torch.stack(losses).sum() / words
