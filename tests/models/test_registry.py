import json

import pytest
from seewhere.models import florence2, grounding_dino, micro_detector
from seewhere.models.api import ApiGrounder
from seewhere.models.registry import NAMES, load_grounder
from transformers import BertConfig


@pytest.fixture
def loaded(monkeypatch):
    """What the model classes are asked to load, instead of loading it."""
    calls = []
    for owner in (grounding_dino.GroundingDino, florence2.Florence2, micro_detector.MicroDetector):
        monkeypatch.setattr(
            owner, "load", lambda source, kind=owner.__name__, **options: calls.append((kind, str(source), options))
        )
    return calls


@pytest.mark.parametrize(
    ("source", "options", "expected"),
    [
        ("grounding-dino", {}, ("GroundingDino", "IDEA-Research/grounding-dino-tiny", {})),
        ("gdrec", {"device": "cpu"}, ("GroundingDino", "IDEA-Research/grounding-dino-tiny", {"device": "cpu"})),
        ("gdrec:me/other", {}, ("GroundingDino", "me/other", {})),
        ("florence-2", {"beams": 1}, ("Florence2", "florence-community/Florence-2-base", {"beams": 1})),
        (
            "florence-2:florence-community/Florence-2-large",
            {},
            ("Florence2", "florence-community/Florence-2-large", {}),
        ),
        ("micro", {}, ("MicroDetector", "micro", {})),
        ("micro-b", {"threshold": 0.5}, ("MicroDetector", "micro-b", {"threshold": 0.5})),
    ],
)
def test_names(loaded, source, options, expected):
    load_grounder(source, **options)
    kind, weights, given = expected
    if source.startswith("gdrec"):
        given = {"scoring": "groups"} | given
    assert loaded == [(kind, weights, given)]


@pytest.mark.parametrize(("family", "kind"), [("grounding-dino", "GroundingDino"), ("florence2", "Florence2")])
def test_folders_are_told_apart_by_their_family(loaded, tmp_path, family, kind):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    load_grounder(tmp_path)
    assert loaded == [(kind, str(tmp_path), {})]


def test_a_micro_detector_folder(loaded, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"network": {}, "categories": [], "name": "mine"}))
    load_grounder(tmp_path, threshold=0.1)
    assert loaded == [("MicroDetector", str(tmp_path), {"threshold": 0.1})]


def test_addresses():
    model = load_grounder("https://example.org/ground", name="closed", attempts=2)
    assert isinstance(model, ApiGrounder)
    assert (model.endpoint, model.name, model.attempts) == ("https://example.org/ground", "closed", 2)


def test_what_cannot_be_loaded_is_explained(tmp_path):
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'bert' model, expected one of grounding-dino, florence2"):
        load_grounder(tmp_path)
    with pytest.raises(FileNotFoundError) as caught:
        load_grounder(tmp_path / "nothing")
    assert all(name in str(caught.value) for name in NAMES)
