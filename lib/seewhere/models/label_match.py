"""The zero-shot referring baseline: match the words of a phrase to the labels of detected candidates.

A closed-vocabulary detector knows what it found but not what a sentence asks for. Matching words to labels is what
such a detector can offer by itself: it goes to the right kind of object and cannot tell two of a kind apart, because
"left", "second" or "behind" match no label. What a language model adds on top is measured against this.

The only grammar used is that English names its subject first ("the dog left of the cat") and that of adjacent nouns
the last one is the thing ("orange cat", "bus driver").
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import pairwise

import numpy as np

from seewhere.models.place_words import place_order
from seewhere.world.language import SYNONYMS, plural

# Everyday words for COCO categories that the world's own language does not use but people writing about photographs do.
EVERYDAY_WORDS: dict[str, tuple[str, ...]] = {
    "person": (
        "man", "men", "woman", "women", "guy", "lady", "boy", "girl", "kid", "child", "children", "baby", "dude",
        "player", "people", "batter", "catcher", "pitcher", "umpire", "rider", "skier", "surfer", "chef", "he", "she",
    ),
    "car": ("vehicle", "taxi", "cab", "van", "suv"),
    "truck": ("lorry", "pickup"),
    "motorcycle": ("scooter", "moped"),
    "airplane": ("aeroplane", "jet"),
    "boat": ("ship", "canoe", "kayak"),
    "cow": ("cattle", "bull", "calf", "ox"),
    "sheep": ("lamb", "ram"),
    "horse": ("pony",),
    "dog": ("puppy",),
    "cat": ("kitten", "kitty"),
    "bear": ("cub",),
    "bird": ("parrot", "pigeon", "duck"),
    "couch": ("loveseat",),
    "chair": ("armchair", "seat", "stool"),
    "cup": ("mug",),
    "bowl": ("dish",),
    "suitcase": ("luggage", "bag"),
    "handbag": ("purse", "bag"),
    "backpack": ("rucksack", "bag"),
    "tv": ("monitor",),
    "cell phone": ("cellphone", "smartphone", "mobile"),
    "broccoli": ("veggie",),
    "hot dog": ("hotdog",),
    "sandwich": ("burger", "hamburger"),
    "teddy bear": ("stuffed animal", "stuffed bear"),
}  # fmt: skip

FULL, PARTIAL = 1.0, 0.5


def words_of(phrase: str) -> list[str]:
    """Return the lower-case words of a phrase, without punctuation; a possessive 's is dropped."""
    return re.findall(r"[a-z0-9]+", re.sub(r"['’]s\b", "", phrase.lower()))


@cache
def surface_forms(label: str) -> frozenset[tuple[str, ...]]:
    """Return every way to say a label, as word tuples: its name, its synonyms, and the plurals of them all."""
    label = label.lower().strip()
    singular = {label, *SYNONYMS.get(label, ()), *EVERYDAY_WORDS.get(label, ())} - {""}
    every = singular | {plural(name) for name in singular if len(name) > 1}
    return frozenset(form for name in every if (form := tuple(words_of(name))))


@cache
def _last_words(label: str) -> frozenset[str]:
    """Return the head nouns of a label of several words: "dog" for "hot dog" (a weak hint, see `PARTIAL`)."""
    names = (label.lower(), *SYNONYMS.get(label.lower(), ()))
    heads = {words[-1] for name in names if len(words := words_of(name)) > 1}
    return frozenset(heads | {words_of(plural(head))[0] for head in heads})


def _mentions(words: Sequence[str], forms: dict[tuple[str, ...], set[str]]) -> list[tuple[int, int, set[str]]]:
    """Find label mentions as (start, end, labels), longest first at each place, so "hot dog" is no "dog"."""
    longest = max((len(form) for form in forms), default=0)
    found, at = [], 0
    while at < len(words):
        for length in range(min(longest, len(words) - at), 0, -1):
            if labels := forms.get(tuple(words[at : at + length])):
                found.append((at, at + length, labels))
                at += length - 1
                break
        at += 1
    return found


def _by_rank(mentions: list[tuple[int, int, set[str]]]) -> list[set[str]]:
    """Order mentions by importance: first in the sentence first, but in a run of adjacent nouns the last one leads."""
    runs: list[list[tuple[int, int, set[str]]]] = []
    for mention in mentions:
        if runs and runs[-1][-1][1] == mention[0]:
            runs[-1].append(mention)
        else:
            runs.append([mention])
    return [labels for run in runs for _, _, labels in reversed(run)]


def match_labels(phrase: str, labels: Sequence[str], vocabulary: Sequence[str] = ()) -> np.ndarray:
    """Score how well each label answers a phrase by words alone.

    Args:
        phrase: a referring expression.
        labels: N candidate labels.
        vocabulary: further labels that the detector knows; one that is mentioned in full claims its words ("bear" is
            not what "teddy bear" is about, even if no teddy bear was found).

    Returns:
        (N,) float in 0..1: 1 for the label named first, 1/2, 1/3, … for labels named later, half of 1/(1 + number of
        mentions) for a label that shares only its last word with the phrase, 0 for no common word.
    """
    forms: dict[tuple[str, ...], set[str]] = {}
    for label in {*labels, *vocabulary}:
        for form in surface_forms(label):
            forms.setdefault(form, set()).add(label)
    words = words_of(phrase)
    mentions = _mentions(words, forms)
    ranked = _by_rank(mentions)
    claimed = {i for start, end, _ in mentions for i in range(start, end)}
    rest = {word for i, word in enumerate(words) if i not in claimed}
    scores = {}
    for label in set(labels):
        rank = next((r for r, group in enumerate(ranked) if label in group), None)
        partial = PARTIAL / (1 + len(ranked)) if rest & _last_words(label) else 0.0
        scores[label] = FULL / (1 + rank) if rank is not None else partial
    return np.array([scores[label] for label in labels], dtype=np.float64)


def best_candidate(
    phrase: str, labels: Sequence[str], scores: Sequence[float] | np.ndarray, vocabulary: Sequence[str] = ()
) -> int:
    """Return the index of the candidate with the best (word match, detection score), or -1 without candidates.

    Raises:
        ValueError: ``labels`` and ``scores`` differ in length.
    """
    if len(labels) != len(scores):
        raise ValueError(f"expected one score per label, got {len(labels)} labels and {len(scores)} scores")
    if not len(labels):
        return -1
    match = match_labels(phrase, labels, vocabulary)
    return int(np.lexsort((-np.arange(len(labels)), np.asarray(scores, dtype=np.float64), match))[-1])


def best_placed_candidate(
    phrase: str,
    labels: Sequence[str],
    scores: Sequence[float] | np.ndarray,
    boxes: np.ndarray,
    vocabulary: Sequence[str] = (),
) -> int:
    """Return the candidate of the best matching label that also fits the phrase's place words, see `place_words`.

    As `best_candidate` where the phrase names a second object or no place, or the label occurs once.

    Args:
        phrase: a referring expression.
        labels: N candidate labels.
        scores: N detection scores.
        boxes: (N, 4) pixels, xyxy.
        vocabulary: further labels that the detector knows.
    """
    plain = best_candidate(phrase, labels, scores, vocabulary)
    if plain < 0 or _named(phrase, {*labels, *vocabulary}) > 1:
        return plain
    alike = np.flatnonzero(np.array(labels) == labels[plain])
    order = place_order(phrase, boxes[alike]) if len(alike) > 1 else None
    return plain if order is None else int(alike[order[0]])


def _named(phrase: str, labels: Iterable[str]) -> int:
    """Count the runs of adjacent label mentions: the objects that a phrase speaks of."""
    forms: dict[tuple[str, ...], set[str]] = {}
    for label in labels:
        for form in surface_forms(label):
            forms.setdefault(form, set()).add(label)
    mentions = _mentions(words_of(phrase), forms)
    return len(mentions) - sum(a[1] == b[0] for a, b in pairwise(mentions))
