"""BLIP-2, InstructBLIP and ViLT of the real classes at tiny size, random, saved as the large ones are."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    BertTokenizer,
    BertTokenizerFast,
    Blip2Config,
    Blip2ForImageTextRetrieval,
    Blip2Processor,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    LlamaConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
    ViltConfig,
    ViltForMaskedLM,
    ViltImageProcessorPil,
    ViltProcessor,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

TEXTS = ["a red dog", "the cat to the left of the bus", "dog"]
QUERIES = 32

VISION = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
          "image_size": 28, "patch_size": 14}  # fmt: skip
QFORMER = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
           "intermediate_size": 32, "encoder_hidden_size": 24, "max_position_embeddings": 64}  # fmt: skip


def bert_tokenizer(folder: Path) -> BertTokenizer:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({w for text in TEXTS for w in text.split()})]
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(words))
    return BertTokenizer(str(vocabulary))


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """Queries start at zero in transformers; a test must not pass because all of them are alike."""
    torch.manual_seed(1)
    model.query_tokens.data.normal_()
    return model.eval()


def write_blip2(folder: Path) -> Path:
    """Write a BLIP-2 for image-text retrieval with its processor; return its folder."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    text = OPTConfig(vocab_size=60, hidden_size=16, num_hidden_layers=1, ffn_dim=16, num_attention_heads=2,
                     word_embed_proj_dim=16)  # fmt: skip
    config = Blip2Config(
        vision_config=VISION,
        qformer_config={**QFORMER, "use_qformer_text_input": True},
        text_config=text.to_dict(),
        num_query_tokens=QUERIES,
        image_text_hidden_size=8,
    )
    randomised(Blip2ForImageTextRetrieval(config)).save_pretrained(folder)
    processor = BlipImageProcessorPil(size={"height": 28, "width": 28})
    Blip2Processor(processor, bert_tokenizer(folder)).save_pretrained(folder)
    return folder


def write_instructblip(folder: Path) -> Path:
    """Write an InstructBLIP with its processor; return its folder."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    text = LlamaConfig(vocab_size=60, hidden_size=16, num_hidden_layers=1, intermediate_size=16,
                       num_attention_heads=2)  # fmt: skip
    config = InstructBlipConfig(
        vision_config=VISION, qformer_config=QFORMER, text_config=text.to_dict(), num_query_tokens=QUERIES
    )
    randomised(InstructBlipForConditionalGeneration(config)).save_pretrained(folder)
    tokenizer = bert_tokenizer(folder)
    language = PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    processor = BlipImageProcessorPil(size={"height": 28, "width": 28})
    InstructBlipProcessor(processor, language, tokenizer).save_pretrained(folder)
    return folder


def write_vilt(folder: Path) -> Path:
    """Write a ViLT, as the released one with a head that is not needed, and its processor; return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "red", "square", "is", "on", "left", "right"]
    (folder / "vocab.txt").write_text("\n".join(words))
    config = ViltConfig(vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=48, image_size=64, patch_size=16, max_position_embeddings=16)  # fmt: skip
    torch.manual_seed(0)
    ViltForMaskedLM(config).save_pretrained(folder)
    image_processor = ViltImageProcessorPil(size={"shortest_edge": 48}, size_divisor=16)
    ViltProcessor(image_processor, BertTokenizerFast(str(folder / "vocab.txt"))).save_pretrained(folder)
    return folder
