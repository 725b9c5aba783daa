"""The tokenizer of the micro vision models: lower-cased word pieces of the world's whole language.

It is BERT's kind, as in the Q-Former of BLIP-2: ``[CLS] words [SEP]``, and ``[DEC]`` in place of ``[CLS]`` where text
is to be generated. Its words come from every style of the world, place words too, so that a probe's questions are as
readable as the captions; letters and digits alone spell whatever else comes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from random import Random

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from seewhere.world.language import SYNONYMS, captions, expressions, plural
from seewhere.world.scenes import sample_scene
from seewhere.world.sprites import TINTS, load_sprites

PAD, UNKNOWN, CLS, SEP, MASK, DEC = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"
PAD_ID, CLS_ID, SEP_ID, DEC_ID = 0, 2, 3, 5
"""CLIP's text tower reads the state at the first [SEP]; an end id of 2 would make transformers read elsewhere."""

PLACES = (
    "top left", "top", "top right", "middle left", "middle", "middle right", "bottom left", "bottom", "bottom right"
)  # fmt: skip
# Words of the spatial statements of VSR (Liu et al. 2023) beside those that the world's phrases use.
RELATIONS = re.findall(
    r"\S+",
    "above across against ahead along alongside among apart around at away back back-to-back behind below beneath "
    "beside between beyond by close connected consists contains detached down enclosed facing far from front has in "
    "inside into is left near next of off on onto opposite out outside over parallel part past perpendicular right "
    "side surrounding the to toward touching under up with within parallel attached adjacent edge top bottom middle",
)


ORDINARY = ("yes", "no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def build_tokenizer(texts: Iterable[str], vocabulary: int = 1536) -> PreTrainedTokenizerFast:
    """Train the word-piece tokenizer.

    Args:
        texts: texts whose words it should know.
        vocabulary: most word pieces, special tokens and single characters included.
    """
    tokenizer = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    characters = [chr(c) for c in range(33, 127) if not chr(c).isupper()]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, UNKNOWN, CLS, SEP, MASK, DEC],
        initial_alphabet=characters,
        limit_alphabet=len(characters),
        show_progress=False,
    )
    # Each character once inside a word too, so that no word of known characters is ever unknown.
    tokenizer.train_from_iterator([*texts, *(f"{c}{c}" for c in characters if c.isalnum())], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{CLS} $A {SEP}", special_tokens=[(CLS, CLS_ID), (SEP, SEP_ID)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        cls_token=CLS,
        sep_token=SEP,
        mask_token=MASK,
        additional_special_tokens=[DEC],
    )


def world_texts(scenes: int = 400, first: int = 0) -> Iterator[str]:
    """Yield sentences of every kind about the first training scenes, and the words of spatial statements."""
    sprites = load_sprites()
    for _ in range(20):  # each often enough to become one piece
        yield from (*RELATIONS, *TINTS, *ORDINARY)
    for category in sprites.categories:
        for noun in (category.name, *SYNONYMS.get(category.name, ())):
            yield from (noun, plural(noun))
    for number in range(first, first + scenes):
        random = Random(number)
        scene = sample_scene(number, sprites)
        yield from captions(scene, random)
        for index, item in enumerate(scene.objects):
            for style in ("short", "plus", "relational"):
                for phrase in expressions(scene, index, style, random)[:3]:
                    yield f"{phrase.text} refers to the {random.choice(PLACES)} part of the image"
            yield f"how many {item.category} are there? is there a {item.category} in the picture? yes no none"
        yield f"what colour is it? what is the background? describe the picture. {scene.background}"


@lru_cache(maxsize=2)
def world_tokenizer(vocabulary: int = 1536) -> PreTrainedTokenizerFast:
    """Return the tokenizer trained on the world's texts; the same every time."""
    return build_tokenizer(world_texts(), vocabulary)


def read_texts(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and mask (B, L) long; L is the longest text's, at most ``length``, [SEP] kept at the cut."""
    read = tokenizer(list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt")
    return read["input_ids"], read["attention_mask"]
