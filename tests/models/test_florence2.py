import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from seewhere.models.florence2 import DETECTION, GROUNDING, Florence2, clean_query, parse_answer
from seewhere.models.protocols import Grounder
from tokenizers import pre_tokenizers
from transformers import (
    BartConfig,
    BartTokenizer,
    CLIPImageProcessorPil,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
)
from transformers.models.florence2.configuration_florence2 import Florence2VisionConfig

RULES = {
    name: {}
    for name in ("ocr", "pure_text", "description_with_bboxes", "description_with_bboxes_or_polygons", "polygons")
}
RULES["phrase_grounding"] = {"banned_grounding_tokens": ["the image"]}


def tiny_tokenizer() -> BartTokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: place for place, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *letters])}
    tokenizer = BartTokenizer(vocab=vocabulary, merges=[], extra_special_tokens={"image_token": "<image>"})
    tokenizer.add_tokens([f"<loc_{number}>" for number in range(1000)] + ["<poly>", "</poly>", "<sep>"])
    return tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random Florence-2 with 64-pixel input, saved as the real ones are."""
    path = tmp_path_factory.mktemp("florence")
    tokenizer = tiny_tokenizer()
    special = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
    vision = Florence2VisionConfig(
        depths=[1] * 4,
        embed_dim=[8, 8, 16, 16],
        num_heads=[1, 1, 2, 2],
        num_groups=[1, 1, 2, 2],
        window_size=4,
        projection_dim=16,
    )
    text = BartConfig(
        vocab_size=len(tokenizer),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=256,
        init_std=0.5,
        **special,
    )
    torch.manual_seed(0)
    config = Florence2Config(vision_config=vision, text_config=text, image_token_id=tokenizer.image_token_id, **special)
    Florence2ForConditionalGeneration(config).save_pretrained(path)
    images = CLIPImageProcessorPil(size={"height": 64, "width": 64}, do_center_crop=False)
    images.image_seq_length = 5
    Florence2Processor(images, tokenizer, post_processor_config=RULES).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return Florence2.load(folder, device="cpu", max_new_tokens=12, batch_size=2, progress=False)


def pictures(*sizes, mode="RGB"):
    random = np.random.default_rng(0)
    return [
        Image.fromarray(random.integers(0, 255, (height, width, 3), dtype=np.uint8)).convert(mode)
        for width, height in sizes
    ]


def test_bins_become_fractional_pixels():
    parsed = parse_answer("dog<loc_434><loc_0><loc_999><loc_500>")
    np.testing.assert_allclose(parsed.boxes((640, 480)), [[278.08, 0.24, 639.68, 240.24]])


def test_labels_stand_before_their_boxes():
    text = (
        "</s><s>dog<loc_1><loc_2><loc_3><loc_4><loc_5><loc_6><loc_7><loc_8>red cat<loc_9><loc_10><loc_11><loc_12></s>"
    )
    parsed = parse_answer(text + "<pad><pad>", "query")
    assert parsed.labels == ["dog", "dog", "red cat"]
    assert parsed.bins == [(1, 2, 3, 4), (5, 6, 7, 8), (9, 10, 11, 12)]
    assert parsed.failures.total() == 0


GOOD = "<loc_10><loc_20><loc_30><loc_40>"


@pytest.mark.parametrize(
    ("text", "labels", "failures"),
    [
        ("", [], {}),
        ("</s></s>", [], {}),
        (GOOD, ["query"], {}),
        ("a dog", [], {"label without box": 1}),
        (f"dog{GOOD}cat", ["dog"], {"label without box": 1}),
        ("dog<loc_1><loc_2><loc_3>", [], {"incomplete box": 1}),
        (f"dog{GOOD}<loc_1>", ["dog"], {"incomplete box": 1}),
        (f"dog<loc_1><loc_2>cat{GOOD}", ["cat"], {"incomplete box": 1}),
        ("dog<loc_10><loc_20><loc_1000><loc_40>", [], {"bin out of range": 1}),
        (f"dog<loc_10><loc_20><loc_99999999999999999999><loc_40>{GOOD}", ["dog"], {"bin out of range": 1}),
        ("dog<loc_30><loc_20><loc_10><loc_40>", [], {"box without area": 1}),
        ("dog<loc_0><loc_0><loc_0><loc_0>", [], {"box without area": 1}),
        (f"dog{GOOD}<loc_12", ["dog"], {"broken token": 1}),
        (f"dog<loc_1><loc_2><loc_><loc_4><loc_5>cat{GOOD}", ["cat"], {"broken token": 1}),
        (f"dog<loc_-5><loc_1><loc_2><loc_3><loc_4>cat{GOOD}", ["cat"], {"broken token": 1}),
        (f"dog{GOOD}<loc_x><loc_1><loc_2><loc_3><loc_4>", ["dog"], {"broken token": 1}),
        (f"dog<{GOOD}", [], {"broken token": 1}),
        (f"dog<poly><loc_1><loc_2><loc_3><loc_4><loc_5><loc_6></poly>cat{GOOD}", ["cat"], {"polygon": 1}),
        ("dog<poly><loc_1><loc_2><loc_3><loc_4>", [], {"polygon": 1}),
        ("dog<loc_10> <loc_20> <loc_30> <loc_40>", ["dog"], {}),
        (f"the dog > cat{GOOD}", ["the dog > cat"], {}),
        (f"chien été{GOOD}", ["chien été"], {}),
        ("1, 2, 3, 4", [], {"label without box": 1}),
    ],
)
def test_broken_answers_lose_only_what_is_broken_and_are_counted(text, labels, failures):
    parsed = parse_answer(text, "query")
    assert parsed.labels == labels
    assert parsed.bins == [(10, 20, 30, 40)] * len(labels)
    assert dict(parsed.failures) == failures


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["<loc_5>", "<loc_700>", "<loc_1000>", "<loc_", "dog", " ", "<", ">", "<poly>", "</poly>", "</s>"]
        )
        | st.text(max_size=4),
        max_size=30,
    )
)
def test_no_answer_breaks_the_parser_or_makes_a_box_of_nothing(pieces):
    parsed = parse_answer("".join(pieces), "query")
    assert len(parsed.bins) == len(parsed.labels)
    boxes = parsed.boxes((640, 480))
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert len(boxes) * 4 <= "".join(pieces).count("<loc_")


def test_banned_labels_go_with_their_boxes():
    parsed = parse_answer(f"the image<loc_1><loc_1><loc_2><loc_2>dog{GOOD}", banned={"the image"})
    assert parsed.labels == ["dog"]
    assert parsed.bins == [(10, 20, 30, 40)]
    assert parsed.failures.total() == 0


@pytest.mark.parametrize(
    ("phrase", "query"),
    [
        ("<OD> left dog", "left dog"),
        ("dog <OPEN_VOCABULARY_DETECTION>", "dog"),
        ("the <loc_3><loc_4> dog</s>", "the dog"),
        ("<<s>OD>dog", "OD dog"),
        ("dog < cat", "dog cat"),
        ("The Dog", "The Dog"),
    ],
)
def test_queries_are_cleaned_of_task_tokens(phrase, query, model):
    assert clean_query(phrase) == query
    prompts = model.processor._construct_prompts([DETECTION + clean_query(phrase)])
    assert prompts == [f"Locate {query} in the image."]


def test_a_query_of_tokens_only_is_empty(model):
    with pytest.raises(ValueError, match="no words beside task tokens"):
        model.ground(pictures((64, 64)), ["<OD>"])


def test_well_formed_answers_agree_with_the_reference_parser(model):
    text = f"</s><s>dog<loc_1><loc_2><loc_300><loc_400>{GOOD}red cat<loc_5><loc_6><loc_999><loc_700></s>"
    parsed = parse_answer(text)
    reference = model.processor.post_process_generation(text=text, task=GROUNDING, image_size=(640, 480))[GROUNDING]
    assert parsed.labels == reference["labels"]
    np.testing.assert_array_equal(parsed.boxes((640, 480)).astype(int), reference["bboxes"])


def test_loaded_from_a_folder_it_grounds_as_the_model_writes(folder, model):
    images = pictures((100, 60), (60, 100), (64, 64))
    phrases = ["dog", "<OD> the red dog", "cat"]
    found = model.ground(images, phrases)
    assert isinstance(model, Grounder)
    assert not model.scores
    reference = Florence2ForConditionalGeneration.from_pretrained(folder).eval()
    kinds = 0
    for image, phrase, candidates in zip(images, ["dog", "the red dog", "cat"], found, strict=True):
        expected = []
        for task in (DETECTION, GROUNDING):
            inputs = model.processor(images=[image], text=[task + phrase], return_tensors="pt")
            tokens = reference.generate(**inputs, num_beams=3, do_sample=False, max_new_tokens=12)
            text = model.processor.batch_decode(tokens, skip_special_tokens=False)[0]
            assert candidates.metadata["answers"][task] == text
            kinds += len(re.findall("<loc_", text))
            expected.append(parse_answer(text, phrase).boxes(image.size))
        np.testing.assert_allclose(candidates.xyxy, np.concatenate(expected))
        assert candidates.confidence is None
    assert kinds > 0


def test_candidates_are_detection_then_grounding(model, monkeypatch):
    written = {
        DETECTION: f"</s><s>left dog{GOOD}</s>",
        GROUNDING: "</s><s>dog<loc_0><loc_0><loc_999><loc_499><loc_7>the image<loc_1><loc_1><loc_9><loc_9></s>",
    }
    monkeypatch.setattr(model, "failures", type(model.failures)())
    monkeypatch.setattr(model, "write", lambda images, prompts: [written[prompts[0].split(">")[0] + ">"]] * len(images))
    first, second = model.ground(pictures((1000, 500), (200, 100)), ["left dog", "dog"])
    np.testing.assert_allclose(first.xyxy, [[10.5, 10.25, 30.5, 20.25], [0.5, 0.25, 999.5, 249.75]])
    np.testing.assert_allclose(second.xyxy, first.xyxy / 5)
    assert first.data["label"].tolist() == ["left dog", "dog"]
    assert first.metadata["top"] == 0
    assert first.metadata["parse_failures"] == 1
    assert model.failures == {"incomplete box": 2}
    written[DETECTION] = "</s><s>left dog<loc_1></s>"
    (candidates,) = model.ground(pictures((1000, 500)), ["left dog"])
    assert candidates.metadata["top"] == -1
    assert len(candidates) == 1
    written[GROUNDING] = "</s>"
    (candidates,) = model.ground(pictures((1000, 500)), ["left dog"])
    assert candidates.xyxy.shape == (0, 4)
    assert candidates.confidence is None


def test_any_mode_is_converted_and_batches_do_not_matter(folder, model):
    (gray,) = pictures((90, 70), mode="L")
    images = [gray, gray.convert("RGB"), gray.convert("RGBA")]
    found = model.ground(images, ["dog"] * 3)
    alone = [model.ground([image], ["dog"])[0] for image in images]
    for candidates, single in zip(found, alone, strict=True):
        assert candidates.metadata["answers"] == single.metadata["answers"] == found[0].metadata["answers"]


def test_bad_requests_are_explained(folder, model):
    with pytest.raises(ValueError, match="phrase 1 is empty"):
        model.ground(pictures((64, 64), (64, 64)), ["dog", "  "])
    with pytest.raises(ValueError, match="2 images but 1 phrases"):
        model.ground(pictures((64, 64), (64, 64)), ["dog"])
    with pytest.raises(ValueError, match="tasks are"):
        Florence2.load(folder, device="cpu", tasks=["<OD>"])
    assert model.ground([], []) == []


def test_a_folder_without_a_model_is_explained(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a folder with config\.json"):
        Florence2.load(tmp_path)
    BartConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'bart' model; expected 'florence2'"):
        Florence2.load(tmp_path)


def test_default_device_prints_its_reason(folder, capsys):
    Florence2.load(folder)
    assert re.search(r"florence-2: running on \w+ \(.+\)", capsys.readouterr().out)
