"""The search: TPE over the given space, pruned, and after a kill the study that it would have been."""

import os
import signal
import subprocess
import sys
import time

import pytest
from seewhere import presets
from seewhere.probing.experiments import search_arm
from seewhere.probing.search import SearchSpace, search
from seewhere.probing.settings import settings_of, sizes_of, space_of
from seewhere.probing.training import ProbeSettings
from tiny import Tiny

SPACE = SearchSpace((1e-5, 5e-4), (20, 30, 40), (1.0, 2.0, 4.0))
BASE = ProbeSettings(batch=16)


def peak(settings, report):
    """Best at a learning rate of 1e-4, 30 epochs, and a large weight of the L1 part."""
    import math

    score = 1 - abs(math.log10(settings.learning_rate) + 4) - abs(settings.epochs - 30) / 100 + settings.l1 / 100
    for epoch in range(1, 11):
        report(epoch, score * epoch / 10)
    return score


def run(folder, trials, train=peak, **options):
    return search(train, SPACE, BASE, name="x y", trials=trials, folder=folder, progress=False, **options)


def test_it_finds_the_peak_within_the_space(tmp_path):
    found = run(tmp_path, 20, prune=False)
    assert len(found.trials) == 20 and found.trials.score.max() == found.score > 0.8
    assert found.trials.learning_rate.between(1e-5, 5e-4).all() and set(found.trials.epochs) <= {20, 30, 40}
    assert found.settings.batch == 16 and abs(found.settings.learning_rate / 1e-4 - 1) < 0.6
    late, early = found.trials.score[10:].nlargest(5).mean(), found.trials.score[:10].nlargest(5).mean()
    assert late > early  # it looks where it is good


def test_bad_trials_are_pruned_and_finished_ones_are_not_repeated(tmp_path):
    found = run(tmp_path, 12, warm_up_epochs=2)
    pruned = found.trials[found.trials.state == "pruned"]
    assert 0 < len(pruned) < 12 and (pruned["epochs run"] < 10).all() and (pruned["epochs run"] >= 2).all()
    calls = []

    def never(settings, report):
        calls.append(settings)
        return peak(settings, report)

    again = run(tmp_path, 12, never, warm_up_epochs=2)
    assert calls == [] and again.settings == found.settings
    assert len(run(tmp_path, 14, never, warm_up_epochs=2).trials) == 14 and len(calls) == 2


def test_other_data_are_another_study(tmp_path):
    run(tmp_path, 2, identity={"train": "a"})
    calls = []
    run(tmp_path, 2, lambda s, r: calls.append(s) or 0.5, identity={"train": "b"})
    assert len(calls) == 2


def test_a_study_that_was_broken_off_ends_as_one_that_was_not(tmp_path):
    whole = run(tmp_path / "whole", 12, warm_up_epochs=2)
    calls = 0

    def breaks(settings, report):
        nonlocal calls
        calls += 1
        if calls == 8:
            report(1, 0.9)  # half-told scores of the trial that was cut off must not count
            raise KeyboardInterrupt
        return peak(settings, report)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "torn", 12, breaks, warm_up_epochs=2)
    again = run(tmp_path / "torn", 12, warm_up_epochs=2)
    columns = ["state", "score", "epochs run", "learning_rate", "epochs", "l1", "giou"]
    assert again.trials[columns].equals(whole.trials[columns]) and again.settings == whole.settings


SCRIPT = """
import time
from pathlib import Path
from seewhere.probing.search import SearchSpace, search
from seewhere.probing.training import ProbeSettings
def train(settings, report):
    with open({log!r}, "a") as log:
        log.write(f"{{settings.learning_rate!r}} {{settings.epochs}}\\n")
    for epoch in range(1, 4):
        time.sleep(0.02)
        report(epoch, settings.learning_rate * epoch)
    return settings.learning_rate * 3
found = search(train, SearchSpace((1e-5, 5e-4), (20, 30)), ProbeSettings(), name="killed", trials={trials},
    folder=Path({folder!r}), progress=False, prune=False)
print(repr([(t.learning_rate, t.epochs) for t in found.trials.itertuples()]))
"""


def test_a_killed_study_is_taken_up_where_it_was(tmp_path):
    log, folder = tmp_path / "log", tmp_path / "studies"
    code = SCRIPT.format(log=str(log), folder=str(folder), trials=12)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not log.is_file() or len(log.read_text().splitlines()) < 6:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    started = log.read_text().splitlines()
    again = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    lines = log.read_text().splitlines()
    # Only the trial that was cut off is run again, with the same proposal.
    assert len(started) in (6, 7) and len(lines) - len(started) in (12 - len(started), 13 - len(started))
    unique = list(dict.fromkeys(lines))
    assert len(unique) == 12 and len(lines) <= 13
    fresh = SCRIPT.format(log=str(tmp_path / "log2"), folder=str(tmp_path / "other"), trials=12)
    whole = subprocess.run([sys.executable, "-c", fresh], check=True, capture_output=True, text=True)
    assert again.stdout == whole.stdout


def test_a_damaged_study_is_set_aside(tmp_path):
    run(tmp_path, 2)
    (path,) = tmp_path.glob("*.sqlite")
    content = bytearray(path.read_bytes())
    content[4096:40960] = b"x" * (40960 - 4096)
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="damaged; set aside"):
        assert len(run(tmp_path, 2).trials) == 2
    assert len(list(tmp_path.glob("torn-*"))) == 1


def test_diverged_trials_count_as_the_worst(tmp_path):
    def train(settings, report):
        if settings.epochs == 20:
            raise FloatingPointError("the loss is nan")
        return 0.5

    found = run(tmp_path, 8, train)
    assert found.settings.epochs != 20 and found.score == 0.5
    with pytest.raises(ValueError, match="at least one trial"):
        run(tmp_path, 0)


def test_an_arm_is_searched_by_its_validation_score(binary_task, home):
    space = SearchSpace((1e-3, 1e-2), (2, 4))
    for arm in ("frozen", "unfrozen"):
        found = search_arm(binary_task, Tiny(), space, BASE, arm=arm, trials=2, progress=False)
        assert len(found.trials) == 2 and 0 <= found.score <= 1 and found.settings.epochs in (2, 4)
    with pytest.raises(ValueError, match="unknown arm 'molten'"):
        search_arm(binary_task, Tiny(), space, BASE, arm="molten")


@pytest.mark.parametrize("name", presets.NAMES)
def test_presets_give_search_spaces(name):
    preset = presets.load(name, "01")
    for task in ("rec", "vsr", "rcm"):
        space = space_of(preset, task)
        assert (
            space.learning_rate[0] < space.learning_rate[1] and space.epochs and bool(space.weights) == (task == "rec")
        )


def test_the_papers_search_space():
    preset = presets.load("paper", "01")
    assert space_of(preset, "rec") == SearchSpace((1e-5, 5e-4), (20, 30, 40), (1.0, *(2.0 * x for x in range(1, 11))))
    assert space_of(preset, "vsr").epochs == (3, 5, 10, 15, 20) and space_of(preset, "rcm").epochs == (50, 100, 150)
    assert preset.search_trials >= 10
    best = settings_of(preset, "rec", "instruct", "unfrozen")
    assert (best.batch, best.weight_decay, best.warmup, best.patience) == (128, 0.01, 0.1, 0)
    assert settings_of(preset, "rcm").patience == 10 and sizes_of(preset)["train"] is None
    with pytest.raises(ValueError, match="no setting 'rec_perceiver_frozen'"):
        settings_of(preset, "rec", "perceiver")


TABLE_4 = {  # frozen and unfrozen Q-Former, frozen and unfrozen InstructBLIP Q-Former, as printed
    "rec": {"learning_rate": (4.85e-4, 1.03e-4, 2.55e-4, 1.08e-4), "epochs": (40, 20, 40, 40),
            "giou": (6, 20, 16, 20), "l1": (20, 18, 18, 8)},
    "vsr": {"learning_rate": (3.92e-4, 4.59e-4, 1.03e-4, 2.49e-5), "epochs": (5, 10, 15, 20)},
    "rcm": {"learning_rate": (1.94e-5, 4.74e-4, 4.34e-4, 3.10e-5), "epochs": (100, 150, 150, 50)},
}  # fmt: skip


@pytest.mark.parametrize("task", TABLE_4)
def test_the_papers_best_values_are_those_of_table_4(task):
    preset = presets.load("paper", "01")
    arms = [("qformer", "frozen"), ("qformer", "unfrozen"), ("instruct", "frozen"), ("instruct", "unfrozen")]
    for name, printed in TABLE_4[task].items():
        assert tuple(getattr(settings_of(preset, task, *arm), name) for arm in arms) == printed
