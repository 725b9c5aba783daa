"""Where wrappers come from: shipped, trained here and kept, and what they tell about themselves."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from chat_server import Server
from seewhere import presets, storage
from seewhere.llm_wrapper import asking, experiments, taste, verdicts
from seewhere.llm_wrapper.wrapper import LLMWrapper
from seewhere.models import provenance
from seewhere.models.candidates import make_candidates

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from test_language_model import byte_tokenizer
from test_study import drawable, made_study
from tiny_models import tiny_llama

SMOKE = presets.load("smoke")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("tiny-lm")
    tiny_llama(264, bos_token_id=None, eos_token_id=260, max_position_embeddings=4096).eval().save_pretrained(target)
    byte_tokenizer().save_pretrained(target)
    return target


def one_list(detector: str = "d"):
    boxes = np.array([[0, 0, 20, 20], [40, 40, 70, 70], [75, 0, 95, 30]], float)
    return make_candidates(boxes, ["dog"] * 3, None, detector=detector, top=0)


def test_a_training_here_is_kept_found_again_and_named_by_what_it_depends_on(
    folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = taste.fine_tuned(str(folder), SMOKE, [3])
    kept = list((storage.runs_home() / "wrappers").iterdir())
    assert len(kept) == 1 and "seed3" in kept[0].name
    assert set(tuned.history.stage) == {"scenes"} and "loss" in tuned.history
    assert tuned.origin.startswith("trained here, ") and tuned.detectors == ("scenes",)
    assert tuned.hashes == {
        folder.name: storage.hash_file(folder / "model.safetensors"),
        kept[0].name: storage.hash_file(kept[0] / "adapter" / "adapter_model.safetensors"),
    }
    monkeypatch.setattr(taste, "fine_tune", lambda *a, **k: pytest.fail("trained although it was there"))
    again = taste.fine_tuned(str(folder), SMOKE, [3])
    assert again.hashes == tuned.hashes and again.history.equals(tuned.history)
    asked = [(100, 100)], ["dog"], [one_list()]
    assert np.array_equal(again.wrapper.answer(*asked)[0].probabilities, tuned.wrapper.answer(*asked)[0].probabilities)
    places = {taste.training_folder(str(folder), SMOKE, 3, taste.Source())}
    places.add(taste.training_folder(str(folder), SMOKE, 4, taste.Source()))
    places.add(taste.training_folder(str(folder), presets.with_changes(SMOKE, lora_rank=2), 3, taste.Source()))
    places.add(taste.training_folder(str(folder), SMOKE, 3, taste.Source(drawable(3, 1), "micro")))
    assert len(places) == 4 and kept[0] in places


def test_a_hub_model_is_known_by_its_revision_before_its_first_training(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    monkeypatch.setattr(taste.AutoConfig, "from_pretrained", lambda source: fetched.append(source))
    told = {True: "revision 12", False: "unknown"}
    monkeypatch.setattr(taste.provenance, "weight_hash", lambda source: told[source in fetched])
    places = [taste.training_folder("org/model", SMOKE, 0, taste.Source()) for _ in range(2)]
    assert places[0] == places[1] and fetched

    def offline(source: str) -> None:
        raise OSError("no network")

    monkeypatch.setattr(taste.AutoConfig, "from_pretrained", offline)
    assert taste.training_folder("org/other", SMOKE, 0, taste.Source())  # the loader will tell


def test_a_training_that_was_killed_before_its_end_is_not_taken_for_one(folder: Path, home: Path) -> None:
    place = taste.training_folder(str(folder), SMOKE, 0, taste.Source())
    (place / "adapter").mkdir(parents=True)  # torn: weights were about to be written
    assert (taste.train_here(str(folder), SMOKE, 0) / "adapter_model.safetensors").is_file()


def test_an_endpoint_cannot_be_trained() -> None:
    with pytest.raises(ValueError, match="an endpoint cannot be trained"):
        taste.train_here("http://localhost:1", SMOKE)


def test_before_and_after_read_the_same_text(folder: Path) -> None:
    like = LLMWrapper(None, "center", False)  # type: ignore[arg-type]
    before = taste.untuned(str(folder), SMOKE, [0, 1], like)
    asked = (100, 100), "dog on left", one_list()
    assert before.wrapper.prompt(*asked) == like.prompt(*asked)
    assert before.wrapper.prompt(*asked) != taste.untuned(str(folder), SMOKE).wrapper.prompt(*asked)
    assert list(before.wrappers) == [0, 1] and before.origin == "none"
    assert before.hashes == {folder.name: storage.hash_file(folder / "model.safetensors")}


def test_records_of_two_language_models_do_not_carry_each_others_weights() -> None:
    made = made_study()
    tuned = {
        name: taste.Tuned({0: LLMWrapper(None)}, f"trained on {name}", pd.DataFrame(), (), {name: code})  # type: ignore[arg-type]
        for name, code in (("one", "0a"), ("two", "0b"))
    }
    origins = verdicts.origins("smoke", [0], tuned)
    for name in tuned:
        rows = made.table[made.table.system == "first"]
        made.add(rows.assign(system=experiments.system("first", name), llm=name))
    records = verdicts.gains([made], ["first"], origins, "F6", "gain_p_at_1")
    assert [record["weights"] for record in records] == [
        {"one": "0a", "detector first": "1"},
        {"two": "0b", "detector first": "1"},
    ]
    assert [record["setting"]["training"] for record in records] == ["trained on one", "trained on two"]


def test_transfer_is_to_detectors_that_were_not_read() -> None:
    def tuned(*boxes: str) -> taste.Tuned:
        return taste.Tuned({}, "", pd.DataFrame(), boxes)

    asked = ["micro", "micro-b", "annotations"]
    assert tuned("scenes", "micro").unread(asked) == ["micro-b"]
    assert tuned("scenes").unread(asked) == [], "it read no detector, so there is nothing to transfer from"
    assert tuned("annotations").unread(asked) == []


def test_curves_are_what_the_log_has_two_values_of() -> None:
    log = pd.DataFrame({"step": [1, 2, 3], "loss": [3.0, 2.0, 1.0], "validation_p_at_1": [None, None, 0.5]})
    assert taste.Tuned({}, "", log).curves() == {"loss on the answers": ["loss"]}
    assert taste.Tuned({}, "", pd.DataFrame()).curves() == {}


class Sized:
    """A language model of a given number of weights that takes the first candidate."""

    name = "sized"

    def __init__(self, parameters: int) -> None:
        self.parameters = parameters

    def choose(self, prompts, options):
        return [np.eye(len(o))[0] for o in options]

    def generate(self, prompts, max_new_tokens=16):
        return ["0"] * len(prompts)


@pytest.mark.parametrize(
    ("parameters", "share", "counts"),
    [(3_000_000, 4, (12, 12, 12, 12)), (135_000_000, 4, (8, 4, 4, 4)), (135_000_000, 12, (12, 12, 12, 12))],
)
def test_large_language_models_are_asked_a_share_of_what_is_large(
    parameters: int, share: int, counts: tuple[int, ...]
) -> None:
    settings = presets.with_changes(SMOKE, large_expressions=share, large_side_expressions=2)
    made = [made_study(), made_study()]
    for item in made:
        item.drawn_by = [0] * 6 + [1] * 6
    wrappers = dict.fromkeys([0, 1], LLMWrapper(Sized(parameters)))  # type: ignore[arg-type]
    tuned = taste.Tuned(wrappers, "", pd.DataFrame())
    asking.ask_all(made, ["first", "second"], "sized", tuned, tuned, settings)
    asking.ask_freely(made, ["first", "second"], "sized", tuned, tuned, settings)
    zero = experiments.ZERO_SHOT
    systems = [("first",), ("second",), ("first", zero), ("second", zero)]
    names = [experiments.system(d, "sized", *how) for d, *how in systems]
    assert tuple((made[0].table.system == name).sum() for name in names) == counts
    assert (made[1].table.system == names[2]).sum() == (0 if counts[0] == 8 else 12)
    assert asking.is_large(dataclasses.replace(tuned, wrappers={0: LLMWrapper(object())}))  # type: ignore[arg-type]
    free = experiments.system("first", "sized", free=True)
    assert (made[1].table.system == free).sum() == (12 if parameters < asking.LARGE else 0)


def test_a_served_model_is_asked_as_it_is_and_carries_no_claim(server: Server) -> None:
    server.text = "Box 1."
    tuned = taste.fine_tuned(server.address, SMOKE, [0])
    assert tuned.served and tuned.curves() == {} and tuned.unread(["micro"]) == []
    assert tuned.hashes == {server.address: f"served at {server.address}"}
    item = made_study()
    item.drawn_by = [0] * len(item.expressions)
    asking.ask_all([item], ["first"], server.address, None, tuned, SMOKE)
    asking.ask_freely([item], ["first"], server.address, None, tuned, SMOKE)
    asked = item.table[item.table.llm == server.address]
    assert set(asked.training) == {"as served"} and set(asked.free) == {True, False}
    origins = verdicts.origins("smoke", [0], {server.address: tuned})
    found = verdicts.gains([item], ["first"], origins, "F6", "gain_p_at_1")
    assert [(record["claim"], record["setting"]["training"]) for record in found] == [(None, "as served")]


def test_weights_are_told_apart(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for place in (one, two):
        place.mkdir()
        (place / "model.safetensors").write_bytes(b"weights")
    assert provenance.weight_hash(one) == provenance.weight_hash(two) == storage.hash_file(one / "model.safetensors")
    (two / "more.bin").write_bytes(b"more")
    assert provenance.weight_hash(two) != provenance.weight_hash(one)
    assert provenance.weight_hash("http://localhost:8000") == "served at http://localhost:8000"
    assert provenance.weight_hash("nobody/has-loaded-this") == "unknown"
    assert provenance.weight_hash("no hub id: at all") == "unknown"
    adapter = tmp_path / "run-7" / "adapter"
    adapter.mkdir(parents=True)
    assert (provenance.name_of(adapter), provenance.name_of(one)) == ("run-7", "one")
