"""Probe training where the answer is known, in both arms, killed and taken up again."""

import copy
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from seewhere.probing import sources
from seewhere.probing.arms import load_arm, save_arm
from seewhere.probing.experiments import control_tables, frozen_arm, unfrozen_arm, unfrozen_sources
from seewhere.probing.sources import FrozenTokens, TrainedTokens
from seewhere.probing.training import STATE, ProbeSettings, fit, predict
from tiny import Tiny, TinyEncoded, planted_boxes, remove

QUICK = ProbeSettings(learning_rate=5e-3, epochs=60, batch=64)


def fit_planted(train, targets, test, test_targets, settings=QUICK, **options):
    return fit(FrozenTokens(train), targets, FrozenTokens(test), test_targets, settings, progress=False, **options)


def test_a_linear_probe_finds_a_planted_box_and_nothing_where_it_is_removed():
    train, targets, code = planted_boxes(400, seed=0)
    test, test_targets, _ = planted_boxes(100, seed=1)
    there = fit_planted(train, targets, test, test_targets)
    gone = fit_planted(remove(train, code), targets, remove(test, code), test_targets)
    constant = (np.abs(np.median(targets, 0) - test_targets).max(1) < 0.05).mean()
    assert there.score > 0.95
    assert gone.score < 0.25 and constant < 0.25
    assert there.history.loss.iloc[-1] < 0.3 * there.history.loss.iloc[0]


def test_a_planted_bit_is_read_and_a_product_of_two_needs_a_deeper_probe():
    random = np.random.default_rng(0)
    features = random.normal(size=(1200, 2, 4)).astype(np.float32)
    flat = features.reshape(1200, -1)
    bit, product = (flat[:, :1] > 0).astype(np.float32), (flat[:, :1] * flat[:, 1:2] > 0).astype(np.float32)
    settings = ProbeSettings(learning_rate=1e-2, epochs=40, hidden=32)

    def score(targets, **changes):
        return fit_planted(
            features[:900], targets[:900], features[900:], targets[900:], settings.changed(**changes)
        ).score

    assert score(bit) > 0.95
    assert score(product) < 0.6
    assert score(product, layers=2) > 0.9
    assert score(product, layers=4) > 0.9


def test_the_best_epoch_is_kept_and_patience_ends_the_training():
    train, targets, _ = planted_boxes(64, noise=1.0)
    test, test_targets, _ = planted_boxes(64, noise=1.0, seed=1)
    settings = ProbeSettings(learning_rate=2e-2, epochs=80, batch=16, patience=5)
    found = fit_planted(train, targets, test, test_targets, settings)
    assert found.score == found.history.validation_score.max()
    assert found.history.validation_score[found.epoch - 1] == found.score
    assert len(found.history) == found.epoch + 5 < 80
    outputs = predict(found.probe, FrozenTokens(test))
    from seewhere.probing.losses import correct

    assert correct(torch.from_numpy(outputs), torch.from_numpy(test_targets)).double().mean() == found.score


def test_warm_up_and_decay():
    train, targets, _ = planted_boxes(64)
    settings = ProbeSettings(learning_rate=1.0e-3, epochs=10, batch=16, warmup=0.25)
    rates = fit_planted(train, targets, train, targets, settings).history.learning_rate.tolist()
    assert rates == pytest.approx([4e-4, 8e-4, *[1e-3 * (40 - s) / 30 for s in (11, 15, 19, 23, 27, 31, 35, 39)]])


def test_the_same_seed_gives_the_same_probe_and_another_seed_another():
    train, targets, _ = planted_boxes(64)
    settings = ProbeSettings(epochs=3)
    first, second, third = (
        fit_planted(train, targets, train, targets, settings.changed(seed=s)).probe.head.weight for s in (0, 0, 1)
    )
    assert torch.equal(first, second) and not torch.equal(first, third)


def test_a_training_that_was_ended_goes_on_as_if_it_had_not(tmp_path):
    train, targets, _ = planted_boxes(100, noise=0.3)
    test, test_targets, _ = planted_boxes(50, noise=0.3, seed=1)
    settings = ProbeSettings(learning_rate=5e-3, epochs=8, batch=32)
    whole = fit_planted(train, targets, test, test_targets, settings)

    def stop(epoch, score):
        if epoch == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_planted(train, targets, test, test_targets, settings, folder=tmp_path, on_epoch=stop)
    seen = []
    again = fit_planted(
        train, targets, test, test_targets, settings, folder=tmp_path, on_epoch=lambda epoch, _: seen.append(epoch)
    )
    assert seen == [6, 7, 8]
    assert again.history.equals(whole.history) and torch.equal(again.probe.head.weight, whole.probe.head.weight)
    with pytest.raises(ValueError, match="other settings or data"):
        fit_planted(train, targets, test, test_targets, settings.changed(epochs=9), folder=tmp_path)
    assert (tmp_path / STATE).is_file()
    (state,) = tmp_path.glob("*.pt")
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"is damaged .* begins anew"):
        fit_planted(train, targets, test, test_targets, settings, folder=tmp_path)


def test_mistakes_are_named():
    train, targets, _ = planted_boxes(8)
    with pytest.raises(ValueError, match="validation: expected one target per example; got 8 and 7"):
        fit_planted(train, targets, train, targets[:7])
    with pytest.raises(FloatingPointError, match="lower learning rate"):
        fit_planted(train * np.float32(np.inf), targets, train, targets, ProbeSettings(epochs=1))


# -- arms --------------------------------------------------------------------------------------------------------------


def test_the_unfrozen_arm_learns_what_the_frozen_one_cannot(box_task, home):
    settings = ProbeSettings(learning_rate=1e-2, epochs=60, batch=16)
    frozen = frozen_arm(box_task, Tiny(), settings, progress=False)
    model = TinyEncoded()
    before = copy.deepcopy(model.module.state_dict())
    unfrozen = unfrozen_arm(box_task, model, settings, progress=False)
    assert unfrozen.fitted[0].score > 0.8 > 0.3 > frozen.fitted[0].score
    assert unfrozen.table.score.mean() > 0.5 > 0.2 > frozen.table.score.mean()  # IoU
    assert all(torch.equal(before[k], v) for k, v in model.module.state_dict().items())  # the given model is untouched
    assert set(unfrozen.table.arm) == {"unfrozen"} and len(unfrozen.table) == len(box_task.splits["test"])
    trained = unfrozen.fitted[0].module
    assert torch.equal(trained.patch.weight, before["patch.weight"])  # its encoder stays frozen
    assert not torch.equal(trained.queries, before["queries"])


def test_cached_encodings_change_nothing(binary_task, home):
    settings = ProbeSettings(learning_rate=1e-3, epochs=2, batch=16)
    plain, encoded = Tiny(), TinyEncoded()
    first, second = (unfrozen_arm(binary_task, model, settings, progress=False) for model in (plain, encoded))
    np.testing.assert_allclose(first.fitted[0].history.loss, second.fitted[0].history.loss, rtol=2e-3)
    sources = unfrozen_sources(binary_task, encoded, progress=False)
    assert sources["train"].model.looks == 0  # all pictures came from the cache


def test_a_trained_arm_survives_the_disk(binary_task, home, tmp_path):
    model, settings = Tiny(), ProbeSettings(learning_rate=5e-3, epochs=5, batch=16)
    arm = unfrozen_arm(binary_task, model, settings, progress=False)
    folder = save_arm(arm.fitted[0], tmp_path / "arm", model, {"task": "vsr"})
    probe, own, about = load_arm(folder, model)
    assert about["task"] == "vsr" and about["started_from"] == model.weights_hash != own.weights_hash
    names = load_file(folder / "model.safetensors").keys()
    assert "module.queries" in names and not any("unused" in name or "patch" in name for name in names)
    outputs = predict(probe, TrainedTokens(own, binary_task.splits["test"]))
    np.testing.assert_allclose(outputs[:, 0], arm.table.score, atol=0.02)
    frozen = frozen_arm(binary_task, model, settings, progress=False)
    probe, same, _ = load_arm(save_arm(frozen.fitted[0], tmp_path / "frozen", model, {}), model)
    assert same is model
    with pytest.raises(ValueError, match="was trained from tiny"):
        load_arm(folder, Tiny(seed=1))


def test_controls_stand_beside_the_probes(binary_task, box_task, home):
    settings = ProbeSettings(epochs=2)
    for task in (binary_task, box_task):
        table = control_tables(task, settings, progress=False)
        crossed = {"text only, words crossed"} if task.kind == "binary" else set()
        assert set(table.resampler) == {"majority", "random", "text only"} | crossed
        assert (table.groupby("resampler").size() == len(task.splits["test"])).all()


def test_small_tables_are_read_once_and_large_ones_row_by_row(monkeypatch):
    class Counted:
        reads, values = 0, np.random.default_rng(0).normal(size=(40, 2, 3)).astype(np.float16)

        def __len__(self):
            return 40

        def __getitem__(self, rows):
            Counted.reads += len(rows)
            return self.values[rows]

    small, rows = FrozenTokens(Counted()), np.array([3, 1, 39])
    for _ in range(5):
        assert np.array_equal(small.tokens(rows, torch.device("cpu")), Counted.values[rows])
    assert Counted.reads == 41
    copied = pickle.loads(pickle.dumps(FrozenTokens(Counted.values)))
    assert np.array_equal(copied.tokens(rows, torch.device("cpu")), Counted.values[rows])
    monkeypatch.setattr(sources, "IN_MEMORY", 100)
    large = FrozenTokens(Counted())
    for _ in range(5):
        assert np.array_equal(large.tokens(rows, torch.device("cpu")), Counted.values[rows])
    assert Counted.reads == 41 + 1 + 15
