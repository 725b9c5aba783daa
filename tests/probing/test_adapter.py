"""A resampler of this package, random and tiny, through both arms of the probe."""

import copy

import numpy as np
import pytest
import torch
from seewhere.models.micro_clip import MicroClip, build_model
from seewhere.models.micro_qformer import MicroBlip2, QFormerSettings
from seewhere.models.micro_text import build_tokenizer
from seewhere.models.resamplers import MicroPatches, MicroResampler
from seewhere.probing.adapter import Probed
from seewhere.probing.controls import asked_directly
from seewhere.probing.experiments import frozen_arm, unfrozen_arm
from seewhere.probing.features import cached_encodings, compute_features, open_pictures
from seewhere.probing.protocols import EncodedResampler, Matcher
from seewhere.probing.training import ProbeSettings

SETTINGS = ProbeSettings(learning_rate=1e-3, epochs=2, batch=16)


@pytest.fixture(scope="module")
def clip():
    tokenizer = build_tokenizer(["the red square is on the left", "the blue one is on the right"], vocabulary=64)
    return MicroClip(build_model(len(tokenizer), side=32, patch=16, width=64, layers=1, text_layers=1), tokenizer)


@pytest.fixture(scope="module")
def probed(clip):
    shape = QFormerSettings(vocabulary=len(clip.tokenizer), sees=64, width=64, layers=2, heads=2, queries=4)
    return Probed(MicroResampler("micro-blip2", clip, MicroBlip2(shape)).eval())


def test_it_is_what_the_probes_ask_for(probed, binary_task):
    assert isinstance(probed, EncodedResampler) and isinstance(probed, Matcher)
    examples = binary_task.splits["test"]
    found = compute_features(probed, examples, probed.layers)
    assert set(found) == {"0", "1", "2"} and found["2"].shape == (len(examples), 4, 64)
    images, texts = open_pictures(examples), [e.text for e in examples]
    whole = probed.forward(images, texts)
    assert whole.requires_grad
    np.testing.assert_allclose(whole.detach(), found["2"], atol=1e-5)
    from_encodings = probed.features_encoded(probed.encode(images), texts, probed.layers)
    for layer in probed.layers:
        np.testing.assert_allclose(from_encodings[layer], found[layer], atol=1e-5)


def test_it_is_asked_with_its_eyes_tokens_kept(probed, binary_task, home, monkeypatch):
    examples = binary_task.splits["test"]
    images, texts = open_pictures(examples), [e.text for e in examples]
    np.testing.assert_allclose(
        probed.match_encoded(probed.encode(images), texts), probed.match(images, texts), atol=1e-5
    )
    odds = asked_directly(probed, examples)
    own = probed.match(images, texts)
    np.testing.assert_allclose(odds[:, 0], np.log(own) - np.log(1 - own), atol=2e-2)  # kept in half precision
    monkeypatch.setattr(probed, "encode", lambda images: pytest.fail("a picture is encoded twice"))
    assert np.array_equal(asked_directly(probed, examples), odds)


def test_both_arms_run_and_only_the_resampler_is_trained(probed, binary_task, home):
    frozen = frozen_arm(binary_task, probed, SETTINGS, layer="1", progress=False)
    unfrozen = unfrozen_arm(binary_task, probed, SETTINGS, progress=False)
    assert frozen.table.layer.unique().tolist() == ["1"] and unfrozen.table.layer.unique().tolist() == ["2"]
    eye = dict(probed.resampler.clip.named_parameters())
    assert not any(p.requires_grad for p in eye.values())
    before, after = probed.module.query_tokens, unfrozen.fitted[0].module.query_tokens
    assert not np.allclose(before.detach(), after.detach())


def test_a_copy_has_a_resampler_of_its_own_and_the_same_eye(probed, binary_task):
    other = copy.deepcopy(probed)
    assert other.resampler.clip is probed.resampler.clip and other.module is other.resampler.module
    mine, theirs = (dict(p.module.named_parameters()) for p in (probed, other))
    assert mine.keys() == theirs.keys() and not any(mine[name] is theirs[name] for name in mine)
    images, texts = open_pictures(binary_task.splits["test"]), [e.text for e in binary_task.splits["test"]]
    before = probed.features(images, texts)["2"]
    with torch.no_grad():
        other.module.query_tokens.add_(1.0)
    assert np.array_equal(probed.features(images, texts)["2"], before)
    assert not np.allclose(other.features(images, texts)["2"], before)


def test_resamplers_on_one_eye_share_its_tokens(probed, clip, binary_task, home):
    patches = Probed(MicroPatches(clip))
    assert patches.encoder_hash == probed.encoder_hash and patches.weights_hash != probed.weights_hash
    examples = binary_task.splits["test"]
    first, second = (cached_encodings(model, examples, progress=False) for model in (probed, patches))
    assert first.store.folder == second.store.folder and np.array_equal(first[[0, 1]], second[[0, 1]])
    with pytest.raises(ValueError, match="no parameter to train along"):
        unfrozen_arm(binary_task, patches, SETTINGS, progress=False)
    with pytest.raises(ValueError, match="no way to answer"):
        patches.match([], [])


def test_where_queries_look_is_told_per_layer(probed, clip, binary_task):
    examples = binary_task.splits["test"][:3]
    images, texts = open_pictures(examples), [e.text for e in examples]
    for module in probed.module.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = "sdpa"
    fast = probed.features(images, texts)["2"]
    maps = probed.attention(images, texts)
    patches = probed.encode(images).shape[1]
    assert {k: v.shape for k, v in maps.items()} == {"1": (3, 4, patches), "2": (3, 4, patches)}
    np.testing.assert_allclose([m.sum(-1) for m in maps.values()], 1, atol=1e-5)
    assert np.ptp(maps["2"], axis=-1).max() > 1e-4
    np.testing.assert_allclose(probed.features(images, texts)["2"], fast, atol=1e-6)
    with pytest.raises(ValueError, match="no cross-attention"):
        Probed(MicroPatches(clip)).attention(images, texts)
