"""The strict text-only control: it finds what hangs on two words together, and nothing where there is nothing."""

from random import Random

import pytest
from seewhere.probing.controls import predictions
from seewhere.probing.crossed_text import NAME, crossed_text, terms_of
from seewhere.probing.experiments import control_tables
from seewhere.probing.tasks import Example, Task
from seewhere.probing.training import ProbeSettings

WORDS = ("left", "right", "top", "bottom")


def task_of(leaky: bool, kind: str = "binary") -> Task:
    """Claims "the WORD thing refers to the WORD part", true where the words agree (or by a coin: no leak)."""
    random, splits, number = Random(0), {}, 0
    for split, count in (("train", 1200), ("validation", 300), ("test", 400)):
        splits[split] = []
        for _ in range(count):
            said, true = random.choice(WORDS), random.random() < 0.5
            claimed = said if true else random.choice([w for w in WORDS if w != said])
            text = f"the {said} thing refers to the {claimed} part"
            label = true if leaky else random.random() < 0.5
            splits[split].append(Example(number, None, str(number), text, (float(label),), {}))
            number += 1
    return Task("rcm", kind, "made up", splits)


@pytest.mark.parametrize(("leaky", "low", "high"), [(True, 0.97, 1.0), (False, 0.4, 0.6)])
def test_words_are_held_against_each_other(leaky, low, high):
    task = task_of(leaky)
    share = predictions(task, crossed_text(task)).correct.mean()
    assert low <= share <= high


def test_the_controls_tell_what_counts_of_words_cannot(monkeypatch):
    task = task_of(True)
    monkeypatch.setattr("seewhere.probing.experiments.frozen_arm", lambda *a, **k: _at_chance(task))
    table = control_tables(task, ProbeSettings(epochs=1))
    assert table[table.resampler == NAME].correct.mean() > 0.97
    assert set(table.resampler) == {"majority", "random", "text only", NAME}


def _at_chance(task):
    class Found:
        table = predictions(task, -1 + 0 * task.targets("test"), resampler="text only")

    return Found


def test_a_text_is_its_words_and_their_pairs_in_order():
    assert len(terms_of("a b c")) == 6 and len(terms_of("a a")) == 2
    assert set(terms_of("left top").tolist()) != set(terms_of("top left").tolist())


def test_boxes_are_refused():
    with pytest.raises(ValueError, match="yes/no"):
        crossed_text(task_of(True, "box"))
