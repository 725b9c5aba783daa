"""Noun groups of a referring expression: which words name the thing that is meant, and which name its surroundings.

GDrec scores a box by the words of one noun group instead of the whole sentence, so it needs a parser. Two are here:

* ``rules`` (default): word lists and the order of the words. Referring expressions are short, have no full syntax ("guy
  left blue shirt"), and name the subject first; closed word classes cut them well, the answer is the same on every
  machine, and nothing is downloaded.
* ``spacy``: noun chunks and the root of the dependency tree of a spaCy pipeline, where one is installed. Better on
  long, whole sentences. It is never chosen by itself: numbers must not depend on what happens to be installed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


DETERMINERS = _words(
    """
    a an the this that these those his her hers its their my your our some any each every another other both all
    """
)
PREPOSITIONS = _words(
    """
    in on at of by to from with without near beside besides behind under underneath below beneath above over
    between among next across against along around inside outside into onto off through toward towards upon
    within before after beyond opposite via like as than for up down out about nearest closest farthest furthest
    """
)
OTHER_BREAKERS = _words(
    """
    and or but while who whom whose which where when if then not no is are was were be been being am has have
    had having do does did could will would should may might must there here it he she they them him i you we us
    me just very also only so too sits stands wears holds faces looks lies eats rides seen shown walks plays
    leans
    """
)
PLACE_WORDS = _words(
    """
    left right top bottom middle center centre front back rear side corner edge upper lower far close leftmost
    rightmost topmost bottommost lefthand righthand most end row background foreground first second third fourth
    fifth last photo picture image
    """
)
PARTICIPLE_NOUNS = _words(
    """
    building ceiling painting clothing string ring king wing thing swing railing evening morning spring awning
    earring stocking frosting icing topping wedding lighting landing pudding dumpling duckling sibling offspring
    """
)
MEASURES = _words(
    """
    piece pieces slice slices pair bunch group pile stack bit glass bowl cup bottle plate box bag can basket
    vase jar stem half portion kind set herd flock bouquet loaf
    """
)
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


@dataclass(frozen=True, slots=True)
class NounGroup:
    """Some words of a text: ``source[start:end] == text`` (characters)."""

    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class NounGroups:
    """The noun groups of one expression: what is meant, and the rest in order of appearance."""

    subject: NounGroup
    others: tuple[NounGroup, ...] = ()


def noun_groups(text: str, parser: str = "rules") -> NounGroups:
    """Split an expression into its subject and its other noun groups.

    Groups carry no leading determiner: under a minimum over words, a weakly grounded "the" would veto its noun. Words
    that only tell a place ("left", "second") are no group of their own, and are cut from the end of one ("guy on
    left", "guy left"), but stay in front of their noun ("left guy").

    Args:
        text: the expression. Character positions in the answer refer to it.
        parser: "rules" or "spacy" (needs the package and its pipeline ``en_core_web_sm``).

    Returns:
        The groups. An expression without any noun group ("second from left") is its own subject.

    Raises:
        ValueError: empty text, or an unknown parser.
        ImportError: "spacy" was asked for and is not installed.
    """
    stripped = text.strip()
    if not stripped:
        raise ValueError("noun_groups: the text is empty; expected a referring expression.")
    if parser == "rules":
        groups = _rule_groups(text)
        subject_place = 0
    elif parser == "spacy":
        groups, subject_place = groups_of_document(_spacy_pipeline()(text))
    else:
        raise ValueError(f"noun_groups: unknown parser {parser!r}; known are 'rules' and 'spacy'.")
    if not groups:
        start = text.index(stripped)
        whole = stripped.rstrip(".?!,;: ") or stripped
        return NounGroups(NounGroup(whole, start, start + len(whole)))
    subject = groups.pop(subject_place)
    return NounGroups(subject, tuple(groups))


def _rule_groups(text: str) -> list[NounGroup]:
    """Maximal runs of words between breaking words and punctuation, trimmed, without those that only tell a place."""
    runs: list[list[re.Match[str]]] = [[]]
    matches = list(_WORD.finditer(text))
    for place, match in enumerate(matches):
        gap = text[matches[place - 1].end() : match.start()] if place else ""
        if gap.strip():
            runs.append([])
        word = match.group().lower()
        if word == "of" and _joins_measure(runs[-1], matches, place, text):
            runs[-1].append(match)
        elif _breaks(word):
            runs.append([])
        else:
            runs[-1].append(match)
    groups = []
    for run in runs:
        words = _trimmed(run)
        if words:
            start, end = words[0].start(), words[-1].end()
            groups.append(NounGroup(text[start:end], start, end))
    return groups


def _breaks(word: str) -> bool:
    if word in DETERMINERS or word in PREPOSITIONS or word in OTHER_BREAKERS:
        return True
    return len(word) > 4 and word.endswith("ing") and word not in PARTICIPLE_NOUNS


def _joins_measure(run: list[re.Match[str]], matches: list[re.Match[str]], place: int, text: str) -> bool:
    """Whether this "of" is inside one thing, as in "piece of cake", and not between two, as in "left of the cake"."""
    if not run or run[-1].group().lower() not in MEASURES or place + 1 == len(matches):
        return False
    follower = matches[place + 1]
    return not _breaks(follower.group().lower()) and not text[matches[place].end() : follower.start()].strip()


def _trimmed(run: list[re.Match[str]]) -> list[re.Match[str]]:
    """Without place words at the end; empty if nothing else was there."""
    words = list(run)
    while words and (words[-1].group().lower() in PLACE_WORDS or words[-1].group().isdigit()):
        words.pop()
    return words


def groups_of_document(document: Any) -> tuple[list[NounGroup], int]:
    """Noun groups of a parsed spaCy document and the place of the subject among them.

    The subject is the first chunk whose root is the root of its sentence or that root's subject; otherwise the first.
    """
    groups: list[NounGroup] = []
    subject = -1
    for chunk in document.noun_chunks:
        tokens = list(chunk)
        while tokens and tokens[0].pos_ in ("DET", "PRON"):
            tokens.pop(0)
        if not tokens or all(token.text.lower() in PLACE_WORDS for token in tokens):
            continue
        start, end = tokens[0].idx, tokens[-1].idx + len(tokens[-1].text)
        root = chunk.root
        if subject < 0 and (root.dep_ == "ROOT" or (root.dep_ in ("nsubj", "nsubjpass") and root.head.dep_ == "ROOT")):
            subject = len(groups)
        groups.append(NounGroup(document.text[start:end], start, end))
    return groups, max(subject, 0)


@lru_cache(maxsize=1)
def _spacy_pipeline() -> Callable[[str], Any]:
    try:
        import spacy

        pipeline: Callable[[str], Any] = spacy.load("en_core_web_sm")
    except (ImportError, OSError) as error:
        raise ImportError(
            "The 'spacy' parser needs the package spacy and its pipeline en_core_web_sm "
            "(pip install spacy; python -m spacy download en_core_web_sm). The parser 'rules' needs neither."
        ) from error
    return pipeline
