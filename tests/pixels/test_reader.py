"""Reading colours and masks of whole pictures against one `generate` per question."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from seewhere.models import choose
from seewhere.models.micro_clip import MicroClip, build_model
from seewhere.models.micro_language import build_tokenizer
from seewhere.models.minigpt import micro_minigpt
from seewhere.models.pixel_points import as_rgb, cells_of, grid_points
from seewhere.models.prefix_training import question_loss
from seewhere.models.protocols import PixelReader as Protocol
from seewhere.models.shared_attention import shared_attention
from seewhere.packing import Sample, collate_questions
from seewhere.pixels import prompts
from seewhere.pixels.reader import PixelReader
from transformers import LlamaConfig, LlamaForCausalLM


@pytest.fixture(scope="module")
def reader() -> PixelReader:
    torch.manual_seed(0)
    tokenizer = build_tokenizer(["<Img></Img> [reconstruct] loc: [1,2] rgb: [0,1,2] [segmentation] mask: 0"] * 3, 700)
    clip = MicroClip(build_model(64, side=64, patch=8, width=64, layers=2, text_layers=1, projection=16), tokenizer)
    sizes = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(tokenizer), **sizes, initializer_range=0.4, eos_token_id=3, pad_token_id=0)
    model = micro_minigpt(clip.eval(), LlamaForCausalLM(config), tokenizer)
    return PixelReader(model, progress=False)


def picture(width: int = 50, height: int = 40) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_colours_equal_those_of_generate(reader: PixelReader) -> None:
    model, image = reader.model, picture()
    points = grid_points(image.size)[::301]
    found = reader.read_pixels([image], [points])[0]
    expected = []
    for x, y in cells_of(points, image.size).tolist():
        before, after = model.split_prompts([prompts.with_image(prompts.reconstruct(x, y))])
        with torch.no_grad():
            prefix = model.prefix(model.image_tokens(model.pixels([image])), before)
            words = model.language.get_input_embeddings()(torch.tensor(after))
            tokens = model.language.generate(
                inputs_embeds=torch.cat([prefix, words], dim=1),
                attention_mask=torch.ones(1, prefix.shape[1] + words.shape[1], dtype=torch.long),
                prefix_allowed_tokens_fn=lambda _, ids: reader.colours.allowed_after(ids.tolist(), 3),
                max_new_tokens=16,
                do_sample=False,
            )
        expected.append(prompts.parse_rgb(model.tokenizer.decode(tokens[0], skip_special_tokens=True)))
    np.testing.assert_array_equal(found, np.stack(expected))
    assert len({tuple(row) for row in found}) > 3
    assert isinstance(reader, Protocol)


def test_masks_are_probabilities_of_one_against_zero(reader: PixelReader) -> None:
    model, image = reader.model, picture()
    points = grid_points(image.size)[:5]
    found = reader.read_mask(image, "the dog", points)
    assert found.shape == (5,) and ((found > 0) & (found < 1)).all()
    assert choose.close_options(reader.masks.slots[0], 3) == list(reader.masks.slots[0])
    cell = cells_of(points, image.size).tolist()[2]
    before, after = model.split_prompts([prompts.with_image(prompts.segment("the dog", *cell))])
    with torch.no_grad():
        prefix = model.prefix(model.image_tokens(model.pixels([image])), before)
        words = model.language.get_input_embeddings()(torch.tensor(after))
        logits = model.language(inputs_embeds=torch.cat([prefix, words], dim=1)).logits[0, -1]
    zero, one = (model.tokenizer(t, add_special_tokens=False)["input_ids"][0] for t in ("0", "1"))
    np.testing.assert_allclose(found[2], float(logits[[zero, one]].softmax(-1)[1]), atol=1e-4)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "I;16", "1", "CMYK", "F"])
def test_pictures_of_any_kind_and_size(reader: PixelReader, mode: str) -> None:
    image = picture().convert("L").convert("I").point(lambda v: v * 257) if mode == "I;16" else picture().convert(mode)
    image = Image.fromarray(np.asarray(image, dtype=np.uint16)) if mode == "I;16" else image
    found = reader.read_pixels([image, picture(1, 1)], [np.array([[3.0, 4.0]]), np.array([[0.5, 0.5]])])
    assert [f.shape for f in found] == [(1, 3), (1, 3)]


def test_sixteen_bits_and_transparency_become_eight_bits_on_white() -> None:
    grey = picture().convert("L")
    wide = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    np.testing.assert_array_equal(np.asarray(as_rgb(wide)), np.asarray(grey.convert("RGB")))
    clear = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    assert as_rgb(clear).getpixel((0, 0)) == (255, 255, 255)


def test_points_and_cells() -> None:
    points = grid_points((100, 50), 4)
    assert points.shape == (16, 2) and points[1].tolist() == [37.5, 6.25]
    assert cells_of(points, (100, 50), 4)[:5].tolist() == [[0, 0], [1, 0], [2, 0], [3, 0], [0, 1]]
    assert cells_of(np.array([[100.0, 50.0]]), (100, 50), 64).tolist() == [[63, 63]]
    with pytest.raises(ValueError, match=r"1 of 2 points lie outside .* \(first: number 1"):
        cells_of(np.array([[1, 1], [101, 1]]), (100, 50))
    with pytest.raises(ValueError, match=r"points \(N, 2\)"):
        cells_of(np.zeros(3), (4, 4))


def test_requests_that_do_not_fit(reader: PixelReader) -> None:
    with pytest.raises(ValueError, match="2 pictures but 1 arrays"):
        reader.read_pixels([picture(), picture()], [np.zeros((1, 2))])
    assert reader.read_pixels([picture()], [np.zeros((0, 2))])[0].shape == (0, 3)
    assert reader.read_mask(picture(), "dog", np.zeros((0, 2))).shape == (0,)


def test_a_training_step_on_many_points_reaches_the_encoder(reader: PixelReader) -> None:
    model, image = copy.deepcopy(reader.model).train(), picture()
    texts = [prompts.with_image(prompts.reconstruct(x, y)) for x in range(6) for y in range(6)]
    before, questions = model.split_prompts(texts)
    answer = tuple(model.tokenizer(prompts.rgb_answer((12, 200, 7)), add_special_tokens=False)["input_ids"])
    batch = collate_questions([[Sample(tuple(question), (*answer, 3)) for question in questions]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    with shared_attention(model.language):
        for _ in range(6):
            prefix = model.prefix(model.image_tokens(model.pixels([image])), before)
            loss = question_loss(model.language, prefix, batch)
            loss.backward()
            assert model.vision.embeddings.patch_embedding.weight.grad.abs().max() > 0
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
