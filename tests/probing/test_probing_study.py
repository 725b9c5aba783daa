"""The study as the notebook runs it, on small models that really look."""

from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch
from seewhere import presets, storage
from seewhere.probing import arms, experiments, study, tasks, training, verdicts
from seewhere.world import export
from tiny import TinyEncoded, make_task

FAST = {"learning_rate": 1e-2, "epochs": 2}


@pytest.fixture
def main(tmp_path, monkeypatch):
    monkeypatch.setenv("SEEWHERE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(study, "SHIPPED", tmp_path / "shipped")
    made = {"rec": make_task(tmp_path / "boxes", "box"), "vsr": make_task(tmp_path / "statements", seed=1)}
    settings = presets.with_changes(presets.load("smoke", "01"), seeds=[0, 1])
    return study.Study(settings, made, {"tiny": TinyEncoded()}, [0, 1])


def test_frozen_probes_are_those_of_the_single_arm_in_one_process_and_in_two(main):
    table = main.frozen(["tiny"], ["rec", "vsr"], "all", (1, 2))
    assert len(table) == 2 * 2 * 2 * 2 * 24  # tasks, layers, sizes, seeds, examples
    settings = main.probe_settings("vsr", main.models["tiny"], "frozen")
    alone = experiments.frozen_arm(main.tasks["vsr"], main.models["tiny"], settings, [1], "early", progress=False).table
    same = table[(table.task == "vsr") & (table.layer == "early") & (table.seed == 1) & (table.probe_layers == 1)]
    assert np.allclose(same.score, alone.score)
    main.settings = presets.with_changes(main.settings, workers=2)
    pd.testing.assert_frame_equal(main.frozen(["tiny"], ["rec", "vsr"], "all", (1, 2)), table)


def test_larger_probes_may_have_a_rate_of_their_own(main):
    usual = main.frozen(["tiny"], ["vsr"], probe_layers=(1, 2))
    main.settings = presets.with_changes(main.settings, larger_probe_rate=1e-6)
    slower = main.frozen(["tiny"], ["vsr"], probe_layers=(1, 2))
    same = [np.allclose(*(t[t.probe_layers == size].score for t in (usual, slower))) for size in (1, 2)]
    assert same == [True, False]


def test_earlier_layers_and_seeds_of_ones_own(main):
    table = main.frozen(["tiny"], ["vsr"], "earlier", seeds=[7])
    assert set(table.layer) == {"early"} and set(table.seed) == {7}
    main.models["flat"] = TinyEncoded(name="flat")
    main.models["flat"].layers = ("late",)
    assert set(main.frozen(["flat", "tiny"], ["vsr"], "earlier").resampler) == {"tiny"}
    assert main.frozen(["flat"], ["vsr"], "earlier").empty


def ship(main, seed, **facts):
    """Train an arm with the study's own settings, three epochs of them, and ship it."""
    changed = {**main.settings.vsr_qformer_unfrozen, "epochs": 3}
    main.settings = presets.with_changes(main.settings, vsr_qformer_unfrozen=changed)
    model = main.models["tiny"]
    settings = main.probe_settings("vsr", model, "unfrozen", seed=seed)
    arm = experiments.unfrozen_arm(main.tasks["vsr"], model, settings, [seed], progress=False)
    about = {**arms.facts_of(main.tasks["vsr"]), **facts}
    arms.save_arm(arm.fitted[seed], study.SHIPPED / f"vsr-tiny-{seed}", model, about)
    return arm.table


def shipped(main, model=None, **changes):
    model = model or main.models["tiny"]
    settings = main.probe_settings("vsr", model, "unfrozen", **{"seed": 0, **changes})
    return study.shipped_arm(main.tasks["vsr"], model, settings)


def test_shipped_arms_are_scored_and_missing_ones_are_trained_under_the_first_seed_alone(main):
    trained = ship(main, 1)
    table = main.unfrozen(["tiny"], ["vsr"])
    count = len(main.tasks["vsr"].splits["train"])
    assert set(table.seed) == {0, 1} and set(table.arm) == {"unfrozen"}
    assert np.allclose(table[table.seed == 1].score, trained.score, atol=1e-2)  # written in half precision
    assert main.origins == {
        "vsr tiny 0": "trained here for 1 epochs",
        "vsr tiny 1": f"shipped, 3 epochs of {count} examples",
    }
    assert main.histories["vsr", "tiny", 1].epoch.tolist() == [1, 2, 3]
    both = pd.concat([main.frozen(["tiny"], ["vsr"]), table])
    (record,) = verdicts.gaps(both, main.origin())
    made = f"unfrozen: shipped, 3 epochs of {count} examples; trained here for 1 epochs"
    assert record["setting"]["training"] == made
    told = {r["setting"]["arm"]: r["setting"]["training"] for r in verdicts.accuracies(both, main.origin())}
    assert told == {"frozen": "frozen only", "unfrozen": made}, "each record tells of the arms in it"
    assert record["metric"] == "gap" and record["setting"]["task"] == "vsr" and record["n"] == 2 * 24
    assert record["claim"] is None, "one of the two arms is a taste"
    full = both[both.seed == 1]
    assert verdicts.gaps(full, main.origin())[0]["claim"] == "F1"


def test_under_other_seeds_the_arms_that_ship_are_compared_with_new_probes(main):
    ship(main, 0)
    main.settings = presets.with_changes(main.settings, unfrozen="shipped")
    scores = main.unfrozen(["tiny"], ["vsr"]).score
    main.seeds = [30, 31]
    table = main.unfrozen(["tiny"], ["vsr"])
    assert set(table.seed) == {30} and np.array_equal(table.score, scores)
    assert main.origins["vsr tiny 30"].endswith("(of the seeds that ship)")
    (record,) = verdicts.gaps(pd.concat([main.frozen(["tiny"], ["vsr"]), table]), main.origin())
    assert record["claim"] == "F1" and record["seeds"] == [30]


def test_arms_that_are_shown_grey_say_the_same_of_every_picture(main):
    ship(main, 0)
    table, grey = main.unfrozen(["tiny"], ["vsr"]), main.blind()
    assert set(grey.arm) == {study.GREY} and set(grey.seed) == {0} and len(grey) == 24
    main.settings = presets.with_changes(main.settings, blind_examples=5)
    assert len(main.blind()) == 5
    spread = [part.groupby("text").score.agg(np.ptp).max() for part in (grey, table[table.seed == 0])]
    assert spread[0] < 1e-5 < spread[1]


def test_where_tastes_are_not_asked_for_a_missing_arm_is_left_out_with_a_line(main, capsys):
    ship(main, 1)
    main.settings = presets.with_changes(main.settings, unfrozen="shipped")
    table = main.unfrozen(["tiny"], ["vsr", "rec"])
    assert set(table.task) == {"vsr"} and set(table.seed) == {1}
    said = capsys.readouterr().out
    assert "rec, tiny: no unfrozen arm ships. Train it" in said and "vsr, tiny: no unfrozen arm ships. Train" in said
    frozen = main.frozen(["tiny"], ["vsr", "rec"], probe_layers=[1, 2])
    both = pd.concat([frozen, table])
    assert [record["setting"]["task"] for record in verdicts.gaps(both, main.origin())] == ["vsr"]
    assert verdicts.bigger_probes(frozen[frozen.task == "rec"], table, main.origin()) == []
    assert len(verdicts.bigger_probes(frozen[frozen.task == "vsr"], table, main.origin())) == 1


def test_an_arm_of_other_data_weights_or_settings_is_not_used_and_the_reason_is_told(main):
    ship(main, 0)
    assert shipped(main) == (study.SHIPPED / "vsr-tiny-0", "")
    assert shipped(main, seed=1) == (None, "")  # none ships
    assert shipped(main, epochs=4, learning_rate=0.5) == (None, "it was trained with learning_rate 0.005, epochs 3")
    folder, why = shipped(main, TinyEncoded(seed=1))
    assert folder is None and "other weights" in why
    whole = main.tasks["vsr"]
    fewer = {**whole.splits, "train": whole.splits["train"][1:]}  # the same data set, another draw
    main.tasks = {**main.tasks, "vsr": replace(whole, splits=fewer)}
    assert shipped(main) == (None, "it was trained on other examples")
    main.unfrozen(["tiny"], ["vsr"])
    assert main.origins["vsr tiny 0"].endswith("(the shipped arm is left out: it was trained on other examples)")
    main.tasks = {**main.tasks, "vsr": whole}
    ship(main, 0, source="elsewhere")
    assert shipped(main) == (None, "it is of elsewhere")


def test_an_arm_may_have_learnt_from_a_larger_build_of_the_same_world(main):
    ship(main, 0, train_world="full", train_hash="of many more")
    assert shipped(main) == (None, "it was trained on other examples")
    whole = replace(main.tasks["vsr"], larger="full")
    main.tasks = {**main.tasks, "vsr": whole}
    assert shipped(main) == (study.SHIPPED / "vsr-tiny-0", "")
    other = {**whole.splits, "validation": whole.splits["validation"][1:]}  # another world's
    main.tasks = {**main.tasks, "vsr": replace(whole, splits=other)}
    assert shipped(main) == (None, "it was trained on other examples")


def test_the_train_split_of_a_larger_build_leaves_the_others_as_they_are(main, tmp_path):
    small = main.tasks["vsr"]
    root = export.build(tmp_path / "larger", "smoke", progress=False)
    larger = tasks.with_train_of(small, root, "random", 30)
    assert len(larger.splits["train"]) == 30
    assert larger.splits["test"] == small.splits["test"] and larger.splits["validation"] == small.splits["validation"]
    trained = {e.image_id for e in larger.splits["train"]}
    assert trained.isdisjoint({e.image_id for e in small.splits["test"] + small.splits["validation"]})


def test_arms_on_statements_may_read_many_about_each_picture(main):
    small = replace(main.tasks["vsr"], larger="smoke")
    preset = {"unfrozen_examples": 30, "unfrozen_statements": 0}
    few = tasks.with_larger_train(small, preset, "random", progress=False)
    dense = tasks.with_larger_train(small, {**preset, "unfrozen_statements": 20}, "random", progress=False)
    assert len(few.splits["train"]) == 30 < len(dense.splits["train"])
    assert {e.image_id for e in few.splits["train"]} <= {e.image_id for e in dense.splits["train"]}
    assert dense.splits["test"] == small.splits["test"] and dense.larger == "smoke"
    assert all(e.picture.path.is_file() for e in dense.splits["train"])


def test_a_training_may_begin_with_the_arm_of_another_task(main):
    main.settings = presets.with_changes(main.settings, unfrozen="train")
    main.seeds, base = [0], main.models["tiny"]
    ship(main, 0)  # one that began with the resampler as it is
    main.tasks = {**main.tasks, "vsr": replace(main.tasks["vsr"], start="rec")}
    assert shipped(main) == (None, "its training began with the resampler as it is")
    begun = main._begin("vsr", base, 0)
    assert begun.weights_hash != base.weights_hash
    boxes = dict(main.trained["rec", "tiny", 0][1].module.named_parameters())
    before = dict(base.module.named_parameters())
    assert all(torch.equal(value, boxes[name]) for name, value in begun.module.named_parameters())
    assert any(not torch.equal(value, before[name]) for name, value in begun.module.named_parameters())
    main.unfrozen(["tiny"], ["vsr"])
    assert main.origins["vsr tiny 0"].endswith("after those of rec") and " after " not in main.origins["rec tiny 0"]


def test_a_start_trained_here_is_found_under_the_study_s_own_seed(main):
    """Another `seed` of the notebook gives other numbers than those of the arms that ship; none ships here."""
    main.settings = presets.with_changes(main.settings, unfrozen="train", seeds=[0])
    main.seeds = [10]
    main.tasks = {**main.tasks, "vsr": replace(main.tasks["vsr"], start="rec")}
    table = main.unfrozen(["tiny"], ["vsr"])
    assert table.seed.unique().tolist() == [10] and ("rec", "tiny", 10) in main.trained
    assert main.origins["vsr tiny 10"].endswith("after those of rec")


def test_arms_that_nobody_reads_again_are_not_kept(main):
    main.settings = presets.with_changes(main.settings, unfrozen="train")
    main.seeds = [0, 1]
    main.unfrozen(["tiny"], ["vsr"])
    assert list(main.trained) == [("vsr", "tiny", 0)] and len(main.histories) == 2


def test_a_target_that_differs_makes_other_examples(main):
    examples = main.tasks["vsr"].splits["train"]
    turned = [replace(examples[0], target=(1 - examples[0].target[0],)), *examples[1:]]
    assert tasks.examples_hash(turned) != tasks.examples_hash(examples) == tasks.examples_hash(list(examples))


def test_unfrozen_trainings_are_kept_and_go_on_where_they_were_killed(main, monkeypatch):
    class KilledError(BaseException):
        pass

    changed = {**main.settings.vsr_qformer_unfrozen, "epochs": 3}
    main.settings = presets.with_changes(main.settings, unfrozen="train", vsr_qformer_unfrozen=changed)
    main.seeds = [0]
    begun = []

    def count(run, limit):
        begun.append(run.epoch)
        if len(begun) > limit:
            raise KilledError
        return one_epoch(run)

    one_epoch = training._Run.one_epoch
    monkeypatch.setattr(training._Run, "one_epoch", lambda run: count(run, 2))
    with pytest.raises(KilledError):
        main.unfrozen(["tiny"], ["vsr"])
    monkeypatch.setattr(training._Run, "one_epoch", lambda run: count(run, 99))
    table = main.unfrozen(["tiny"], ["vsr"])
    assert begun == [0, 1, 2, 2]  # the third was cut off; nothing finished was done again
    assert len(main.histories["vsr", "tiny", 0]) == 3
    pd.testing.assert_frame_equal(main.unfrozen(["tiny"], ["vsr"]), table)
    assert len(begun) == 4  # a finished one is read
    main.models = {"tiny": TinyEncoded(seed=1)}
    main.unfrozen(["tiny"], ["vsr"])
    assert begun[4:] == [0, 1, 2]  # other weights, another training


def test_everything_is_trained_where_the_preset_says_so(main):
    ship(main, 0)
    main.settings = presets.with_changes(main.settings, unfrozen="train")
    table = main.unfrozen(["tiny"], ["vsr"])
    assert set(table.seed) == {0, 1} and set(main.origins.values()) == {"trained here for 3 epochs"}
    before = storage.read_json(study.SHIPPED / "vsr-tiny-0" / arms.ABOUT)["started_from"]
    assert main.models["tiny"].weights_hash == before  # the given model stays as it is


def test_controls_are_named_and_whole_models_asked(main):
    class Whole:
        name = "oracle"

        def match(self, images, statements):
            return [1.0] * len(statements)

    main.models["oracle"] = Whole()
    main.models["oracle"].resampler = Whole()
    table = main.controls(["tiny", "oracle"], ["rec", "vsr"])
    assert table.groupby("task").resampler.unique().map(list).to_dict() == {
        "rec": ["majority", "random", "text only"],
        "vsr": ["majority", "random", "text only", "text only, words crossed", "oracle, asked"],
    }
    asked = table[table.resampler == "oracle, asked"]
    assert asked.correct.tolist() == [target == 1 for target in asked.target]
    assert 0 <= main.majority("vsr") <= 1


def test_a_search_changes_the_settings_that_follow(main):
    main.settings = presets.with_changes(main.settings, search_learning_rates=[0.2, 0.3], search_vsr_epochs=[3])
    trials = main.search(["tiny"], ["vsr"])
    assert len(trials) == 2 and set(trials.task) == {"vsr"}
    found = main.probe_settings("vsr", main.models["tiny"], "frozen")
    assert 0.2 <= found.learning_rate <= 0.3 and found.epochs == 3
    shown = main.chosen_settings(["tiny"]).set_index(["task", "arm"])
    assert shown.loc[("vsr", "frozen"), "epochs"] == 3 and shown.loc[("vsr", "unfrozen"), "epochs"] == 1


def test_metrics_and_the_pictures_of_one_seed(main):
    table = pd.concat([main.frozen(["tiny"], ["rec"]), main.unfrozen(["tiny"], ["rec"])])
    assert study.metrics_of(table).keys() == {"rec, tiny, frozen", "rec, tiny, unfrozen"}
    shown = main.gallery_tables(table, "rec", "tiny")
    assert list(shown) == ["frozen", "unfrozen"] and all(set(part.seed) == {0} for part in shown.values())
    assert len(main.live("rec", "tiny", epochs=2).history) == 2


def test_a_live_look_reads_as_many_examples_as_the_preset_says(main, monkeypatch):
    arm = Mock(wraps=experiments.unfrozen_arm)
    monkeypatch.setattr(experiments, "unfrozen_arm", arm)
    for examples in (0, 7):
        main.settings = presets.with_changes(main.settings, live_unfrozen_examples=examples)
        main.live("rec", "tiny", epochs=1)
    read = [len(call.args[0].splits["train"]) for call in arm.call_args_list]
    assert read == [len(main.tasks["rec"].splits["train"]), 7]


def test_layered_tasks_are_computed_in_one_pass(main, monkeypatch):
    features = Mock(wraps=experiments.cached_features)
    monkeypatch.setattr(experiments, "cached_features", features)
    main.layered = ["rec"]
    main.frozen(["tiny"], ["rec", "vsr"])
    every = tuple(main.models["tiny"].layers)
    passes = [tuple(call.args[2]) for call in features.call_args_list]
    assert passes == 3 * [every] + 3 * [every[-1:]]


def test_what_cannot_be_trained_along_is_passed_over_with_a_line(main, capsys):
    main.models["fixed"] = TinyEncoded(name="fixed")
    main.models["fixed"].module.requires_grad_(False)
    nothing = main.unfrozen(["fixed"], ["vsr"])
    assert nothing.empty and "fixed: nothing in it can be trained along" in capsys.readouterr().out
    frozen = main.frozen(["fixed"], ["vsr"], probe_layers=[1, 2])
    both = study.together(frozen, nothing)
    pd.testing.assert_frame_equal(both, frozen)  # types too
    assert verdicts.bigger_probes(frozen, nothing, main.origin()) == [] == verdicts.gaps(both, main.origin())
    assert set(main.unfrozen(["fixed", "tiny"], ["vsr"]).resampler) == {"tiny"}


def test_the_arms_stand_in_a_table_with_a_row_each(main):
    ship(main, 1)
    main.unfrozen(["tiny"], ["vsr"])
    shown = main.arms_table()
    assert shown[["task", "model", "seed", "epochs"]].values.tolist() == [["vsr", "tiny", 0, 1], ["vsr", "tiny", 1, 3]]
    assert shown["how it came to be"].tolist() == [
        "trained here for 1 epochs",
        f"shipped, 3 epochs of {len(main.tasks['vsr'].splits['train'])} examples",
    ]
    assert (shown["best epoch"] <= shown.epochs).all()


def test_a_search_is_kept_for_the_model_that_it_was_of(main):
    """Two Q-Formers are of one kind and may want different settings."""
    main.models["other"] = TinyEncoded(seed=3, name="other")
    before = main.probe_settings("vsr", main.models["other"], "frozen")
    main.settings = presets.with_changes(main.settings, search_learning_rates=[0.2, 0.3])
    main.search(["tiny"], ["vsr"])
    assert main.probe_settings("vsr", main.models["other"], "frozen") == before
    assert main.probe_settings("vsr", main.models["tiny"], "frozen").learning_rate >= 0.2


def test_folders_of_pictures_reach_the_readers(main, monkeypatch):
    seen = {}

    def read(name, *_, images):
        seen[name] = images
        return main.tasks["vsr"]

    monkeypatch.setattr(study, "load_task", read)
    study.load_tasks(main.settings, "world", images=("photos", "vsr-photos"))
    assert seen == {"rec": "photos", "vsr": "vsr-photos", "rcm": "photos"}
    seen.clear()
    study.load_tasks(main.settings, "world")
    assert set(seen.values()) == {None}
