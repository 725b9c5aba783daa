"""The micro language model: a 3-million-parameter Llama that reads the world's text.

The same classes as the large models (`LlamaForCausalLM`, a byte-level BPE tokenizer with a chat template), small
enough to train on a laptop, and the base on which every micro vision-language model stands. It is trained from
scratch on lessons (`seewhere.world.lessons`): box lists with dense questions. Training starts with short lists,
because the look-up circuits that long lists need form on short ones first.

Numbers 0-999 are one token each, so coordinates cost little.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from seewhere.world.lessons import Lesson

PAD, USER, ASSISTANT, END = "<|pad|>", "<|user|>", "<|assistant|>", "<|end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
# Pieces: a number of up to three digits, a word with its leading space, punctuation with its trailing space.
_PIECES = r"\d{1,3}| ?[^\W\d_]+|[^\w\s]+ ?|\s+|_+"
IGNORED = -100


def build_tokenizer(texts: Iterable[str], vocabulary: int = 2560) -> PreTrainedTokenizerFast:
    """Train the byte-level BPE tokenizer on texts of the world.

    Args:
        texts: training texts; every number 0-999 is added so that each becomes one token.
        vocabulary: size including 256 bytes and 4 special tokens.

    Returns:
        A tokenizer with pad, end-of-turn (eos) and chat template set; any text round-trips.
    """
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    numbers = [" ".join(map(str, range(1000)))] * 500
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, USER, ASSISTANT, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, *numbers], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END)
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_model(vocabulary: int, hidden: int = 192, layers: int = 6, heads: int = 6) -> LlamaForCausalLM:
    """Return a randomly initialised micro Llama (about 3 M parameters at the defaults; tied embeddings)."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=int(hidden * 8 / 3 // 64 * 64),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.02,
        bos_token_id=None,
        eos_token_id=3,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def lesson_rows(
    lesson: Lesson, tokenizer: PreTrainedTokenizerFast
) -> tuple[list[int], list[int], list[int], list[float]]:
    """Pack a lesson into one row: the list once, then every question as its own segment.

    Returns:
        (tokens, segments, positions, weights), each of length L. Segment 0 is the list, which every segment sees;
        questions do not see each other and their positions restart where the list ends. Weights are those of the
        loss on each token: 1 for answers, 0.1 for the list's text, 0 for questions.
    """

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    tokens = encode(f"{USER}\n{lesson.context}\n")
    segments, positions, weights = [0] * len(tokens), list(range(len(tokens))), [0.1] * len(tokens)
    start = len(tokens)
    for number, (question, answer) in enumerate(lesson.questions, start=1):
        asked = encode(f"{question}{END}\n{ASSISTANT}\n")
        answered = encode(f"{answer}{END}")
        tokens += asked + answered
        segments += [number] * (len(asked) + len(answered))
        positions += range(start, start + len(asked) + len(answered))
        weights += [0.0] * len(asked) + [1.0] * len(answered)
    return tokens, segments, positions, weights


def collate(rows: Sequence[tuple[list[int], list[int], list[int], list[float]]], pad: int) -> dict[str, torch.Tensor]:
    """Pad packed rows to one batch.

    Returns:
        input_ids, position_ids, segments (B, L) long; weights (B, L) float; attention_mask (B, 1, L, L) bool, true
        where a token may look: earlier tokens of the list or of its own segment.
    """
    length = max(len(row[0]) for row in rows)

    def padded(column: int, value: float, dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor([list(row[column]) + [value] * (length - len(row[column])) for row in rows], dtype=dtype)

    segments = padded(1, -1, torch.long)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    same = segments[:, :, None] == segments[:, None, :]
    mask = (same | (segments[:, None, :] == 0)) & causal
    return {
        "input_ids": padded(0, pad, torch.long),
        "position_ids": padded(2, 0, torch.long),
        "segments": segments,
        "weights": padded(3, 0.0, torch.float32),
        "attention_mask": mask[:, None],
    }


def weighted_loss(model: LlamaForCausalLM, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (weighted next-token loss, share of answer tokens predicted right); the head runs where weights are."""
    hidden = model.model(
        input_ids=batch["input_ids"], position_ids=batch["position_ids"], attention_mask=batch["attention_mask"]
    ).last_hidden_state
    # A token's target is the next token of the same segment; the list's last token has none.
    same = batch["segments"][:, 1:] == batch["segments"][:, :-1]
    wanted = (batch["weights"][:, 1:] > 0) & same
    logits = model.lm_head(hidden[:, :-1][wanted]).float()
    target, weight = batch["input_ids"][:, 1:][wanted], batch["weights"][:, 1:][wanted]
    losses = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    answers = weight == 1.0
    right = (logits.argmax(-1) == target)[answers].float().mean()
    return (losses * weight).sum() / weight.sum(), right


def muon_and_adamw(model: LlamaForCausalLM, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Return Muon for the hidden matrices and AdamW for embeddings and norms (small Llamas learn about twice as fast).

    Muon: Jordan et al. 2024, as in `torch.optim.Muon`.
    """
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and "lm_head" not in n]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def texts_of(lessons: Iterable[Lesson]) -> Iterator[str]:
    """Yield every text of some lessons (for the tokenizer)."""
    for lesson in lessons:
        yield lesson.context
        for question, answer in lesson.questions:
            yield f"{question}\n{answer}"


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write model (fp16) and tokenizer into a folder that `from_pretrained` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.half() for k, v in model.state_dict().items()}
    half = LlamaForCausalLM(model.config).half()
    half.load_state_dict(state)
    half.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
