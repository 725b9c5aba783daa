"""The whole InstructBLIP asked directly, on a tiny random one: its own forward pass gives the same ranking."""

import numpy as np
import pytest
import torch
from PIL import Image
from seewhere.probing.controls import asked_directly
from seewhere.probing.instructblip import InstructBlipChooser
from seewhere.probing.protocols import VisualChooser
from transformers import (
    BertTokenizerFast,
    BlipImageProcessorPil,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    LlamaConfig,
    PreTrainedTokenizerFast,
    T5Config,
)

QUERIES, PLACEHOLDER = 4, 5
VISION = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
          "image_size": 28, "patch_size": 14}  # fmt: skip
QFORMER = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
           "intermediate_size": 32, "encoder_hidden_size": 24, "max_position_embeddings": 64}  # fmt: skip
PROMPTS = ["the cat is left of the dog", "the dog is near the cat and the dog"]
IMAGES = [Image.new("RGB", (40, 30), "red"), Image.effect_noise((30, 40), 80).convert("RGB")]


def config(text):
    return InstructBlipConfig(vision_config=VISION, qformer_config=QFORMER, text_config=text.to_dict(),
                              num_query_tokens=QUERIES, image_token_index=PLACEHOLDER)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("instructblip")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<image>", "yes", "no", "certainly", "not"]
    words += sorted({word for prompt in PROMPTS for word in prompt.split()})
    (place / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    llama = LlamaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, intermediate_size=16, num_attention_heads=2)
    model = InstructBlipForConditionalGeneration(config(llama)).eval()
    model.query_tokens.data.normal_()
    for parameter in model.parameters():
        parameter.data.mul_(3)  # far from uniform answers
    model.save_pretrained(place)
    bert = BertTokenizerFast(str(place / "vocab.txt"))
    plain = PreTrainedTokenizerFast(tokenizer_object=bert._tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    InstructBlipProcessor(BlipImageProcessorPil(size={"height": 28, "width": 28}), plain, bert).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def chooser(folder):
    return InstructBlipChooser.load(folder, device="cpu")


def own_logits(model, processor, image, prompt, answer):
    """The model's own forward pass with placeholders before the words; logits of the answer's places."""
    ids = [PLACEHOLDER] * QUERIES + processor.tokenizer(prompt)["input_ids"] + answer
    read = processor.qformer_tokenizer([prompt], return_tensors="pt")
    with torch.no_grad():
        logits = model(
            pixel_values=processor.image_processor(images=[image], return_tensors="pt")["pixel_values"],
            qformer_input_ids=read["input_ids"],
            qformer_attention_mask=read["attention_mask"],
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        ).logits
    return logits[0, -len(answer) - 1 : -1].log_softmax(-1)


def test_options_are_ranked_by_the_models_own_forward_pass(chooser):
    options = [["yes", "no"], ["certainly not", "yes", "certainly"]]
    found = chooser.choose(IMAGES, PROMPTS, options)
    assert isinstance(chooser, VisualChooser)
    for image, prompt, row, ours in zip(IMAGES, PROMPTS, options, found, strict=True):
        scores = []
        for option in row:
            answer = chooser.processor.tokenizer(option, add_special_tokens=False)["input_ids"]
            table = own_logits(chooser.model, chooser.processor, image, prompt, answer)
            scores.append(float(table[range(len(answer)), answer].sum()))
        expected = np.exp(np.array(scores) - max(scores))
        np.testing.assert_allclose(ours, expected / expected.sum(), atol=1e-4)
    assert abs(found[0][0] - 0.5) > 0.01


def test_it_answers_a_task(chooser, binary_task):
    examples = binary_task.splits["test"][:5]
    odds = asked_directly(chooser, examples, batch=2)
    assert odds.shape == (5, 1) and np.isfinite(odds).all()


def test_what_it_cannot_do_is_said(chooser):
    with pytest.raises(ValueError, match="non-empty options"):
        chooser.choose(IMAGES, PROMPTS, [["yes", "no"], []])
    with pytest.raises(ValueError, match="only decodes"):
        t5 = T5Config(vocab_size=40, d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8)
        InstructBlipChooser(InstructBlipForConditionalGeneration(config(t5)), None)
