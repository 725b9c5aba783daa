"""The micro language model: a small Llama (2.7 M parameters) that reads the world's text.

The same classes as the large models (`LlamaForCausalLM`, a byte-level BPE tokenizer with a chat template), small
enough to train on a laptop, and the base on which every micro vision-language model stands. It is trained from
scratch on lessons (`seewhere.world.lessons`).

Small Llamas learn to look things up late and suddenly, and to compare numbers later still. Two things make it early:

* **Tokens.** A number with the comma that follows it is one token, a category's name is one token, and so are the
  sentences that stand in every prompt: a box is nine tokens, its label always at the same distance from its index.
* **A start that is not random** (`seewhere.models.micro_language_start`): related words and numbers start out alike,
  and the attention starts out as a rough choice from a list. All of it is trained.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from seewhere import storage
from seewhere.models import micro_language_start
from seewhere.models.micro_language_start import LARGEST_NUMBER, ROPE_THETA, forms
from seewhere.packing import mask_of
from seewhere.world.lessons import SET_PHRASES, Lesson

PAD, USER, ASSISTANT, END = "<|pad|>", "<|user|>", "<|assistant|>", "<|end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def _pieces(names: Iterable[str]) -> str:
    """Return the pattern of what BPE may merge: names of several words, numbers, words, and everything between."""
    several = "|".join(re.escape(n) for n in sorted(names, key=len, reverse=True) if " " in n)
    first = rf" ?(?:{several})(?![^\W_])|" if several else ""
    return first + r"(?:100|\d{1,2})(?!\d), |\d{1,3}|_+| ?[^\W\d_]+|[^\w]+"


def build_tokenizer(texts: Iterable[str], vocabulary: int = 2560, names: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Train the byte-level BPE tokenizer on texts of the world.

    Args:
        texts: training texts; every number 0-999 is added so that each becomes one token.
        vocabulary: size including 256 bytes and 4 special tokens; the set phrases come on top.
        names: category names; each becomes one token, with and without a space before it.

    Returns:
        A tokenizer with pad, end-of-turn (eos) and chat template set; any text round-trips.
    """
    texts = list(texts)
    nouns = [form for several in forms(names).values() for form in several]
    words = sorted({*nouns, *(word for text in texts for word in re.findall(r"[^\W\d_]+", text))})
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_pieces(nouns)), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    numbers = ["\n".join([" ".join(map(str, range(LARGEST_NUMBER + 1))), "".join(f"{n}, " for n in range(101))])] * 500
    alone = ["".join(f"{word}. {word}." for word in words)] * 200
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, USER, ASSISTANT, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, *numbers, *alone], trainer)
    tokenizer.add_tokens([AddedToken(phrase, normalized=False) for phrase in SET_PHRASES])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END)
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_model(
    tokenizer: PreTrainedTokenizerFast, hidden: int = 192, layers: int = 5, heads: int = 6, names: Sequence[str] = ()
) -> LlamaForCausalLM:
    """Return an untrained micro Llama (about 3 M parameters at the defaults; tied embeddings).

    Args:
        tokenizer: see `build_tokenizer`.
        hidden: width; layers, heads: depth and heads per layer.
        names: category names whose writings start out alike.

    Raises:
        ValueError: too narrow for the parts that a box is made of.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=int(hidden * 8 / 3 // 64 * 64),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        attention_bias=True,
        tie_word_embeddings=True,
        initializer_range=0.02,
        bos_token_id=None,
        eos_token_id=3,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        # The output layer is the embedding, whose rows are of size sqrt(width): the last norm keeps logits small.
        model.model.norm.weight.fill_(0.5 / math.sqrt(hidden))
        micro_language_start.prepare(model, tokenizer, names)
    return model


# ---------------------------------------------------------------------------------------------------- lessons


class Row(NamedTuple):
    """A packed lesson, one entry a token; see `lesson_row`."""

    tokens: list[int]
    segments: list[int]
    positions: list[int]
    answers: list[bool]


def lesson_row(lesson: Lesson, tokenizer: PreTrainedTokenizerFast, limit: int | None = None) -> Row:
    """Pack a lesson into one row: the list once, then every question as its own segment.

    Args:
        lesson: the lesson.
        tokenizer: see `build_tokenizer`.
        limit: questions that would make the row longer than this many tokens are left out.

    Returns:
        tokens, segments, positions and answers, each of length L. Segment 0 is the list, which every segment sees;
        questions do not see each other and their positions restart where the list ends. ``answers`` marks the tokens
        of answers, the end token among them.
    """

    def encode(texts: list[str]) -> list[list[int]]:
        return tokenizer(texts, add_special_tokens=False)["input_ids"]

    (shared,) = encode([f"{USER}{lesson.context}\n"])
    row = Row(list(shared), [0] * len(shared), list(range(len(shared))), [False] * len(shared))
    asked = encode([f"{q.question}{END}{ASSISTANT}" for q in lesson.questions])
    answered = encode([f"{q.answer}{END}" for q in lesson.questions])
    for number, (question, answer) in enumerate(zip(asked, answered, strict=True), start=1):
        size = len(question) + len(answer)
        if limit is not None and len(row.tokens) + size > limit:
            continue
        row.tokens.extend(question + answer)
        row.segments.extend([number] * size)
        row.positions.extend(range(len(shared), len(shared) + size))
        row.answers.extend([False] * len(question) + [True] * len(answer))
    return row


def collate(
    rows: Sequence[Row], pad: int, additive: torch.dtype | None = None, multiple: int = 1
) -> dict[str, torch.Tensor]:
    """Pad packed rows to one batch.

    Args:
        rows: packed lessons.
        pad: the padding token.
        additive: None for a mask of truth values; for eager attention the number format of a mask that is added.
        multiple: the width is padded up to a multiple of this.

    Returns:
        input_ids, position_ids, segments (B, L) long; answers (B, L) bool; attention_mask (B, 1, L, L), open where a
        token may look: earlier tokens of the list or of its own segment.
    """
    length = -(-max(len(row.tokens) for row in rows) // multiple) * multiple

    def padded(name: str, value: int, dtype: torch.dtype) -> torch.Tensor:
        lists = [getattr(row, name) for row in rows]
        return torch.tensor([entry + [value] * (length - len(entry)) for entry in lists], dtype=dtype)

    segments = padded("segments", -1, torch.long)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    same = segments[:, :, None] == segments[:, None, :]
    visible = ((same | (segments[:, None, :] == 0)) & causal)[:, None]
    return {
        "input_ids": padded("tokens", pad, torch.long),
        "position_ids": padded("positions", 0, torch.long),
        "segments": segments,
        "answers": padded("answers", 0, torch.bool),
        "attention_mask": mask_of(visible, additive),
    }


def answer_loss(model: LlamaForCausalLM, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (mean loss over answer tokens, (N,) bool: which of them are predicted right), in the batch's order."""
    hidden = model.model(
        input_ids=batch["input_ids"],
        position_ids=batch["position_ids"],
        attention_mask=batch["attention_mask"],
        use_cache=False,
    ).last_hidden_state
    # An answer's token is predicted from the one before it, which belongs to the same question.
    wanted = batch["answers"][:, 1:]
    logits = model.lm_head(hidden[:, :-1][wanted]).float()
    target = batch["input_ids"][:, 1:][wanted]
    return torch.nn.functional.cross_entropy(logits, target), logits.argmax(-1) == target


def muon_and_adamw(
    model: LlamaForCausalLM, learning_rate: float, embedding_rate: float | None = None
) -> list[torch.optim.Optimizer]:
    """Return Muon for the hidden matrices and AdamW for embeddings, biases and norms.

    Muon: Jordan et al. 2024, as in `torch.optim.Muon`.
    """
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and "lm_head" not in n]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=embedding_rate or learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def texts_of(lessons: Iterable[Lesson]) -> Iterator[str]:
    """Yield every text of some lessons (for the tokenizer)."""
    for lesson in lessons:
        yield lesson.context
        for asked in lesson.questions:
            yield f"{asked.question}\n{asked.answer}"


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write model (fp16) and tokenizer into a folder that `from_pretrained` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.half() for k, v in model.state_dict().items()}
    half = LlamaForCausalLM(model.config).half()
    half.load_state_dict(state)
    half.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    storage.make_readable(folder / "model.safetensors")
