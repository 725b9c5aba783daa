"""Any chat model that sees (`AutoModelForImageTextToText`), asked many short questions about one picture.

Such models differ in how a picture becomes tokens, and their processors know it. What comes behind the picture is
plain text everywhere, so the picture is read once and all questions continue it in lock-step. Whether a model allows
that (positions of their own, sliding windows and recurrent layers do not) is found out on the first question, by
comparing logits with those of the whole text; where it does not, every question is asked with its own copy. So are
models whose positions have several axes (Qwen's since 2-VL): a small picture would hardly show the difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm
from transformers import DynamicCache

from seewhere.models.caches import bytes_per_token, can_share_prefixes, has_axes
from seewhere.models.inputs import resolve_device
from seewhere.models.lockstep import Prefix, Rows, padded
from seewhere.models.output_layer import answers_only
from seewhere.models.pixel_points import as_rgb

# Share of the largest logit by which shared and whole reading may differ.
TOLERANCE, HALF_TOLERANCE = 1e-3, 5e-2
BUDGET = 4 << 30  # bytes: a few rows of a 7B model behind a picture of 2,900 tokens, all 64 of a small one


class ChatVision:
    """A chat model with eyes.

    Args:
        model: an image-text-to-text model of transformers.
        processor: its processor, with a chat template.
        name: shown in tables.
        batch: most questions in flight.
        budget: bytes that their copies of the picture's keys and values may take together, shared or not; a large model
            behind a large picture is asked fewer at a time.
        share: read the picture once for all questions; None: where the model gives the same logits with it.
        progress: show a bar over the questions.

    Raises:
        ValueError: the processor has no chat template.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        name: str,
        batch: int = 64,
        share: bool | None = None,
        progress: bool = True,
        budget: int = BUDGET,
    ) -> None:
        if not getattr(processor, "chat_template", None):
            raise ValueError(
                f"{name}: the processor has no chat template, so it is not known how a question is put. Expected an "
                "instruction-tuned model; a base model cannot be asked."
            )
        self.model, self.processor, self.name = model.eval(), processor, name
        self.batch, self.share, self.progress, self.budget = batch, share, progress, budget
        self._asked_to_share, self.forced = bool(share), 0
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.ends = _end_tokens(model, self.tokenizer)

    @classmethod
    def load(
        cls,
        source: str | Path,
        device: str | None = None,
        dtype: str | None = None,
        revision: str = "main",
        **options: Any,
    ) -> Self:
        """Load a hub id or folder.

        Raises:
            ValueError: not a model that takes pictures and text and writes text.
            OSError: nothing there.
        """
        from transformers import AutoModelForImageTextToText, AutoProcessor

        place = resolve_device(device, str(source))
        chosen = dtype or ("bfloat16" if place.type == "cuda" else "float32")
        model: Any = AutoModelForImageTextToText.from_pretrained(
            source, dtype=getattr(torch, chosen), revision=revision
        )
        processor = AutoProcessor.from_pretrained(source, revision=revision)
        return cls(model.to(place), processor, Path(source).name, **options)

    # ------------------------------------------------------------------------------------------------- asking

    @torch.inference_mode()
    def write(self, image: Image.Image, questions: Sequence[str], length: int = 24) -> list[str]:
        """Greedy answers of at most `length` tokens each, in the order of the questions."""
        if not questions:
            return []
        picture, found = as_rgb(image), list[str]()
        prefix, tails = self._read(picture, questions)
        for chunk in self._chunks(len(questions), prefix, self._alone(picture, questions, prefix) + length):
            if prefix is None:
                tokens = self._generate(picture, [questions[i] for i in chunk], length)
            else:
                tokens = self._continue(prefix, [tails[i] for i in chunk], length)
            found += [self.tokenizer.decode(line, skip_special_tokens=True).strip() for line in tokens]
        return found

    @torch.inference_mode()
    def option_chances(self, image: Image.Image, questions: Sequence[str], options: Sequence[str]) -> np.ndarray:
        """Probabilities (N, options) that an answer begins with each option, normalised over the options.

        An option counts as the tokenizer writes it behind the chat's last words, with a space before it and without,
        in one token or in several (Llama's writes a digit behind a space in two). Where the model's own answer would
        begin with none of them, what it gives them still ranks them; such questions are counted in ``forced``.

        Raises:
            ValueError: options that are written alike, or that melt into the words before the answer.
        """
        ways = self._ways(options)
        contexts = {way[:count] for found in ways for way in found for count in range(len(way))}
        chances = np.zeros((len(questions), len(options)))
        if not questions:
            return chances
        picture = as_rgb(image)
        prefix, tails = self._read(picture, questions)
        for chunk in self._chunks(len(questions), prefix, self._alone(picture, questions, prefix)):
            inputs = None if prefix is not None else self._inputs(picture, [questions[i] for i in chunk])
            behind = [tails[i] for i in chunk] if prefix is not None else []
            logs = {context: self._logs(prefix, behind, inputs, context) for context in contexts}
            columns = [
                torch.stack(
                    [torch.stack([logs[way[:k]][:, way[k]] for k in range(len(way))]).sum(0) for way in found]
                ).logsumexp(0)
                for found in ways
            ]
            begun = torch.tensor(sorted({way[0] for found in ways for way in found}), device=logs[()].device)
            self.forced += int((~torch.isin(logs[()].argmax(-1), begun)).sum())
            chances[chunk] = torch.stack(columns, dim=1).cpu().double().softmax(1)
        return chances

    def _ways(self, options: Sequence[str]) -> list[list[tuple[int, ...]]]:
        """For each option, the token rows that write it where an answer begins."""
        before = self._chat("QUESTION").rpartition("QUESTION")[2]
        start = self.tokenizer(before, add_special_tokens=False)["input_ids"]
        found = []
        for option in options:
            rows = [
                self.tokenizer(before + written, add_special_tokens=False)["input_ids"]
                for written in (option, f" {option}")
            ]
            own = {tuple(ids[len(start) :]) for ids in rows if ids[: len(start)] == start} - {()}
            if not own:
                raise ValueError(
                    f"{self.name}: {option!r} melts into the words before an answer, {before[-20:]!r}, so what "
                    "the model gives it cannot be told. Ask a model with another tokenizer or chat template."
                )
            found.append(sorted(own))
        if sum(map(len, found)) > len({way for own in found for way in own}):
            raise ValueError(f"{self.name}: two of {list(options)} are written alike; expected different ones")
        return found

    def _logs(
        self, prefix: Prefix | None, tails: Sequence[list[int]], inputs: Any, context: tuple[int, ...]
    ) -> torch.Tensor:
        """Log-probabilities (N, vocabulary) of what follows questions and the beginning of an answer, `context`.

        The questions stand behind a shared picture as `tails`, or are whole as `inputs`.
        """
        if prefix is not None:
            rows = Rows(self.model, prefix, len(tails), merged=False)
            logits = rows.feed(*padded([[*tail, *context] for tail in tails], self.model.device))
            return logits.float().log_softmax(-1)
        count, longer = len(inputs["input_ids"]), dict(inputs)
        for name in {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"} & set(inputs):
            values = {"input_ids": context, "attention_mask": (1,) * len(context)}.get(name, (0,) * len(context))
            more = torch.tensor([values] * count, dtype=inputs[name].dtype, device=inputs[name].device)
            longer[name] = torch.cat([inputs[name], more.reshape(count, -1)], dim=1)
        last = torch.zeros_like(longer["input_ids"], dtype=torch.bool)
        last[:, -1] = True
        with answers_only(self.model, last):
            return self.model(**longer, use_cache=False).logits.float().log_softmax(-1)

    def _alone(self, picture: Image.Image, questions: Sequence[str], prefix: Prefix | None) -> int:
        """Tokens of a question that brings its own copy of the picture; 0 where pictures are shared."""
        return 0 if prefix is not None else self._inputs(picture, questions[:1])["input_ids"].shape[1]

    def _chunks(self, count: int, prefix: Prefix | None, tokens: int = 0) -> Iterator[list[int]]:
        """Numbers of the questions that are in flight together: what they keep of the picture stays in the budget.

        Args:
            count: of questions.
            prefix: the shared picture.
            tokens: without one, how many a question has.
        """
        if prefix is not None:
            layout = prefix.layout()
            each = sum(part.nbytes for part in (*layout.keys, *layout.values))
        else:
            each = tokens * bytes_per_token(self.model)
        size = max(1, min(self.batch, self.budget // max(each, 1)))
        with tqdm(total=count, unit="question", disable=not self.progress or count <= size) as bar:
            for start in range(0, count, size):
                chunk = list(range(start, min(start + size, count)))
                yield chunk
                bar.update(len(chunk))

    # ------------------------------------------------------------------------------------------- whole questions

    def _inputs(self, picture: Image.Image, questions: Sequence[str]) -> Any:
        """The model's inputs for questions that each bring the picture, padded on the left."""
        chats = [
            [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": question}]}]
            for question in questions
        ]
        inputs = self.processor.apply_chat_template(
            chats,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )
        return inputs.to(self.model.device, self.model.dtype)

    def _generate(self, picture: Image.Image, questions: Sequence[str], length: int) -> list[list[int]]:
        inputs = self._inputs(picture, questions)
        ends = {"eos_token_id": sorted(self.ends)} if self.ends else {}
        pad = self.tokenizer.pad_token_id
        written = self.model.generate(**inputs, max_new_tokens=length, do_sample=False, pad_token_id=pad, **ends)
        return [_until(line, self.ends) for line in written[:, inputs["input_ids"].shape[1] :].tolist()]

    # ------------------------------------------------------------------------------------------- shared questions

    def _read(self, picture: Image.Image, questions: Sequence[str]) -> tuple[Prefix | None, list[list[int]]]:
        """The picture, read, and what follows it in each question; None where it cannot be shared."""
        if self.share is False:
            return None, []
        if has_axes(self.model):
            return self._refuse("its positions have several axes, which a picture that is read once does not keep")
        inputs = self._inputs(picture, questions[:1])
        tails = self._tails(questions)
        whole = inputs["input_ids"][0].tolist()
        if not tails or whole[-len(tails[0]) :] != tails[0] or len(whole) == len(tails[0]):
            return self._refuse("its processor does not put plain text behind the picture")
        length = len(whole) - len(tails[0])
        if not can_share_prefixes(self.model, len(whole) + 64):
            return self._refuse("its attention does not reach over the whole text, or is not of a known kind")
        prefix = self._prefix(inputs, length)
        if self.share is None:
            self.share = self._agrees(inputs, prefix, tails[0])
        return (prefix, tails) if self.share else (None, [])

    def _refuse(self, reason: str) -> tuple[None, list[list[int]]]:
        """Not this picture; where nobody asked for sharing, it and its questions are read in whole texts."""
        if self._asked_to_share:
            raise ValueError(f"{self.name}: the picture cannot be shared by questions: {reason}; use share=None")
        return None, []

    def _chat(self, question: str) -> str:
        """A question behind a picture as the model reads it, up to where its answer begins, as text."""
        turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
        return str(self.processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False))

    def _tails(self, questions: Sequence[str]) -> list[list[int]]:
        """Token ids of what stands behind the picture; empty where the template does not show where that is."""
        mark = getattr(self.processor, "image_token", None)
        texts = [self._chat(question) for question in questions]
        if not isinstance(mark, str) or any(text.count(mark) != 1 for text in texts):
            return []
        behind = [text.split(mark)[1] for text in texts]
        return self.tokenizer(behind, add_special_tokens=False)["input_ids"] if all(behind) else []

    def _prefix(self, inputs: Any, length: int) -> Prefix:
        """Read the first `length` tokens, the picture among them."""
        names = {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"} & set(inputs)
        cut = {name: inputs[name][:, :length] for name in names}
        others = {name: value for name, value in inputs.items() if name not in names}
        cache = DynamicCache()
        nowhere = torch.zeros(1, length, dtype=torch.bool, device=self.model.device)
        with answers_only(self.model, nowhere):
            self.model(**cut, **others, past_key_values=cache, use_cache=True)
        return Prefix(cache, length)

    def _agrees(self, inputs: Any, prefix: Prefix, tail: list[int]) -> bool:
        """Whether a question behind the shared picture gives the logits of the whole text."""
        expected = self.model(**inputs).logits[:, -1].float()
        try:
            found = Rows(self.model, prefix, 1, merged=False).feed(*padded([tail], self.model.device)).float()
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
            return False
        limit = TOLERANCE if self.model.dtype.itemsize >= 4 else HALF_TOLERANCE
        return bool((found - expected).abs().max() <= limit * expected.abs().max().clamp(min=1.0))

    def _continue(self, prefix: Prefix, tails: Sequence[list[int]], length: int) -> list[list[int]]:
        """Greedy answers of all rows in lock-step."""
        device = self.model.device
        rows, written = Rows(self.model, prefix, len(tails), merged=False), list[torch.Tensor]()
        tokens, real = padded(tails, device)
        ends = torch.tensor(sorted(self.ends), dtype=torch.long, device=device)
        going = torch.ones(len(tails), dtype=torch.bool, device=device)
        while len(written) < length:
            chosen = rows.feed(tokens, real).argmax(-1)
            written.append(chosen)
            going = going & ~torch.isin(chosen, ends)
            if not going.any():
                break
            tokens, real = chosen[:, None], going[:, None]
        return [_until(line, self.ends) for line in torch.stack(written, dim=1).tolist()]


def _until(tokens: list[int], ends: set[int]) -> list[int]:
    """Tokens up to the first that ends an answer."""
    return tokens[: next((place for place, token in enumerate(tokens) if token in ends), len(tokens))]


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Tokens with which the model says that it is done."""
    stated = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = set(stated) if isinstance(stated, (list, tuple)) else {stated}
    return {int(token) for token in {*found, tokenizer.eos_token_id} if token is not None}
