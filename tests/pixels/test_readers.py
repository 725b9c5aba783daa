"""A model for pixels by one argument: names, folders, chat models, and what stands in for missing weights."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from seewhere.models import registry
from seewhere.models.chat_pixels import ChatPixelReader
from seewhere.models.protocols import PixelReader as Protocol
from seewhere.pixels import other_tasks, readers
from seewhere.pixels.reader import PixelReader


@pytest.fixture
def without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(source: str, *_: object, **__: object) -> None:
        raise FileNotFoundError(f"no weights of {source}")

    monkeypatch.setattr(readers, "load_minigpt", missing)


def test_missing_weights_are_refused_with_the_command_that_makes_them(without_weights: None) -> None:
    with pytest.raises(FileNotFoundError, match=r"'micro-pixels-stage3' are not here .*seewhere train pixels"):
        readers.load("micro-pixels-stage3")


def test_a_stand_in_says_what_it_is_and_answers_everything(without_weights: None, capsys) -> None:
    found = readers.load_all(["micro-pixels-frozen", "micro-pixels-stage2"], stand_in=True)
    said = capsys.readouterr().out
    assert said.count("tiny and untrained, stands in. Its answers mean nothing") == 2
    assert list(found) == ["frozen", "stage2"] and all(isinstance(r, Protocol) for r in found.values())
    assert "untrained" in readers.describe(found["frozen"])
    image, points = Image.new("RGB", (30, 20), "red"), np.array([[1.0, 2.0], [29.0, 19.0]])
    reader = found["stage2"]
    assert reader.read_pixels([image], [points])[0].shape == (2, 3)
    assert reader.find_boxes([image], ["the dog"]).shape == (1, 4) and len(reader.read_mask(image, "dog", points)) == 2
    hashes = readers.fingerprints(found)
    assert hashes["frozen"] != hashes["stage2"] and hashes == readers.fingerprints(found)


def test_a_folder_is_a_model(tmp_path: Path) -> None:
    tiny = readers.tiny_reader("mine", seed=3)
    tiny.model.write(tmp_path / "m")
    found = readers.load(str(tmp_path / "m"))
    assert isinstance(found, PixelReader) and readers.short_name(str(tmp_path / "m")) == "m"
    image = Image.new("RGB", (8, 8), "blue")
    points = [np.array([[1.0, 1.0], [6.0, 2.0]])]
    np.testing.assert_array_equal(found.read_pixels([image], points)[0], tiny.read_pixels([image], points)[0])


def test_a_folder_below_home_is_found_and_models_of_one_name_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("stage1", "stage2"):
        readers.tiny_reader(name).model.write(tmp_path / name / "model")
    assert list(readers.load_all(["~/stage1/model", "~/stage2/model"])) == ["stage1", "stage2"]
    with pytest.raises(FileNotFoundError, match=r"holds no model: .*stage1/model is one"):
        readers.load(str(tmp_path / "stage1"))
    with pytest.raises(ValueError, match="both called 'stage1'"):
        readers.load_all(["~/stage1/model", "~/stage1"])
    main = {"frozen": readers.tiny_reader("frozen")}
    assert list(readers.beside(main, ["~/stage1/model"])) == ["frozen", "stage1"]
    with pytest.raises(ValueError, match="as one of the main models"):
        readers.beside(main, ["micro-pixels-frozen"])


def test_rows_of_the_package_are_not_told_of_other_models() -> None:
    assert len(other_tasks.shipped_rows(["micro-pixels-frozen", "micro-pixels-stage2"]))
    assert other_tasks.shipped_rows(["micro-pixels-frozen", "/models/mine"]).empty


def test_a_model_without_prompts_for_the_other_tasks_is_named() -> None:
    with pytest.raises(ValueError, match="frozen is object, which cannot be asked"):
        other_tasks.rows({"frozen": object()}, 1)


def test_what_is_no_model_names_what_could_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected one of .*micro-pixels-stage3.*minigpt-v2:FOLDER"):
        readers.load(str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError):
        readers.load(f"minigpt-v2:{tmp_path}")
    assert set(registry.MINIGPTS) >= {"micro-pixels-frozen", "micro-pixels-stage2", "micro-pixels-stage3"}
    monkeypatch.setattr(ChatPixelReader, "load", classmethod(lambda cls, source, **options: (source, options)))
    assert readers.load("org/chat", progress=False) == ("org/chat", {"progress": False})
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "chat").mkdir()
    (tmp_path / "chat" / "config.json").write_text("{}")
    assert readers.load("~/chat")[0] == str(tmp_path / "chat")
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        readers.load("minigpt-v2:~/nothing")


def test_other_tasks_are_one_row_a_question_and_the_same_for_all() -> None:
    found = other_tasks.rows({"a": readers.tiny_reader(), "b": readers.tiny_reader()}, 2, progress=False)
    assert len(found) == 2 * 2 * 4 and found.score.between(0, 1).all()
    sides = [part.reset_index(drop=True).drop(columns="model") for _, part in found.groupby("model")]
    assert sides[0].equals(sides[1]), "the same model is asked the same questions"


class Knowing:
    """Answers all tasks from the scene; names the wrong thing in every caption."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def find_boxes(self, images, phrases):
        self.asked += phrases
        return np.zeros((len(images), 4))

    def name_regions(self, images, boxes):
        return ["the big red hot dog on the left"]

    def answer(self, images, questions):
        return ["Yes "]

    def describe(self, images):
        return ["two dogs and a traffic light"]


def test_scores_of_the_other_tasks() -> None:
    assert other_tasks.named("two Hot dogs and a traffic light, three sheep") == {"hot dog", "traffic light", "sheep"}
    assert other_tasks.named("nothing") == set()
    assert other_tasks.f1({"dog", "cat"}, {"dog"}) == pytest.approx(2 / 3) and other_tasks.f1(set(), {"dog"}) == 0
    table = other_tasks.rows({"knowing": Knowing()}, 12, progress=False)
    found = other_tasks.means(table)["knowing"]
    assert found["refer"] == 0 and 0 < found["question"] < 1 and found["caption"] < 0.5


def test_rows_travel_with_the_weights(tmp_path: Path) -> None:
    table = other_tasks.rows({"a": Knowing()}, 2, progress=False)
    other_tasks.write(table, tmp_path)
    assert other_tasks.shipped_rows(folder=tmp_path).score.tolist() == pytest.approx(table.score.tolist(), abs=1e-3)
    assert other_tasks.shipped_rows(folder=tmp_path / "nothing").empty


def test_how_models_were_trained_is_on_record_or_said_not_to_be(tmp_path: Path) -> None:
    told = readers.how_trained(["micro-pixels-frozen", "micro-pixels-stage2"])
    lines = told.splitlines()
    assert lines[0].startswith("encoder at the start: ") and len(lines) == 2, "the package's card, once"
    assert "**" not in told and len(lines[1]) > 100
    settings = {"steps": 7, "images": 2, "mixture": {"colour": 0.5}, "learning_rate": 1e-3, "start": "", "clip": "own"}
    (tmp_path / "training.json").write_text(json.dumps({"stage": "1", "settings": settings}))
    found = readers.how_trained([str(tmp_path / "model"), str(tmp_path / "a" / "model")]).splitlines()
    assert found[0].endswith("stage 1, 7 steps of 2 pictures (colour 0.5), rate 0.001, from own")
    assert found[1].endswith("nothing on record")
