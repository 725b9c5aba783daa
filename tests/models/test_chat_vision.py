"""A tiny random LLaVA saved to disk and loaded like a real chat model: shared reading equals asking one by one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from seewhere.models import chat_pixels
from seewhere.models.caches import bytes_per_token
from seewhere.models.chat_pixels import ChatPixelReader, parse_box, parse_colour
from seewhere.models.chat_vision import ChatVision
from seewhere.models.micro_language import build_tokenizer
from seewhere.models.protocols import PixelReader
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

TEMPLATE = (
    "{% for message in messages %}<user> {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %} {{ part['text'] }}{% endif %}{% endfor %} <answer>{% endfor %}"
)
QUESTIONS = ["what is the colour in column 3", "row 5", "answer with red only"]


def picture(width: int = 50, height: int = 40) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("llava")
    tokenizer = build_tokenizer([chat_pixels.COLOUR, chat_pixels.MASK, chat_pixels.BOX, "[0,12,255]"] * 3, 700)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", "<user>", "<answer>"]})
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        initializer_range=0.4, max_position_embeddings=512, eos_token_id=3, pad_token_id=0, bos_token_id=None,
    )  # fmt: skip
    mark = tokenizer.convert_tokens_to_ids("<image>")
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=mark, vision_feature_layer=-1)
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).eval()
    for parameter in model.model.vision_tower.parameters():
        parameter.data.mul_(3)
    model.save_pretrained(place)
    images = CLIPImageProcessorPil(size={"height": 28, "width": 28}, do_center_crop=False)
    LlavaProcessor(
        images, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    ).save_pretrained(place)  # fmt: skip
    return place


@pytest.fixture(scope="module")
def chat(folder: Path) -> ChatVision:
    return ChatVision.load(folder, device="cpu", progress=False)


def test_shared_answers_are_those_of_generate_one_by_one(chat: ChatVision, folder: Path) -> None:
    found = chat.write(picture(), QUESTIONS, 8)
    assert chat.share is True, "the picture of this model can be read once"
    alone = ChatVision.load(folder, device="cpu", share=False, progress=False)
    assert found == [alone.write(picture(), [question], 8)[0] for question in QUESTIONS]
    assert alone.write(picture(), QUESTIONS, 8) == found, "padding on the left changes nothing"
    assert len(set(found)) > 1
    assert chat.write(picture(30, 60), QUESTIONS, 8) != found, "the picture matters"


def test_copies_of_a_large_picture_stay_within_the_budget(chat: ChatVision, folder: Path) -> None:
    expected = chat.write(picture(), QUESTIONS, 8)
    prefix, _ = chat._read(picture(), QUESTIONS)
    assert prefix is not None and len(QUESTIONS) > 2
    layout = prefix.layout()
    one = sum(part.nbytes for part in (*layout.keys, *layout.values))
    for budget, most in ((2 * one, 2), (1, 1), (1 << 30, len(QUESTIONS))):
        small = ChatVision.load(folder, device="cpu", progress=False, budget=budget)
        assert max(map(len, small._chunks(len(QUESTIONS), prefix))) == most
        assert small.write(picture(), QUESTIONS, 8) == expected


def test_chances_are_those_of_the_models_own_forward_pass(chat: ChatVision) -> None:
    found = chat.option_chances(picture(), QUESTIONS, ("0", "1"))
    columns = [chat.tokenizer(t, add_special_tokens=False)["input_ids"][0] for t in ("0", "1")]
    for question, row in zip(QUESTIONS, found, strict=True):
        with torch.no_grad():
            logits = chat.model(**chat._inputs(picture(), [question])).logits[0, -1, columns]
        np.testing.assert_allclose(row, logits.softmax(-1), atol=1e-4)
    with pytest.raises(ValueError, match="written alike"):
        chat.option_chances(picture(), QUESTIONS, ("0", "0"))
    assert chat.option_chances(picture(), [], ("0", "1")).shape == (0, 2)


@pytest.mark.parametrize("share", [None, False])
def test_questions_that_it_would_have_answered_otherwise_are_counted(folder: Path, share: bool | None) -> None:
    reader = ChatPixelReader.load(folder, progress=False, device="cpu", share=share, batch=2)
    firsts = []
    for question in QUESTIONS:
        with torch.no_grad():
            firsts.append(int(reader.chat.model(**reader.chat._inputs(picture(), [question])).logits[0, -1].argmax()))
    words = reader.chat.tokenizer.convert_ids_to_tokens(firsts)
    for options in (("0", "1"), (words[0], "0"), (words[1], words[2])):
        if len(set(options)) < 2:
            continue
        begun = {way[0] for option in reader.chat._ways(options) for way in option}
        before = reader.forced
        reader.chat.option_chances(picture(), QUESTIONS, options)
        assert reader.forced - before == sum(first not in begun for first in firsts)
    assert 0 < reader.forced < 3 * len(QUESTIONS)


@pytest.mark.parametrize("share", [None, False])
def test_options_of_several_tokens_are_weighed_as_a_whole(
    share: bool | None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a space in Llama's vocabulary: one token for the space, which both options begin with, then a digit."""
    chat = ChatVision.load(folder, device="cpu", share=share, progress=False, batch=2)
    ways = [[(21,), (15, 31)], [(22,), (15, 32)]]
    monkeypatch.setattr(chat, "_ways", lambda options: ways)
    found = chat.option_chances(picture(), QUESTIONS, ("0", "1"))
    assert chat.share is (share is None)
    for question, row in zip(QUESTIONS, found, strict=True):
        inputs = chat._inputs(picture(), [question])
        chances = []
        for way in (way for option in ways for way in option):
            ids, total = inputs["input_ids"], 0.0
            for token in way:
                with torch.no_grad():
                    out = chat.model(**{**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)})
                total += float(out.logits[0, -1].log_softmax(-1)[token])
                ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
            chances.append(np.exp(total))
        expected = np.array([chances[0] + chances[1], chances[2] + chances[3]])
        np.testing.assert_allclose(row, expected / expected.sum(), atol=1e-4)


def test_options_are_written_as_the_tokenizer_writes_them_behind_the_chat(
    chat: ChatVision, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spaces(text: str, **_: object) -> dict[str, list[int]]:  # a digit behind a space is two tokens
        return {"input_ids": [ord(c) for c in text.replace("  ", " ")]}

    monkeypatch.setattr(chat, "tokenizer", spaces)
    for ending, expected in (("bot:", [[(32, 48), (48,)], [(32, 49), (49,)]]), ("bot: ", [[(48,)], [(49,)]])):
        monkeypatch.setattr(chat.processor, "apply_chat_template", lambda *_, e=ending, **__: f"user: QUESTION {e}")
        assert chat._ways(("0", "1")) == expected
    monkeypatch.setattr(chat, "tokenizer", lambda text, **_: {"input_ids": [len(text)]})
    with pytest.raises(ValueError, match="'0' melts into the words before an answer"):
        chat._ways(("0", "1"))


def test_whole_questions_keep_the_budget_too(folder: Path) -> None:
    chat = ChatVision.load(folder, device="cpu", share=False, progress=False)
    tokens = chat._alone(picture(), QUESTIONS, None)
    assert tokens == chat._inputs(picture(), QUESTIONS[:1])["input_ids"].shape[1]
    one = tokens * bytes_per_token(chat.model)
    with torch.no_grad():
        cache = chat.model(**chat._inputs(picture(), QUESTIONS[:1]), use_cache=True).past_key_values
    assert one == sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    expected = chat.option_chances(picture(), QUESTIONS, ("0", "1"))
    chat.budget = 2 * one
    assert max(map(len, chat._chunks(len(QUESTIONS), None, tokens))) == 2
    np.testing.assert_allclose(chat.option_chances(picture(), QUESTIONS, ("0", "1")), expected, atol=1e-5)


def test_positions_of_several_axes_and_layers_without_attention_are_not_shared(folder: Path) -> None:
    for changes in (
        {"rope_parameters": {"mrope_section": [1, 1, 2], "rope_theta": 1e4}},
        {"layer_types": ["conv"] * 2},
    ):
        chat = ChatVision.load(folder, device="cpu", progress=False)
        for name, value in changes.items():
            setattr(chat.model.config.get_text_config(decoder=True), name, value)
        assert chat._read(picture(), QUESTIONS) == (None, []) and chat.share is None
        asked = ChatVision(chat.model, chat.processor, "asked", share=True, progress=False)
        with pytest.raises(ValueError, match="cannot be shared"):
            asked.write(picture(), QUESTIONS)


def test_a_later_picture_that_cannot_be_shared_is_read_whole(
    chat: ChatVision, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = ChatVision.load(folder, device="cpu", progress=False)
    expected = other.write(picture(), QUESTIONS, 8)
    assert other.share is True  # found out, not asked for
    monkeypatch.setattr(other, "_tails", lambda questions: [])
    assert other.write(picture(), QUESTIONS, 8) == expected


def test_a_model_whose_logits_differ_is_asked_with_whole_questions(chat: ChatVision, folder: Path, monkeypatch) -> None:
    expected = chat.write(picture(), QUESTIONS, 8)
    other = ChatVision.load(folder, device="cpu", progress=False)
    read = other._prefix

    def elsewhere(inputs, length):
        prefix = read(inputs, length)
        for layer in prefix.cache.layers:
            layer.values = layer.values + 1
        return prefix

    monkeypatch.setattr(other, "_prefix", elsewhere)
    assert other.write(picture(), QUESTIONS, 8) == expected and other.share is False


def test_a_picture_that_cannot_be_shared_though_asked_for_is_refused(folder: Path, monkeypatch) -> None:
    chat = ChatVision.load(folder, device="cpu", share=True, progress=False)
    monkeypatch.setattr(chat, "_tails", lambda questions: [])
    with pytest.raises(ValueError, match="cannot be shared"):
        chat.write(picture(), QUESTIONS)


def test_without_a_chat_template_nothing_can_be_asked(chat: ChatVision) -> None:
    class Bare:
        chat_template = None

    with pytest.raises(ValueError, match="no chat template"):
        ChatVision(chat.model, Bare(), "bare")


def test_pixels_are_read_from_what_is_written(chat: ChatVision, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = ChatPixelReader(chat, progress=False)
    assert isinstance(reader, PixelReader)
    asked: list[str] = []

    def write(image: Image.Image, questions: list[str], length: int = 24) -> list[str]:
        asked.extend(questions)
        return ["The colour is [1, 2, 3].", "I cannot see images.", "#0a0B0c"]

    monkeypatch.setattr(chat, "write", write)
    (found,) = reader.read_pixels([picture()], [np.array([[0, 0], [49.9, 0], [25, 39]])])
    np.testing.assert_array_equal(found, [[1, 2, 3], [np.nan] * 3, [10, 11, 12]])
    assert "column 63, row 0" in asked[1] and "column 32, row 62" in asked[2]


def test_nonsense_of_the_real_thing_is_missing_and_points_must_lie_inside(chat: ChatVision) -> None:
    reader = ChatPixelReader(chat, progress=False)
    (found,) = reader.read_pixels([picture()], [np.array([[1.0, 1.0], [2.0, 2.0]])])
    texts = reader.read_texts(picture(), np.array([[1.0, 1.0], [2.0, 2.0]]))
    assert np.isnan(found).any(axis=1).tolist() == [np.isnan(parse_colour(text)).any() for text in texts]
    with pytest.raises(ValueError, match="outside of the picture"):
        reader.read_pixels([picture()], [np.array([[51.0, 1.0]])])
    with pytest.raises(ValueError, match="1 pictures but 0 arrays"):
        reader.read_pixels([picture()], [])
    assert reader.read_pixels([picture()], [np.zeros((0, 2))])[0].shape == (0, 3)


def test_masks_and_boxes(chat: ChatVision, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = ChatPixelReader(chat, progress=False)
    found = reader.read_mask(picture(), "the dog", np.array([[1.0, 1.0], [40.0, 30.0]]))
    assert found.shape == (2,) and ((found > 0) & (found < 1)).all()
    with pytest.raises(ValueError, match="empty"):
        reader.read_mask(picture(), " ", np.array([[1.0, 1.0]]))
    monkeypatch.setattr(chat, "write", lambda image, questions, length=24: ["[0, 50, 100, 75]"])
    assert reader.find_boxes([picture()], ["dog"]).tolist() == [[0, 20, 50, 30]]
    monkeypatch.setattr(chat, "write", lambda image, questions, length=24: ["on the left"])
    assert np.isnan(reader.find_boxes([picture()], ["dog"])).all()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[12,0,255]", [12, 0, 255]),
        ("rgb( 1, 2 , 3 )", [1, 2, 3]),
        ("It is (10.5, 20, 30).", [10.5, 20, 30]),
        ("#FF8000", [255, 128, 0]),
        ("[256,0,0]", None),
        ("[1,2]", None),
        ("[1,2,3,4]", None),
        ("[12345,2,3]", None),
        ("red", None),
        ("", None),
        ("1 2 3", None),
        ("[0.9, 0.1, 0.2]", None),
        ("[1, 0, 1]", [1, 0, 1]),
        ("-5, 10, 20", None),
    ],
)
def test_colours_in_free_text(text: str, expected: list[float] | None) -> None:
    found = parse_colour(text)
    assert np.isnan(found).all() if expected is None else found.tolist() == expected


@pytest.mark.parametrize("text", ["", "left", "[1,2,3]", "[10,10,5,20]", "[0,0,101,50]", "[1,2,3,4,5]",
                                  "[0.1,0.2,0.5,0.9]", "[-5,0,20,30]"])  # fmt: skip
def test_boxes_that_are_none(text: str) -> None:
    assert np.isnan(parse_box(text, (200, 100))).all()


def test_the_wording_is_the_wording() -> None:
    assert chat_pixels.COLOUR.format(grid=64, last=63, x=3, y=5) == (
        "Look at the image as a grid of 64 x 64 cells. Columns are numbered from 0 at the left to 63 at the right, "
        "rows from 0 at the top to 63 at the bottom. What is the colour in column 3, row 5? Answer with "
        "[red,green,blue] only, three whole numbers from 0 to 255."
    )
    assert chat_pixels.MASK.endswith("belong to: {phrase}? Answer 1 for yes or 0 for no, nothing else.")
    assert chat_pixels.BOX.startswith("Where in the image is: {phrase}? Answer with its box as [left,top,right,bottom]")
