"""Every pixel of a picture: 4096 questions behind 256 image tokens, answered and trained on.

Answering: the shared-prefix engine, beside `generate` in batches that read the picture again for every question, and
`generate` on a prefix read once and copied to every row. Training: all questions of a picture in one pass, beside one
question per pass. Both beside the time that their matrix products alone take at this machine's measured speed.

The model is a random Llama of the micro model's size: speed does not depend on what it has learned. `--model` takes a
shipped one (or a folder) with its own tokens instead. The slow ways are timed on a few questions and scaled to all.
Behind 256 image tokens or more, less than ten times the speed of the ways without sharing is a failure; with --short
too little is timed to say.

    python tests/benchmarks/bench_pixels.py [--short] [--dtype bfloat16] [--hidden 192 --layers 4] [--device cuda]
    python tests/benchmarks/bench_pixels.py --model micro-pixels-stage3 [--image-tokens 256]
"""

from __future__ import annotations

import argparse
import os
from typing import Any

import torch
from measure import PeakBytes, matmul_peak, matrix_parameters, seconds, show
from seewhere.models.caches import select_rows
from seewhere.models.grammar import AnswerGrammar
from seewhere.models.lockstep import Prefix
from seewhere.models.micro_language import build_tokenizer
from seewhere.models.prefix_training import question_loss
from seewhere.models.registry import load_minigpt
from seewhere.models.shared_attention import shared_attention
from seewhere.models.shared_prefix import PrefixEngine
from seewhere.packing import Questions, Sample, collate_questions
from seewhere.pixels import prompts
from transformers import LlamaConfig, LlamaForCausalLM

GRID = prompts.GRID
LEAST_GAIN = 10.0
"""Of the engine over `generate` without sharing, and of a packed pass over one question per pass."""
LEAST_TOKENS = 256
"""Image tokens from which on that is asked for: as many as MiniGPT-v2 has."""


def settings() -> argparse.Namespace:
    """Command line; `SEEWHERE_BENCH=short` stands for --short."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", default=os.environ.get("SEEWHERE_BENCH") == "short")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--hidden", type=int, default=192)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--model", default="", help="a shipped pixel model or a folder, in place of a random Llama")
    parser.add_argument("--image-tokens", type=int, help="default: 256, or the given model's own")
    parser.add_argument("--rows", type=int, default=32, help="rows of a batch for the ways without sharing")
    return parser.parse_args()


def build(chosen: argparse.Namespace) -> tuple[Any, Any]:
    """A random Llama and a tokenizer that knows the prompts, or the chosen model's; sets `chosen.image_tokens`."""
    torch.manual_seed(0)
    if chosen.model:
        given = load_minigpt(chosen.model, chosen.device)
        chosen.image_tokens = chosen.image_tokens or given.tokens
        chosen.hidden = given.language.config.hidden_size
        return given.language.to(getattr(torch, chosen.dtype)).eval(), given.tokenizer
    chosen.image_tokens = chosen.image_tokens or LEAST_TOKENS
    texts = [prompts.with_image(prompts.reconstruct(x, x)) + prompts.rgb_answer((x, x, x)) for x in range(GRID)]
    tokenizer = build_tokenizer(texts, 1600)
    config = LlamaConfig(
        vocab_size=2560,
        hidden_size=chosen.hidden,
        intermediate_size=chosen.hidden * 8 // 3 // 64 * 64,
        num_hidden_layers=chosen.layers,
        num_attention_heads=chosen.hidden // 32,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=0,
        attn_implementation="eager" if chosen.device == "cpu" and chosen.dtype != "float32" else "sdpa",
    )
    return LlamaForCausalLM(config).to(chosen.device, getattr(torch, chosen.dtype)).eval(), tokenizer


# ------------------------------------------------------------------------------------------------------ answering


def generate(model: Any, prefix: list[int], questions: list[list[int]], length: int, cache: Any = None) -> Any:
    """Greedy `generate` for questions behind token ids, in one batch padded on the left; `cache` holds the prefix."""
    width = max(map(len, questions))
    # What pads stands between picture and question, where the mask hides it.
    rows = [[*prefix, *[0] * (width - len(q)), *q] for q in questions]
    mask = [[1] * len(prefix) + [0] * (width - len(q)) + [1] * len(q) for q in questions]
    ids = torch.tensor(rows, device=model.device)
    return model.generate(
        input_ids=ids,
        attention_mask=torch.tensor(mask, device=model.device),
        past_key_values=cache,
        min_new_tokens=length,
        max_new_tokens=length,
        do_sample=False,
    )


def copied(model: Any, prefix: Prefix, ids: list[int], questions: list[list[int]], length: int) -> Any:
    """Greedy `generate` on a copy of the prefix's keys and values in every row."""
    cache = select_rows(prefix.cache, torch.zeros(len(questions), dtype=torch.long))
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys.contiguous(), layer.values.contiguous()
    return generate(model, ids, questions, length, cache)


def agreeing(model: Any, prefix: list[int], questions: list[list[int]], found: Any, grammar: AnswerGrammar) -> int:
    """How many answers are those of one `generate` per question under the grammar."""
    same, end = 0, model.config.eos_token_id
    for question, values in zip(questions, found.values, strict=True):
        ids = torch.tensor([[*prefix, *question]], device=model.device)
        size = ids.shape[1]
        output = model.generate(
            input_ids=ids,
            prefix_allowed_tokens_fn=lambda _, row, s=size: grammar.allowed_after(row[s:].tolist(), end),
            max_new_tokens=12,
            do_sample=False,
        )
        same += output[0, size:].tolist()[:-1] == list(grammar.tokens_of(values))
    return same


def operations(model: Any, tokens: int, seen: int, heads: float) -> float:
    """Operations of layers for `tokens` that see `seen` tokens each, and `heads` passes of the output layer."""
    layers, head = matrix_parameters(model)
    config = model.config
    return 2.0 * (layers * tokens + head * heads + 2 * config.num_hidden_layers * config.hidden_size * tokens * seen)


def answering(model: Any, tokenizer: Any, chosen: argparse.Namespace) -> float:
    """Time the three ways, compare answers and memory; returns how many times faster sharing is than not."""
    prefix = torch.randint(300, 1500, (chosen.image_tokens,)).tolist()
    cells = [(x, y) for y in range(GRID) for x in range(GRID)]
    texts = ["</Img> " + prompts.reconstruct(x, y) for x, y in cells]
    everything = tokenizer(texts, add_special_tokens=False)["input_ids"]
    whole, questions = len(everything), everything[:: 16 if chosen.short else 1]
    grammar = AnswerGrammar.from_texts(tokenizer, prompts.RGB_TEXTS)
    length = max(sum(len(max(slot, key=len)) for slot in grammar.slots), 1)
    few = everything[:: whole // chosen.rows][: chosen.rows]
    engine = PrefixEngine(model)
    read = engine.read(prefix)
    engine.decode(read, few, grammar)  # what has to be prepared once, is

    times = 1 if chosen.short else 2
    ours = seconds(lambda: engine.decode(engine.read(prefix), questions, grammar), times) * whole / len(questions)
    plain = seconds(lambda: generate(model, prefix, few, length), times) * whole / len(few)
    rows = seconds(lambda: copied(model, read, prefix, few, length), times) * whole / len(few)
    with PeakBytes() as shared_memory:
        engine.decode(read, few * 4, grammar)
    with PeakBytes() as copied_memory, torch.inference_mode():
        copied(model, read, prefix, few * 4, length)
    common = 0
    while len({tuple(q[: common + 1]) for q in everything}) == 1:
        common += 1
    # What is chosen is fed back but for the last number, with what is certain behind it.
    last = max(len(text) for text in grammar.slots[-1])
    fed = sum(len(q) - common for q in everything) + whole * (length - last)
    seen = chosen.image_tokens + len(everything[-1])
    share = len(grammar.tables.tokens) / model.config.vocab_size
    needed = operations(model, fed, seen, 3 * whole * share)
    needed += operations(model, chosen.image_tokens + common, chosen.image_tokens // 2, 0)
    limit = needed / matmul_peak(model.device, model.dtype)
    checked = everything[:: whole // 8][:8]
    same = agreeing(model, prefix, checked, engine.decode(read, checked, grammar), grammar)
    if same < len(checked) and chosen.dtype == "float32":
        raise SystemExit(
            f"only {same} of {len(checked)} answers are those of generate; expected all in single precision"
        )
    mib = 2**20
    show(
        f"{whole} questions behind {chosen.image_tokens} image tokens ({chosen.dtype}, {len(everything[0])} tokens a "
        f"question, {length} an answer)",
        [
            (
                f"engine, timed on {len(questions)}",
                ours,
                f"{whole / ours:.0f} questions/s; answers as generate's: {same} of {len(checked)}",
            ),
            (f"generate, no sharing, batches of {len(few)}", plain, f"{whole / plain:.0f} questions/s"),
            (f"generate, prefix copied to {len(few)} rows", rows, f"{whole / rows:.0f} questions/s"),
            ("limit: matrix products alone", limit, f"the engine reaches {limit / ours:.0%} of it"),
        ],
        ours,
    )
    print(
        f"  memory of {4 * len(few)} questions at once: engine {shared_memory.peak / mib:.0f} MiB in chunks, "
        f"prefix copied {copied_memory.peak / mib:.0f} MiB"
    )
    return plain / ours


# ------------------------------------------------------------------------------------------------------- training


def step(model: Any, image: torch.Tensor, questions: Questions) -> None:
    """Forward and backward pass."""
    model.zero_grad(set_to_none=True)
    question_loss(model, image, questions).backward()


def training(model: Any, tokenizer: Any, chosen: argparse.Namespace) -> float:
    """Time a packed pass, one question per pass, and a batch without sharing; returns what packing gains."""
    count = 128 if chosen.short else 512
    model.train()
    draw = torch.Generator().manual_seed(1)
    image = torch.randn(1, chosen.image_tokens, chosen.hidden, generator=draw).to(model.device, model.dtype)
    cells = torch.randint(0, GRID, (count, 2), generator=draw).tolist()
    colours = torch.randint(0, 256, (count, 3), generator=draw).tolist()

    def tokens(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    samples = [
        Sample(
            tokens("</Img> " + prompts.reconstruct(x, y)), (*tokens(prompts.rgb_answer(rgb)), tokenizer.eos_token_id)
        )
        for (x, y), rgb in zip(cells, colours, strict=True)
    ]
    packed = collate_questions([samples])
    single = [collate_questions([[sample]]) for sample in samples[:4]]
    few = samples[:8]
    apart = collate_questions([[sample] for sample in few])
    times = 1 if chosen.short else 2
    with shared_attention(model):
        step(model, image, packed)
        ours = seconds(lambda: step(model, image, packed), times) / count
    blocked = seconds(lambda: step(model, image, packed), 1) / count
    one = seconds(lambda: [step(model, image, question) for question in single], times) / len(single)
    batch = seconds(lambda: step(model, image.expand(len(few), -1, -1), apart), times) / len(few)
    start = chosen.image_tokens + packed.shared.shape[1]
    behind = sum(len(s) - packed.shared.shape[1] for s in samples)
    answers = sum(len(s.answer) for s in samples)
    needed = operations(model, behind, start + 8, answers) + operations(model, start, start // 2, 0)
    limit = 3 * needed / matmul_peak(model.device, model.dtype) / count
    show(
        f"training, {count} questions about one picture, seconds per question ({chosen.dtype})",
        [
            ("packed in one pass", ours, f"{1 / ours:.0f} questions/s"),
            ("packed in one pass, block mask", blocked, f"{1 / blocked:.0f} questions/s"),
            ("one question per pass", one, f"{1 / one:.1f} questions/s"),
            (f"{len(few)} questions per pass, no sharing", batch, f"{1 / batch:.1f} questions/s"),
            ("limit: matrix products alone", limit, f"packed reaches {limit / ours:.0%} of it"),
        ],
        ours,
    )
    return one / ours


def check(gains: dict[str, float], chosen: argparse.Namespace) -> None:
    """Compare gains with what is asked for.

    Raises:
        SystemExit: one is too small, where enough was timed to say so.
    """
    least = f"limit: at least {LEAST_GAIN:.0f} x"
    print("  " + "; ".join(f"{name} {gain:.1f} x" for name, gain in gains.items()) + f" ({least})")
    if chosen.short or chosen.image_tokens < LEAST_TOKENS:
        return
    slow = [f"{name} is {gain:.1f} x as fast" for name, gain in gains.items() if gain < LEAST_GAIN]
    if slow:
        raise SystemExit(f"{' and '.join(slow)}, less than {LEAST_GAIN:.0f} x")


def main() -> None:
    """Run both."""
    chosen = settings()
    model, tokenizer = build(chosen)
    answering_gain = answering(model, tokenizer, chosen)
    training_gain = training(model, tokenizer, chosen)
    check({"answering with a shared picture": answering_gain, "training in one pass": training_gain}, chosen)


if __name__ == "__main__":
    main()
