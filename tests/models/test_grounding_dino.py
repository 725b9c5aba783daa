import re

import numpy as np
import pytest
import torch
from PIL import Image
from seewhere.models.grounding_dino import GroundingDino, Reading, Thresholds, prompt_text
from seewhere.models.protocols import Grounder
from transformers import (
    BertConfig,
    BertTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    GroundingDinoProcessor,
    SwinConfig,
)

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    ".",
    ",",
    "man",
    "in",
    "blue",
    "shirt",
    "##s",
    "on",
    "the",
    "left",
]
WORDS += ["red", "dog", "a", "tree", "near", "ma", "##ple"]
QUERIES = 20
LIMIT = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random Grounding DINO that reads at most 24 tokens, saved as the real ones are."""
    path = tmp_path_factory.mktemp("dino")
    vision = SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1] * 4,
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_indices=[2, 3, 4],
    )
    text = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    config = GroundingDinoConfig(
        backbone_config=vision,
        text_config=text,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=QUERIES,
        max_text_len=LIMIT,
    )
    torch.manual_seed(1)
    network = GroundingDinoForObjectDetection(config)
    with torch.no_grad():  # so that boxes differ from their anchors and lie on both sides of the thresholds
        for head in network.bbox_embed:
            head.layers[-1].weight.normal_(0, 0.3)
    network.save_pretrained(path)
    tokenizer = BertTokenizer(vocab={word: place for place, word in enumerate(WORDS)})
    images = GroundingDinoImageProcessorPil(size={"shortest_edge": 128, "longest_edge": 192})
    GroundingDinoProcessor(images, tokenizer).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def network(folder):
    return GroundingDinoForObjectDetection.from_pretrained(folder).eval()


def pictures(*sizes, mode="RGB"):
    random = np.random.default_rng(0)
    return [
        Image.fromarray(random.integers(0, 255, (height, width, 3), dtype=np.uint8)).convert(mode)
        for width, height in sizes
    ]


def raw(model, network, image, text):
    """Logits (Q, T), boxes (Q, 4) cxcywh in 0..1, token ids: one plain forward pass, one pair."""
    inputs = model.processor(images=[image], text=[text], return_tensors="pt")
    with torch.no_grad():
        outputs = network(**inputs)
    return outputs, inputs["input_ids"]


def test_prompts_are_lower_case_and_end_in_one_dot():
    assert prompt_text("  The RED Dog ") == "the red dog."
    assert prompt_text("dog. ..") == "dog."
    with pytest.raises(ValueError, match="no words"):
        prompt_text(" . ")


PHRASES = ["Man in blue shirts on the left", "the dog", "a red dog near the tree."]


def test_sentence_scoring_agrees_with_the_reference_post_processing(folder, network):
    model = GroundingDino.load(folder, device="cpu", thresholds=Thresholds(box=0.6), progress=False)
    images = pictures((100, 60), (60, 100), (64, 64))
    found = model.ground(images, PHRASES)
    assert isinstance(model, Grounder)
    assert model.name == "grounding-dino"
    kept = 0
    for image, phrase, candidates in zip(images, PHRASES, found, strict=True):
        text = phrase.lower().rstrip(".") + "."
        outputs, tokens = raw(model, network, image, text)
        (reference,) = model.processor.post_process_grounded_object_detection(
            outputs, tokens, threshold=0.6, text_threshold=0.05, target_sizes=[(image.height, image.width)]
        )
        np.testing.assert_allclose(candidates.xyxy, reference["boxes"].numpy(), atol=1e-3)
        np.testing.assert_allclose(candidates.confidence, reference["scores"].numpy(), atol=1e-5)
        assert candidates.metadata["top"] == int(reference["scores"].argmax())
        for label, expected in zip(candidates.data["label"], reference["text_labels"], strict=True):
            words = " ".join(expected.replace("[SEP]", " ").replace(".", " ").split())
            assert label == (words or text[:-1])
        kept += len(candidates)
    assert 0 < kept < QUERIES * 3  # the threshold cuts, but not all


def test_group_scoring_is_the_minimum_over_the_tokens_of_a_group(folder, network):
    thresholds = Thresholds(subject=0.5, group=0.4, sentence=0.3)
    model = GroundingDino.load(folder, scoring="groups", thresholds=thresholds, device="cpu", progress=False)
    assert model.name == "gdrec"
    (image,) = pictures((100, 60))
    (candidates,) = model.ground([image], ["Man in blue shirts on the left"])
    outputs, tokens = raw(model, network, image, "man in blue shirts on the left.")
    words = [WORDS[token] for token in tokens[0]]
    assert words == ["[CLS]", "man", "in", "blue", "shirt", "##s", "on", "the", "left", ".", "[SEP]"]
    probabilities = torch.sigmoid(outputs.logits[0]).numpy()
    centre_x, centre_y, width, height = outputs.pred_boxes[0].numpy().T
    pixels = np.stack([centre_x - width / 2, centre_y - height / 2, centre_x + width / 2, centre_y + height / 2], 1)
    pixels = pixels * [100, 60, 100, 60]
    rows = []
    for label, places, threshold in [
        ("man", [1], 0.5),
        ("blue shirts", [3, 4, 5], 0.4),
        ("man in blue shirts on the left", range(1, 9), 0.3),
    ]:
        score = probabilities[:, list(places)].min(axis=1)
        rows += [(label, score[query], pixels[query]) for query in range(QUERIES) if score[query] > threshold]
    assert {label for label, *_ in rows} >= {"man", "blue shirts"}
    assert candidates.data["label"].tolist() == [label for label, *_ in rows]
    np.testing.assert_allclose(candidates.confidence, [score for _, score, _ in rows], atol=1e-5)
    np.testing.assert_allclose(candidates.xyxy, [box for *_, box in rows], atol=1e-3)
    subject_scores = [score for label, score, _ in rows if label == "man"]
    assert candidates.metadata["top"] == int(np.argmax(subject_scores))


def test_the_best_box_of_the_subject_is_always_there(folder):
    never = Thresholds(box=1, subject=1, group=1, sentence=1)
    model = GroundingDino.load(folder, scoring="groups", thresholds=never, device="cpu", progress=False)
    everything = GroundingDino.load(
        folder, scoring="groups", thresholds=Thresholds(subject=-1, group=1, sentence=1), device="cpu"
    )
    images = pictures((80, 60))
    (one,) = model.ground(images, ["man near a tree"])
    (every,) = everything.ground(images, ["man near a tree"])
    assert one.data["label"].tolist() == ["man"]
    assert len(every) == QUERIES
    assert one.confidence[0] == every.confidence.max()
    np.testing.assert_array_equal(one.xyxy[0], every.xyxy[every.metadata["top"]])
    nothing = GroundingDino.load(folder, thresholds=never, device="cpu").ground(images, ["man near a tree"])[0]
    assert len(nothing) == 0
    assert nothing.metadata["top"] == -1
    assert nothing.confidence.shape == (0,)


@pytest.mark.parametrize("scoring", ["sentence", "groups"])
def test_each_pair_is_its_own_prompt_whatever_the_batch(folder, scoring):
    """A flat list of texts without dots would be merged into one prompt; padding would shift answers."""
    images = pictures((100, 60), (60, 100), (100, 60), (60, 100), (64, 64))
    phrases = ["the dog", "man in blue shirt", "a red dog near the tree", "dog", "left"]
    thresholds = Thresholds(box=0.0, subject=0.0, group=0.0, sentence=0.0)
    options = {"scoring": scoring, "thresholds": thresholds, "device": "cpu", "progress": False}
    together = GroundingDino.load(folder, batch_size=5, **options).ground(images, phrases)
    alone = GroundingDino.load(folder, batch_size=1, **options)
    assert len(together) == 5
    for image, phrase, candidates in zip(images, phrases, together, strict=True):
        (single,) = alone.ground([image], [phrase])
        np.testing.assert_allclose(candidates.xyxy, single.xyxy, atol=1e-3)
        np.testing.assert_allclose(candidates.confidence, single.confidence, atol=1e-4)
        assert candidates.data["label"].tolist() == single.data["label"].tolist()
    assert not np.allclose(together[0].confidence[:5], together[2].confidence[:5])


def test_long_texts_are_cut_and_say_so(folder):
    images = pictures((80, 60))
    for scoring in ("sentence", "groups"):
        model = GroundingDino.load(folder, scoring=scoring, device="cpu")
        (cut,) = model.ground(images, ["the dog " * 30 + "near a tree"])
        assert cut.metadata["text_truncated"] is True
        assert "tree" not in set(cut.data["label"].tolist())
        assert model.ground(images, ["dog"])[0].metadata["text_truncated"] is False


def test_labels_come_from_words_only():
    reading = Reading(
        text="red dog.",
        probabilities=np.array([[0.9, 0.01, 0.3, 0.9, 0.9], [0.9, 0.0, 0.0, 0.9, 0.9]]),
        boxes=np.array([[0.0, 0, 1, 1], [1, 1, 2, 2]]),
        tokens=np.array([WORDS.index(word) for word in ("[CLS]", "red", "dog", ".", "[SEP]")]),
        spans=np.array([[0, 0], [0, 3], [4, 7], [7, 8], [0, 0]]),
    )
    tokenizer = BertTokenizer(vocab={word: place for place, word in enumerate(WORDS)})

    class Processor:
        pass

    processor = Processor()
    processor.tokenizer = tokenizer
    model = GroundingDino(torch.nn.Identity(), processor, device="cpu")
    candidates = model._by_sentence(reading)
    assert candidates.data["label"].tolist() == ["dog", "red dog"]
    assert reading.tokens_in(4, 7).tolist() == [2]


def test_any_mode_is_converted(folder):
    model = GroundingDino.load(folder, device="cpu", progress=False)
    (gray,) = pictures((90, 70), mode="L")
    found = model.ground([gray, gray.convert("RGBA"), gray.convert("RGB")], ["dog"] * 3)
    for candidates in found[:2]:
        np.testing.assert_allclose(candidates.xyxy, found[2].xyxy, atol=1e-3)


def test_bad_requests_are_explained(folder, tmp_path):
    model = GroundingDino.load(folder, device="cpu")
    images = pictures((64, 64), (64, 64))
    with pytest.raises(ValueError, match="phrase 1 is empty"):
        model.ground(images, ["dog", " "])
    with pytest.raises(ValueError, match="2 images but 1 phrases"):
        model.ground(images, ["dog"])
    with pytest.raises(TypeError, match="single string 'dog'"):
        model.ground(images, "dog")
    with pytest.raises(ValueError, match="scoring 'best'"):
        GroundingDino.load(folder, scoring="best", device="cpu")
    with pytest.raises(ValueError, match="batch_size is 0"):
        GroundingDino.load(folder, batch_size=0, device="cpu").ground(images, ["dog", "man"])
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        GroundingDino.load(tmp_path)
    assert model.ground([], []) == []


def test_default_device_prints_its_reason(folder, capsys):
    GroundingDino.load(folder)
    assert re.search(r"grounding-dino: running on \w+ \(.+\)", capsys.readouterr().out)
