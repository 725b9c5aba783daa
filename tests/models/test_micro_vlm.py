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
    with torch.no_grad():
        other.language.model.layers[1].mlp.down_proj.weight.mul_(1.1)
    with pytest.raises(ValueError, match=r"mlp.down_proj of layer 1"):
        micro_vlm_weights.pack({"b": other}, room, tmp_path / "else")


def test_names_and_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected one of micro-pixels-frozen"):
        load_minigpt(tmp_path)
