"""The notebook's models: stand-ins answer like the real ones, scores come from the cards' numbers."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from seewhere import storage
from seewhere.models import micro_clip
from seewhere.models.resamplers import NAMES
from seewhere.probing import micro_models
from seewhere.probing.protocols import EncodedResampler

PICTURES = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
TEXTS = ["a red dog", "the cat to the left of the bus"]


@pytest.fixture
def no_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(micro_clip, "WEIGHTS", tmp_path / "weights")
    return tmp_path / "weights"


def test_missing_weights_are_refused_with_the_command_or_stood_in_for(no_weights, capsys):
    with pytest.raises(FileNotFoundError, match="seewhere train qformer --kind blip2"):
        micro_models.load_models(["micro-blip2"])
    models = micro_models.load_models(NAMES, stand_ins=True)
    assert list(models) == list(NAMES) and all(model.untrained for model in models.values())
    assert capsys.readouterr().out.count(micro_models.UNTRAINED) == len(NAMES)
    for name, model in models.items():
        assert isinstance(model, EncodedResampler)
        found = model.features(PICTURES, TEXTS, model.layers)
        assert {values.shape[0] for values in found.values()} == {2}
        assert np.isfinite(found[model.layers[-1]]).all()
        if name != "micro-patches":
            assert ((model.match(PICTURES, TEXTS) > 0) & (model.match(PICTURES, TEXTS) < 1)).all()
    with pytest.raises(FileNotFoundError):
        micro_models.load_models(["no-such-model"], stand_ins=True)
    with pytest.raises(ValueError, match="no micro resampler"):
        micro_models.untrained("no-such-model")


def test_a_stand_in_is_the_same_every_time(no_weights):
    first, second = (micro_models.untrained("micro-blip2") for _ in range(2))
    assert first.fingerprint == second.fingerprint != micro_models.untrained("micro-blip2", seed=1).fingerprint


def test_scores_are_those_of_the_training(no_weights):
    matching = {"accuracy": 0.84, "paired": 0.9, "blind": 0.5, "by_twist": {}, "statements": 2000}
    cell = {"accuracy": 0.95, "away_from_lines": 0.99, "majority": 0.2, "what": 0.8, "objects": 3000}
    clip = {"retrieval_at_1": 0.7, "retrieval_scenes": 1000, "zero_shot": {"dog": 0.9, "cat": 0.7},
            "cell": {"attention": cell, "evidence": cell, "pointed": cell}}  # fmt: skip
    scores = {
        "micro-clip": clip,
        "micro-blip2": {"scenes": 1000, "matching": matching, "retrieval_at_1": 0.6},
        "micro-instruct": {"scenes": 1000, "matching": matching, "answers": {"all": 0.8}},
    }
    for name, values in scores.items():
        storage.atomic_write_json(no_weights / name / "config.json", {})
        storage.atomic_write_json(no_weights / name / "training.json", {"scores": values})
    table = micro_models.training_scores(["micro-blip2", "micro-instruct", "micro-perceiver"])
    assert table.groupby("model", sort=False).size().to_dict() == {
        "micro-clip": 6, "micro-blip2": 4, "micro-instruct": 4,
    }  # fmt: skip
    judged = table.dropna(subset="target")
    assert judged.value.tolist() == [0.7, 0.95, 0.9, 0.84]
    assert judged.target.tolist() == [0.6, 0.9, 0.85, 0.85]
    assert "named" not in " ".join(judged.score)  # the target is for objects that are pointed at
    assert table.value[1] == pytest.approx(0.8)  # the mean over categories


def test_place_in_patch_tokens_is_measured_and_left_out_where_there_is_no_micro_eye(no_weights, tmp_path, monkeypatch):
    monkeypatch.setenv("SEEWHERE_HOME", str(tmp_path))
    model = micro_models.load_models(["micro-patches"], stand_ins=True)["micro-patches"]
    table = micro_models.position_control(model, 24)
    assert table.object.tolist() == ["pointed at", "pointed at, encoder alone", "named"]
    assert table.cell.between(0, 1).all() and (table.objects > 0).all()
    assert micro_models.position_control(model, 0).empty
    assert micro_models.position_control(object(), 24).empty
    assert isinstance(table, pd.DataFrame)


def test_two_models_of_one_name_are_refused(no_weights):
    with pytest.raises(ValueError, match="both called 'micro-patches'"):
        micro_models.load_models(["micro-patches", "micro-patches"], stand_ins=True)
