"""Resamplers by name, folder or hub id: micro ones written and read, real classes at tiny size against themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from seewhere.cli import main
from seewhere.models import few_bits
from seewhere.models import micro_qformer_commands as commands
from seewhere.models.blip_resamplers import InstructBlipEyeAndQFormer
from seewhere.models.micro_clip import MicroClip, build_model
from seewhere.models.micro_text import world_tokenizer
from seewhere.models.protocols import FeatureModel
from seewhere.models.resamplers import (
    MicroPatches,
    MicroResampler,
    load_blip2_module,
    load_resampler,
    matches,
    write_micro,
)
from seewhere.models.resampling import Resampler, fingerprint_of
from seewhere.models.world_pairs import twist
from seewhere.probing.adapter import Probed
from seewhere.storage import read_json
from seewhere.world.scenes import sample_scene
from seewhere.world.sprites import load_sprites
from tiny_blip import QUERIES, TEXTS, write_blip2, write_instructblip
from transformers import Blip2ForImageTextRetrieval, InstructBlipForConditionalGeneration

RANDOM = np.random.default_rng(0)
IMAGES = [Image.fromarray(RANDOM.integers(0, 256, (40, 60, 3), dtype=np.uint8)) for _ in range(3)]


# -- the micro ones ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """Folders of tiny trained models."""

    home: Path
    clip: Path

    def folder(self, kind: str) -> Path:
        return self.home / kind / "model"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    """All three kinds, each trained for two steps by the command."""
    home = tmp_path_factory.mktemp("home")
    torch.manual_seed(0)
    tokenizer = world_tokenizer()
    MicroClip(build_model(len(tokenizer), 32, 8, 64, 2, 1, 64), tokenizer).write(home / "clip")
    found = Trained(home, home / "clip")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEEWHERE_HOME", str(home))
        original = commands.score
        patch.setattr(commands, "score", lambda training: original(training, scenes=8, progress=False))
        shape = ["--steps", "2", "--batch", "4", "--scenes", "8", "--layers", "2", "--width", "64", "--queries", "4"]
        for kind in ("blip2", "instruct", "perceiver"):
            extra = ["--start", str(found.folder("blip2"))] if kind == "instruct" else []
            call = ["train", "qformer", "--kind", kind, "--out", str(home / kind), "--clip", str(found.clip)]
            assert main([*call, *shape, *extra]) == 0
        yield found


@pytest.mark.parametrize("kind", ["blip2", "instruct", "perceiver"])
def test_a_trained_folder_gives_tokens_of_every_layer(kind: str, trained: Trained) -> None:
    model = load_resampler(trained.folder(kind))
    assert isinstance(model, FeatureModel) and model.name == f"micro-{kind}"
    found = model.features(IMAGES, TEXTS, layers=(0, 1, 2, -1), progress=False)
    tokens = 4 if model.sees_text else 5
    assert {k: v.shape for k, v in found.items()} == {layer: (3, tokens, 64) for layer in (0, 1, 2, -1)}
    np.testing.assert_array_equal(found[2], found[-1])
    assert np.abs(found[1] - found[2]).max() > 1e-3
    assert not any(p.requires_grad for p in model.parameters())
    card = (trained.folder(kind) / "README.md").read_text()
    assert f"--kind {kind}" in card and "--steps 2" in card
    matching = read_json(trained.folder(kind) / "training.json")["scores"]["matching"]
    assert 0 <= matching["blind"] <= 1 and matching["paired"] * 8 == round(matching["paired"] * 8)
    assert f"{matching['paired']:.3f} of the same 8 pairs" in card


def test_matching_is_told_by_how_much_a_scene_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    class Scenes:
        scenes = tuple(sample_scene(7_000_000 + i, load_sprites(), split="train") for i in range(150))
        image_tokens = staticmethod(lambda rows: torch.arange(150.0)[rows])

        def __len__(self) -> int:
            return len(self.scenes)

    def knows_only_full_scenes(training: object, tokens: torch.Tensor, statements: list[str]) -> torch.Tensor:
        pairs = zip(tokens, statements, strict=True)
        return torch.tensor([float(text in true) if full[int(i)] else 0.9 for i, text in pairs])

    true = {twist(scene, Random(f"0 {i}")).true for i, scene in enumerate(Scenes.scenes)}
    full = [len(scene.objects) > 5 for scene in Scenes.scenes]
    monkeypatch.setattr(commands, "_match", knows_only_full_scenes)
    found = commands.matching_scores(None, Scenes())  # type: ignore[arg-type]
    assert found["by_objects"] == {"2-3": 0.5, "4-5": 0.5, "6-10": 1.0}
    assert found["accuracy"] == pytest.approx(0.5 + sum(full) / 300)


def test_few_bits_say_nearly_the_same_in_half_the_room(trained: Trained, tmp_path: Path) -> None:
    for kind in ("blip2", "instruct"):
        model = load_resampler(trained.folder(kind))
        few_bits.round_parameters(model._whole[0] or model.module)
        clip = MicroClip.load(trained.clip)
        folder = tmp_path / kind
        folder.mkdir()
        write_micro(folder, kind, model._whole[0] or model.module, clip, str(trained.clip), squeezed=True)
        found = load_resampler(folder)
        np.testing.assert_array_equal(found.features(IMAGES, TEXTS)[-1], model.features(IMAGES, TEXTS)[-1])
        np.testing.assert_array_equal(found.match(IMAGES, TEXTS), model.match(IMAGES, TEXTS))
        sizes = [sum(p.stat().st_size for p in f.rglob("*.safetensors")) for f in (folder, trained.folder(kind))]
        assert sizes[0] < 0.7 * sizes[1]


@pytest.mark.parametrize("kind", ["blip2", "instruct", "perceiver"])
def test_the_language_model_goes_where_the_resampler_goes(kind: str, trained: Trained) -> None:
    """Its parameters are no part of the resampler's; on a GPU they were left behind."""
    model = load_resampler(trained.folder(kind))
    assert isinstance(model, MicroResampler)
    tokens = model.see(IMAGES)
    before = matches(model.module, tokens, TEXTS, model.clip, *model._whole)
    own = len(list(model.state_dict()))
    after = matches(model.double().module, tokens.double(), TEXTS, model.clip, *model._whole)
    assert after.dtype in (torch.float32, torch.float64) and len(list(model.state_dict())) == own
    torch.testing.assert_close(after.float(), before, atol=1e-5, rtol=1e-4)
    model.to("meta")
    if model._whole[0] is not None:
        assert {p.device.type for p in model._whole[0].parameters()} == {"meta"}


@pytest.mark.parametrize("kind", ["blip2", "instruct", "perceiver"])
def test_features_do_not_depend_on_batches_and_order(kind: str, trained: Trained) -> None:
    model = load_resampler(trained.folder(kind))
    whole = model.features(IMAGES, TEXTS, progress=False)[-1]
    order = [2, 0, 1]
    other = model.features([IMAGES[i] for i in order], [TEXTS[i] for i in order], batch_size=2, progress=False)[-1]
    np.testing.assert_allclose(whole[order], other, atol=2e-5)


def test_visual_tokens_depend_on_the_text_only_where_it_is_seen(trained: Trained) -> None:
    image = [IMAGES[0]] * 2
    for kind, sees in (("blip2", True), ("instruct", True), ("perceiver", False)):
        tokens = load_resampler(trained.folder(kind)).features(image, TEXTS[:2], progress=False)[-1]
        assert (np.abs(tokens[0, :4] - tokens[1, :4]).max() > 1e-4) == sees, kind
        assert np.abs(tokens[0] - tokens[1]).max() > 1e-4, "the text's own token tells the two apart"


def test_patches_are_the_eye_s_tokens_and_the_text_s(trained: Trained) -> None:
    clip = MicroClip.load(trained.clip)
    model = load_resampler("micro-patches", clip=trained.clip)
    assert isinstance(model, MicroPatches)
    found = model.features(IMAGES, TEXTS, progress=False)[-1]
    assert found.shape == (3, 17, 64)
    with torch.no_grad():
        np.testing.assert_allclose(found[:, :16], clip.patch_tokens(clip.pixels(IMAGES)), atol=1e-5)
        np.testing.assert_allclose(found[:, 16], clip.text_states(TEXTS), atol=1e-5)


def test_the_resampler_can_be_trained_and_its_eye_cannot(trained: Trained) -> None:
    model = load_resampler(trained.folder("blip2"))
    seen, read = model.see(IMAGES), model.read(TEXTS)
    assert not seen.requires_grad
    model.trained_part().requires_grad_(True)
    before = model.fingerprint
    model.resample(seen, read)[-1].square().sum().backward()
    touched = {n for n, p in model.named_parameters() if p.grad is not None}
    assert touched and all(n.startswith("module.") for n in touched)
    with torch.no_grad():
        next(model.trained_part().parameters()).add_(0.1)
    assert model.fingerprint != before


@pytest.mark.parametrize("kind", ["blip2", "instruct", "perceiver"])
def test_the_whole_model_says_how_likely_a_statement_is(kind: str, trained: Trained) -> None:
    model = load_resampler(trained.folder(kind))
    assert isinstance(model, MicroResampler)
    found = model.match(IMAGES, TEXTS, batch_size=2)
    assert found.shape == (3,) and ((found > 0) & (found < 1)).all()
    np.testing.assert_allclose(found[2:], model.match(IMAGES[2:], TEXTS[2:]), atol=1e-4)


def test_another_eye_is_refused(trained: Trained, tmp_path: Path) -> None:
    torch.manual_seed(9)
    tokenizer = world_tokenizer()
    MicroClip(build_model(len(tokenizer), 32, 8, 64, 2, 1, 64), tokenizer).write(tmp_path)
    with pytest.raises(ValueError, match="another micro-CLIP"):
        load_resampler(trained.folder("blip2"), clip=tmp_path)


def test_what_cannot_be_loaded_is_said(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="known names are micro-blip2"):
        load_resampler(tmp_path / "nothing")
    with pytest.raises(ValueError, match="'clip' model"):
        load_resampler(trained.clip)
    with pytest.raises(ValueError, match="no micro-BLIP-2"):
        load_blip2_module(trained.folder("perceiver"))


def test_wrong_requests_are_refused(trained: Trained) -> None:
    model = load_resampler(trained.folder("blip2"))
    with pytest.raises(ValueError, match="layers 0 to 2; got 3"):
        model.features(IMAGES, TEXTS, layers=(3,))
    with pytest.raises(ValueError, match="expected one phrase per image"):
        model.features(IMAGES, TEXTS[:2])


# -- the real classes, tiny --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def blip2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_blip2(tmp_path_factory.mktemp("real") / "blip2")


@pytest.fixture(scope="module")
def instructblip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_instructblip(tmp_path_factory.mktemp("real") / "instructblip")


def pixels(model: Resampler) -> torch.Tensor:
    return model.image_processor(images=IMAGES, return_tensors="pt")["pixel_values"]


def test_blip2_features_are_those_of_its_own_forward(blip2_folder: Path) -> None:
    model = load_resampler(blip2_folder, device="cpu")
    found = model.features(IMAGES, TEXTS, layers=(0, 1, 2, 3), progress=False)
    assert {v.shape for v in found.values()} == {(3, QUERIES, 16)}
    original = Blip2ForImageTextRetrieval.from_pretrained(blip2_folder).eval()
    read = model.read(TEXTS)
    with torch.no_grad():
        logits = original(
            pixel_values=pixels(model),
            input_ids=read.ids,
            attention_mask=read.mask,
            use_image_text_matching_head=True,
        ).logits_per_image
        ours = original.itm_head(torch.from_numpy(found[3])).mean(dim=1)
    torch.testing.assert_close(ours, logits, atol=1e-5, rtol=1e-4)
    np.testing.assert_allclose(model.match(IMAGES, TEXTS), logits.softmax(1)[:, 1], atol=1e-5)


def test_instructblip_features_are_those_of_its_own_forward(instructblip_folder: Path) -> None:
    model = load_resampler(instructblip_folder, device="cpu")
    found = model.features(IMAGES, TEXTS, layers=(0, 2, -1), progress=False)
    original = InstructBlipForConditionalGeneration.from_pretrained(instructblip_folder).eval()
    read = model.read(TEXTS)
    with torch.no_grad():
        output = original.get_image_features(
            pixel_values=pixels(model),
            qformer_input_ids=read.ids,
            qformer_attention_mask=read.mask,
            output_hidden_states=True,
        )
    states = output.qformer_outputs.last_hidden_state
    assert states.shape[1] == QUERIES + read.ids.shape[1], "the text follows the queries"
    np.testing.assert_allclose(found[-1], states[:, :QUERIES], atol=1e-5)
    projected = original.language_projection(torch.from_numpy(found[-1]))
    torch.testing.assert_close(projected, output.pooler_output, atol=1e-5, rtol=1e-4)


def test_instructblip_is_loaded_without_its_language_model(instructblip_folder: Path) -> None:
    model = load_resampler(instructblip_folder, device="cpu")
    assert isinstance(model.model, InstructBlipEyeAndQFormer)
    assert not any("language" in n for n, _ in model.named_parameters())
    original = InstructBlipForConditionalGeneration.from_pretrained(instructblip_folder)
    assert fingerprint_of(model.model.qformer) == fingerprint_of(original.qformer)
    assert fingerprint_of(model.model.vision_model) == fingerprint_of(original.vision_model)
    assert torch.equal(model.model.query_tokens, original.query_tokens)


@pytest.mark.parametrize("family", ["blip2", "instructblip"])
def test_another_preparation_of_pictures_is_another_model(family: str, request: pytest.FixtureRequest) -> None:
    model = load_resampler(request.getfixturevalue(f"{family}_folder"), device="cpu")
    before, eye = model.fingerprint, Probed(model).encoder_hash
    model.image_processor.image_mean = [0.4, 0.4, 0.4]
    assert model.fingerprint != before and Probed(model).encoder_hash != eye


@pytest.mark.parametrize("family", ["blip2", "instructblip"])
def test_texts_are_joined_seen_and_cut(family: str, request: pytest.FixtureRequest) -> None:
    model = load_resampler(request.getfixturevalue(f"{family}_folder"), device="cpu", text_length=8)
    assert model.read(["dog " * 50]).ids.shape == (1, 8)
    same = model.features([IMAGES[0]] * 3, ["a red dog", "the cat", "a red dog"], progress=False)[-1]
    np.testing.assert_allclose(same[0], same[2], atol=1e-6)
    assert np.abs(same[0] - same[1]).max() > 1e-4
    alone = model.features([IMAGES[0]], ["the cat"], progress=False)[-1]
    np.testing.assert_allclose(alone[0], same[1], atol=1e-5)


@pytest.mark.parametrize("family", ["blip2", "instructblip"])
def test_an_unfrozen_arm_reaches_queries_and_q_former_only(family: str, request: pytest.FixtureRequest) -> None:
    model = load_resampler(request.getfixturevalue(f"{family}_folder"), device="cpu")
    model.trained_part().requires_grad_(True)
    model.resample(model.see(IMAGES), model.read(TEXTS))[-1].square().sum().backward()
    touched = {n for n, p in model.named_parameters() if p.grad is not None}
    assert "model.query_tokens" in touched and not any("vision_model" in n for n in touched)
    assert any("word_embeddings" in n for n in touched) and any("crossattention" in n for n in touched)
