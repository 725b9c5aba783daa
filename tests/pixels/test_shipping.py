"""From finished stages to weights in the package: what is refused, and that the card tells what the runs left."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from seewhere.models import micro_vlm, micro_vlm_weights
from seewhere.models.micro_clip import MicroClip, build_model
from seewhere.models.micro_text import world_tokenizer
from seewhere.pixels import history, other_tasks, readers, recipe, shipping
from seewhere.pixels.pictures import textures


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """All stages as `seewhere train pixels --stage all` leaves them, without having been trained."""
    tokenizer = world_tokenizer()
    torch.manual_seed(0)
    clip = MicroClip(build_model(len(tokenizer), layers=1, text_layers=1), tokenizer).eval()
    clip.write(tmp_path / "clip")
    model = micro_vlm.build(clip, np.stack([np.asarray(image) for image in textures(10)]))
    known, before = recipe.load().changed(clip=str(tmp_path / "clip")), {
        "1": "", "2": "stage1", "2-on": "stage2", "2-end": "stage2-on", "2-last": "stage2-end", "2-fine": "stage2-last",
        "3": "stage2-fine", "frozen-on": "frozen", "frozen-end": "frozen-on", "frozen-last": "frozen-end",
        "frozen-fine": "frozen-last", "at-once": ""
    }  # fmt: skip
    shown = {"a texture": textures(1, seed=3)[0]}
    for name, place in zip(shipping.SHIPPED_STAGES, shipping.places(tmp_path / "runs"), strict=True):
        start = before.get(name, "stage1")
        given = str(tmp_path / "runs" / start / "model") if start else ""
        settings = dataclasses.asdict(dataclasses.replace(known.stages[name], start=given))
        model.write(place / "model")
        described = {"stage": name, "settings": settings, "pictures": {"scenes": 9, "textures": 4}}
        (place / recipe.TRAINING).write_text(json.dumps(described))
        seen = history.empty_history(shown).with_snapshot(5, name, 40, np.zeros((1, 64, 64, 3), np.uint8))
        seen.write(place / history.FILE)
    return tmp_path / "runs"


def test_finished_stages_are_packed_with_a_card(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "package"
    target.mkdir()
    (target / "old").write_text("")
    shipping.ship(runs, target, scenes=1, pictures={"textures": 1}, progress=False)
    assert str(runs) not in (target / "training.json").read_text(), "no path of this machine in what is shared"
    assert not (target / "old").exists(), "nothing of an earlier shipment stays"
    reader = micro_vlm_weights.unpack("micro-pixels-stage3", target)
    assert reader.tokens == 64
    parts = ["1", "2", "2-on", "2-end", "2-last", "2-fine", "3"]
    assert history.read_history(target / history.FILE).stages.tolist() == parts
    assert history.read_history(target / history.FILES["micro-pixels-frozen"]).stages.tolist() == [
        "1",
        "frozen",
        "frozen-on",
        "frozen-end",
        "frozen-last",
        "frozen-fine",
    ]
    told = other_tasks.shipped_rows(folder=target)
    assert told.model.unique().tolist() == ["stage1", "stage2", "stage3", "frozen", "at-once"]
    card = (target / "README.md").read_text()
    assert "| stage2 | stage1 | trained | 2000 x 8 | colour 0.5, mask 0.15, refer 0.2" in card
    assert "| frozen | stage1 | frozen | 2000 x 8 | colour 0.5, mask 0.15, refer 0.2" in card
    assert (
        "| stage2-on | stage2 | trained | 3000 x 8 |" in card and "| frozen-on | frozen | frozen | 3000 x 8 |" in card
    )
    assert "in\n5 parts each; what ships is the end of the last (`-fine`)" in card
    assert (
        "9 scenes, 4 textures" in card and "| blur 8x8 |" in card and "| 64/48/12 | 0.0015 | held | the last |" in card
    )
    assert "| 700 x 16 |" in card and "| 0.0006 | trained | mean with the first |" in card
    monkeypatch.setattr(readers, "FOLDER", target)
    account = readers.how_trained(["micro-pixels-stage2"]).splitlines()
    assert account[0].startswith(f"encoder at the start: {tmp_path / 'clip'}")
    assert account[1].startswith("All by one recipe")


@pytest.mark.parametrize(("part", "steps"), [("frozen", 2000), ("frozen-on", 3000)])
def test_a_baseline_that_differs_in_more_than_its_encoder_is_refused(runs: Path, part: str, steps: int) -> None:
    path = runs / part / recipe.TRAINING
    made = json.loads(path.read_text())
    made["settings"]["steps"], made["pictures"]["textures"] = 7, 5
    path.write_text(json.dumps(made))
    with pytest.raises(ValueError, match=rf"differs in: steps 7 against {steps}; pictures .*'textures': 5"):
        shipping.ship(runs, runs.parent / "package")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{part}: no finished stage; make all with seewhere train pixels"):
        shipping.ship(runs, runs.parent / "package")
    assert not (runs.parent / "package").exists()
