"""ViLT as an upper baseline, on a tiny random one saved to disk and loaded like the real one."""

import shutil

import numpy as np
import pytest
import torch
from seewhere import presets
from seewhere.probing.adapter import load_probed
from seewhere.probing.experiments import unfrozen_arm
from seewhere.probing.features import open_pictures
from seewhere.probing.protocols import EncodedResampler, TrainableResampler
from seewhere.probing.settings import kind_of, settings_of
from seewhere.probing.training import ProbeSettings
from seewhere.probing.vilt import Vilt
from tiny_blip import write_vilt
from transformers import ViltConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_vilt(tmp_path_factory.mktemp("vilt"))


def test_its_token_is_its_own_pooled_state(folder, binary_task):
    model = load_probed(folder)
    assert isinstance(model, Vilt) and isinstance(model, TrainableResampler) and not isinstance(model, EncodedResampler)
    examples = binary_task.splits["test"][:6]
    images, texts = open_pictures(examples), [e.text for e in examples]
    found = model.features(images, texts)["pooled"]
    inputs = model.processor(images=images, text=texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        own = model.module(**inputs).pooler_output
    np.testing.assert_allclose(found[:, 0], own, atol=1e-5)
    assert found.shape == (6, 1, 32)
    long = model.features(images[:1], ["the red square is on the left " * 9])["pooled"]
    assert np.isfinite(long).all()


def test_it_is_fine_tuned_as_a_whole(folder, binary_task, home):
    model = load_probed(folder)
    arm = unfrozen_arm(binary_task, model, ProbeSettings(learning_rate=1e-3, epochs=1, batch=24), progress=False)
    trained, before = arm.fitted[0].module.state_dict(), model.module.state_dict()
    changed = {name for name in before if not torch.equal(before[name], trained[name])}
    assert any("embeddings" in name for name in changed) and any("encoder.layer.0" in name for name in changed)
    assert set(arm.table.resampler) == {"vilt"}


def test_it_learns_boxes_by_settings_of_its_own(folder, box_task, home):
    model = load_probed(folder)
    settings = settings_of(presets.load("paper", "01"), "rec", kind_of(model.name), "unfrozen")
    assert (settings.learning_rate, settings.weight_decay) == (1e-4, 0.01)
    arm = unfrozen_arm(box_task, model, settings.changed(epochs=1, batch=24), progress=False)
    boxes = arm.fitted[0].probe(torch.from_numpy(model.features(*pairs(box_task))["pooled"]))
    assert boxes.shape == (6, 4) and len(arm.table) == len(box_task.splits["test"])


def pairs(task):
    examples = task.splits["test"][:6]
    return open_pictures(examples), [e.text for e in examples]


def test_another_preparation_of_pictures_is_another_model(folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (other / name).is_file():
            text = (other / name).read_text()
            (other / name).write_text(text.replace("0.5", "0.4"))
    assert Vilt.load(other).weights_hash != Vilt.load(folder).weights_hash == Vilt.load(folder).weights_hash


def test_another_family_is_refused(folder, tmp_path):
    ViltConfig(model_type="vilt").save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text().replace('"vilt"', '"bert"')
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match="vilt"):
        Vilt.load(tmp_path)
