"""The micro vision-language model: its tokens, what its wired layers find, and its weights in little space."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from seewhere.models import micro_vlm, micro_vlm_start, micro_vlm_weights
from seewhere.models.language_model import source_of
from seewhere.models.micro_clip import MicroClip, build_model
from seewhere.models.micro_text import world_tokenizer
from seewhere.models.minigpt import MiniGPT
from seewhere.models.registry import load_minigpt
from seewhere.pixels import prompts
from seewhere.pixels.errors import reconstruction_error
from seewhere.pixels.pictures import textures
from seewhere.pixels.reader import PixelReader
from transformers import AutoModelForCausalLM


@pytest.fixture(scope="module")
def model() -> MiniGPT:
    tokenizer = world_tokenizer()
    torch.manual_seed(0)
    clip = MicroClip(build_model(len(tokenizer), layers=1, text_layers=1), tokenizer).eval()
    return micro_vlm.build(clip, np.stack([np.asarray(image) for image in textures(40)])).eval()


@pytest.fixture(scope="module")
def room() -> micro_vlm_start.Room:
    base = AutoModelForCausalLM.from_pretrained(source_of("micro"), dtype=torch.float32)
    return micro_vlm_start.Room.of(base.get_input_embeddings().weight.detach(), 8)


def test_a_question_for_a_colour_is_two_tokens_and_its_answer_three() -> None:
    tokenizer = micro_vlm.extended_tokenizer()

    def pieces(text: str) -> list[str]:
        return [tokenizer.decode([i]) for i in tokenizer(text, add_special_tokens=False)["input_ids"]]

    question = prompts.with_image(prompts.reconstruct(12, 7)).split(prompts.IMAGE)
    assert pieces(question[0]) == ["<Img>"]
    assert pieces(question[1]) == ["</Img>", " [reconstruct]", " loc: [12,", "7] rgb:"]
    assert pieces(prompts.rgb_answer((34, 5, 250))) == ["[34,", "5,", "250]"]
    assert pieces(prompts.segment("red dog", 0, 63))[-2:] == [" loc: [0,", "63] mask:"]
    assert pieces(prompts.box_answer((0, 0, 50, 100), (100, 100))) == ["{", "<0>", "<0>", "<50>", "<100>", "}"]
    with pytest.raises(ValueError, match="to be one token"):
        micro_vlm.token_ids(tokenizer, ["[300,"])


def test_directions_are_orthonormal_and_codes_are_nearest_to_themselves(room: micro_vlm_start.Room) -> None:
    parts = [room.place, room.patch, room.constant, room.slots, room.value, room.answer.flatten(0, 1), room.content]
    rows = torch.cat(parts)
    torch.testing.assert_close(rows @ rows.T, torch.eye(192), atol=1e-4, rtol=0)
    codes = micro_vlm_start.value_codes(21)
    assert ((codes @ codes.T).argmax(1) == torch.arange(256)).all()
    with pytest.raises(ValueError, match="has no room"):
        micro_vlm_start.Room.of(torch.randn(40, 64), 8)


def test_cosines_keep_what_is_smooth() -> None:
    weights, _ = micro_vlm_start.cosines(8, 192)
    rows = weights.flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(192), atol=1e-4, rtol=0)
    few, _ = micro_vlm_start.cosines(8, 96)
    slope = torch.linspace(0, 255, 64)[None, None, :, None].expand(1, 64, 64, 3) / 127.5 - 1
    patch = slope.view(8, 8, 8, 8, 3)[0, :, 0].permute(2, 0, 1)
    sums = torch.einsum("kcyx,cyx->k", few, patch)
    back = torch.einsum("k,kcyx->cyx", sums, few)
    assert (back - patch).abs().max() < 0.02


def test_wired_layers_read_what_tokens_hold_at_the_place_that_is_asked_for(
    model: MiniGPT, room: micro_vlm_start.Room
) -> None:
    """With tokens that hold the patch's cosines, reading gives back the picture; with another picture's, that one."""
    picture = np.asarray(textures(1, seed=5)[0].resize((64, 64), Image.Resampling.BOX))
    content = micro_vlm_start.patch_content(torch.from_numpy(picture.copy())[None], 8, len(room.content))
    constant = 2**0.5 * micro_vlm_start.AMPLITUDE * room.constant
    tokens = content @ room.content + micro_vlm_start.positions(room) + constant
    reader = PixelReader(model, progress=False)
    before, questions = model.split_prompts(
        [prompts.with_image(prompts.reconstruct(x, y)) for y in range(0, 64, 3) for x in range(0, 64, 3)]
    )
    with torch.inference_mode():
        prefix = reader.engine.read(model.prefix(tokens, before))
    found = reader.engine.decode(prefix, questions, reader.colours).values.reshape(22, 22, 3)
    wanted = picture[::3, ::3]
    assert reconstruction_error(found, wanted) < 0.4 * reconstruction_error(np.full_like(wanted, 128), wanted)


def test_a_quiet_layer_answers_the_same_and_leaves_the_image_alone(model: MiniGPT) -> None:
    """Image tokens stay as long as they were, where the plain layer makes them far longer; colours do not care."""
    tokenizer = world_tokenizer()
    torch.manual_seed(0)
    clip = MicroClip(build_model(len(tokenizer), layers=1, text_layers=1), tokenizer).eval()
    quiet = micro_vlm.build(clip, np.stack([np.asarray(image) for image in textures(40)]), quiet=True).eval()
    image = textures(1, seed=5)[0]
    points = np.random.default_rng(0).uniform(0, 128, (60, 2))
    grown, read = [], []
    for one in (model, quiet):
        with torch.inference_mode():
            tokens = one.image_tokens(one.pixels([image]))
            kept = one.language.model(inputs_embeds=tokens, output_hidden_states=True).hidden_states
        # What the third layer puts out, against what goes into it.
        grown.append(float((kept[3].norm(dim=-1) / kept[2].norm(dim=-1)).mean()))
        read.append(PixelReader(one, progress=False).read_pixels([image], [points])[0])
    assert grown[0] > 5 and grown[1] < 1.5, grown
    assert np.abs(read[0] - read[1]).mean() < 2


def test_a_quiet_model_is_packed_as_such(model: MiniGPT, room: micro_vlm_start.Room, tmp_path: Path) -> None:
    import copy

    other = copy.deepcopy(model)
    wired = micro_vlm_start.new_layers(other.language, room, quiet=True)[2]
    with torch.no_grad():
        other.language.model.layers[2].mlp.up_proj.weight.copy_(wired.mlp.up_proj.weight)
    micro_vlm_weights.pack({"a": model, "b": other}, room, tmp_path)
    layers = [micro_vlm_weights.unpack(name, tmp_path).language.model.layers[2] for name in "ab"]
    used = wired.mlp.down_proj.weight.abs().sum(0) > 0
    for layer, source in zip(layers, (model, other), strict=True):
        wanted = source.language.model.layers[2].mlp.up_proj.weight[used]
        torch.testing.assert_close(layer.mlp.up_proj.weight[used], wanted, atol=0.02, rtol=0)


def test_the_connector_starts_from_the_encoder_s_own_tokens(model: MiniGPT, room: micro_vlm_start.Room) -> None:
    pictures = np.stack([np.asarray(image) for image in textures(12, seed=3)])
    wanted = micro_vlm_start.patch_content(torch.from_numpy(micro_vlm.cells(pictures, 64)), 8, len(room.content))
    with torch.no_grad():
        tokens = model.image_tokens(model.pixels([Image.fromarray(p) for p in pictures]))
    held = (tokens - micro_vlm_start.positions(room)) @ room.content.T
    assert float((held - wanted).square().sum()) < 0.5 * float((wanted - wanted.mean((0, 1))).square().sum())


def test_packed_models_come_back_and_share_what_is_equal(
    model: MiniGPT, room: micro_vlm_start.Room, tmp_path: Path
) -> None:
    import copy

    other = copy.deepcopy(model)
    with torch.no_grad():
        other.connector.bias.add_(1.0)
    micro_vlm_weights.pack({"a": model, "b": other}, room, tmp_path)
    size = (tmp_path / micro_vlm_weights.PARTS).stat().st_size
    assert size < 1.7 * sum(p.numel() for p in model.parameters())
    found = micro_vlm_weights.unpack("b", tmp_path)
    image = textures(1, seed=8)[0]
    points = np.random.default_rng(0).uniform(0, 128, (50, 2))
    ours, theirs = (PixelReader(m, progress=False).read_pixels([image], [points])[0] for m in (other, found))
    assert np.abs(ours - theirs).mean() < 6
    assert micro_vlm_weights.fingerprint("a", tmp_path) != micro_vlm_weights.fingerprint("b", tmp_path)
    with pytest.raises(FileNotFoundError, match="holds a, b; no 'c'"):
        micro_vlm_weights.unpack("c", tmp_path)


def test_what_training_changed_in_the_wired_layers_is_kept(
    model: MiniGPT, room: micro_vlm_start.Room, tmp_path: Path
) -> None:
    import copy

    other = copy.deepcopy(model)
    torch.manual_seed(1)
    layer = other.language.model.layers[1]
    with torch.no_grad():
        for weight in layer.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    micro_vlm_weights.pack({"a": model, "b": other}, room, tmp_path)
    micro_vlm_weights.check_wired(model, room)
    with pytest.raises(ValueError, match=r"o_proj.weight, mlp.down_proj.weight of layer 1 is not what"):
        micro_vlm_weights.check_wired(other, room)
    stored = [key for key in micro_vlm_weights._stored(tmp_path)[0]["models"]["b"] if "model.layers.1." in key]
    assert len(stored) == len(layer.state_dict())
    first, second = (micro_vlm_weights.unpack(name, tmp_path).language.model.layers for name in "ab")
    for name, wanted in layer.state_dict().items():
        found, held = second[1].get_parameter(name), first[1].get_parameter(name)
        apart = float((found - wanted).detach().norm() / (wanted - held).detach().norm())
        assert apart < 0.1, f"{name}: {apart}"
    for number in (0, 2):
        for name in ("self_attn.o_proj.weight", "mlp.down_proj.weight"):
            torch.testing.assert_close(
                second[number].get_parameter(name), model.language.model.layers[number].get_parameter(name)
            )


def test_micro_clip_s_own_encoder_is_not_written_again(room: micro_vlm_start.Room, tmp_path: Path) -> None:
    clip = MicroClip.load("micro-clip")
    whole = micro_vlm.build(clip, np.stack([np.asarray(image) for image in textures(10)])).eval()
    micro_vlm_weights.pack({"a": whole}, room, tmp_path)
    found = micro_vlm_weights.unpack("a", tmp_path)
    for name, value in whole.vision.state_dict().items():
        assert torch.equal(found.vision.state_dict()[name], value), name
    size = sum(value.numel() for value in whole.vision.state_dict().values())
    left = sum(p.numel() for p in whole.parameters()) - size
    assert (tmp_path / micro_vlm_weights.PARTS).stat().st_size < 1.2 * left
    index = tmp_path / micro_vlm_weights.INDEX
    text = index.read_text()
    digest = micro_vlm_weights._stored(tmp_path)[0]["encoder"]
    index.write_text(text.replace(digest, "0" * 64))
    micro_vlm_weights._stored.cache_clear()
    with pytest.raises(ValueError, match="encoder of another micro-clip"):
        micro_vlm_weights.unpack("a", tmp_path)


def test_names_and_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected one of micro-pixels-frozen"):
        load_minigpt(tmp_path)
