"""How much each language model is asked: everything where it is small, the preset's share where it is large.

A small language model answers thousands of questions in seconds; one of a hundred million weights needs a tenth of a
second for each on a processor. So a large one is asked the main question, an ordinary phrase about the first
detector's boxes, of as many expressions as its interval needs, and the questions beside it of fewer. Every record
says how many there were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tqdm.auto import tqdm

from seewhere.llm_wrapper.experiments import FINE_TUNED, ZERO_SHOT
from seewhere.llm_wrapper.study import Study
from seewhere.llm_wrapper.taste import Tuned
from seewhere.presets import Preset

LARGE = 50_000_000  # weights


def is_large(tuned: Tuned) -> bool:
    """Whether a language model is large; of a served one the size is unknown, so it counts as large."""
    return getattr(tuned.wrapper.language_model, "parameters", LARGE) >= LARGE


def most(tuned: Tuned, settings: Preset, side: bool = False, study: Study | None = None) -> int | None:
    """Return how many of a seed's expressions a language model is asked; None for all that were drawn.

    A study that has no more expressions in all than a large model is asked of one seed is asked whole.
    """
    small = study is not None and len(study.expressions) <= settings.large_expressions
    if small or not is_large(tuned):
        return None
    return settings.large_side_expressions if side else settings.large_expressions


def ask_all(
    studies: Sequence[Study], detectors: Sequence[str], llm: str, before: Tuned | None, tuned: Tuned, settings: Preset
) -> None:
    """Ask a language model, fine-tuned, about every data set and detector; and before that about ordinary phrases.

    Before fine-tuning a large one is asked about the first data set, and about small ones. The answers are in the
    studies' tables. `before` is None for a model that is only there as it is served.
    """
    pairs = [(study, detector) for study in studies for detector in detectors]
    for study, detector in tqdm(pairs, desc=llm, leave=False):
        side = study.is_long or detector != detectors[0]
        study.ask(tuned.wrappers, detector, llm, most=most(tuned, settings, side, study))
        if before is None:
            continue
        share = most(before, settings, True, study)
        if study is studies[0] or (share is None and not study.is_long):
            study.ask(before.wrappers, detector, llm, ZERO_SHOT, most=share)


def ask_freely(
    studies: Sequence[Study], detectors: Sequence[str], llm: str, before: Tuned | None, tuned: Tuned, settings: Preset
) -> None:
    """Let a language model write its answers: fine-tuned about ordinary phrases, before that about the first list.

    A large one writes about the first data set and detector only: free text costs several times what choosing does.
    """
    pairs = [(study, detector) for study in studies if not study.is_long for detector in detectors]
    for study, detector in tqdm(pairs, desc=f"{llm}, free text", leave=False):
        first = _is_first(study, detector, studies, detectors)
        if first or not is_large(tuned):
            study.ask(tuned.wrappers, detector, llm, FINE_TUNED, free=True, most=most(tuned, settings, side=True))
        if first and before is not None:
            study.ask(before.wrappers, detector, llm, ZERO_SHOT, free=True, most=most(before, settings, side=True))


def _is_first(study: Study, detector: str, studies: Sequence[Study], detectors: Sequence[str]) -> bool:
    return study is studies[0] and detector == detectors[0]


def already_good(studies: Sequence[Study], detector: str, tuned: Mapping[str, Tuned], settings: Preset) -> list[Study]:
    """Ask a further detector and every fine-tuned language model about the expressions of some studies."""
    found = []
    for study in tqdm(studies, desc=detector, leave=False):
        other = Study.of(study.dataset, study.expressions, study.drawn_by, [detector])
        for llm, item in tuned.items():
            other.ask(item.wrappers, detector, llm, most=most(item, settings, side=True))
        found.append(other)
    return found
