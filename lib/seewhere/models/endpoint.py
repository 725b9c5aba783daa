"""A language model behind an OpenAI-compatible chat server (vLLM, llama.cpp, `transformers serve`, hosted ones).

Two ways to answer a closed question over such an interface:

* ``"logprobs"``: ask for one token with the probabilities of the most likely alternatives. Exact for options of one
  token among those alternatives. An option that begins another (1 and 12 where digits are single tokens), or that is
  not among the alternatives, cannot be told apart by one token; the mass that is left over bounds it from above, and
  it gets at most that (see `_from_alternatives`).
* ``"completion"``: one free completion per prompt, parsed by the first run of characters that is an option; all
  probability goes to it. A completion that names no option gives not-a-number for all of them and is counted in
  `unusable`. This is the fall-back of servers that give no log-probabilities, and for single questions of which no
  alternative begins an option: a model that thinks aloud first, or answers in a sentence.

``"auto"`` tries the first and falls back to the second where the server does not support it, and says so once.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import requests
from tqdm.auto import tqdm

from seewhere.models.protocols import Message

RETRIED_STATUS = {408, 409, 425, 429, 500, 502, 503, 504}


class EndpointError(RuntimeError):
    """The server could not be reached, refused the request, or answered something that is not a completion."""


class EndpointLanguageModel:
    """A chat model behind an address; answers `protocols.LanguageModel`."""

    def __init__(
        self,
        address: str,
        model: str | None = None,
        *,
        method: Literal["auto", "logprobs", "completion"] = "auto",
        alternatives: int = 20,
        key: str | None = None,
        timeout: float = 60.0,
        retries: int = 4,
        wait: float = 1.0,
        jobs: int = 4,
        progress: bool = True,
    ) -> None:
        """Describe the server; nothing is sent yet.

        Args:
            address: base address, with or without ``/v1`` at its end.
            model: the served model's name; by default the first one the server lists.
            method: how closed questions are asked, see the module's text.
            alternatives: most likely tokens asked for (``top_logprobs``; most servers allow up to 20).
            key: bearer token; by default the environment variable ``OPENAI_API_KEY`` if set.
            timeout: seconds to wait for one answer.
            retries: further tries after a lost connection or a busy server, waiting `wait` * 2**n seconds between.
            wait: seconds before the first further try.
            jobs: requests in flight at once.
            progress: show a progress bar.
        """
        address = address.rstrip("/")
        self.address = address if address.endswith("/v1") else address + "/v1"
        self.method, self.alternatives, self.timeout = method, alternatives, timeout
        self.retries, self.wait, self.jobs, self.progress = retries, wait, jobs, progress
        key = key if key is not None else os.environ.get("OPENAI_API_KEY")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.longest_wait = 30.0  # seconds between two tries, at most
        self._model = model
        self.unusable = 0
        self.asked = 0

    @property
    def name(self) -> str:
        """The served model's name (asks the server once if it was not given)."""
        if self._model is None:
            listed = self._request("GET", "/models").get("data") or []
            if not listed:
                raise EndpointError(f"{self.address}/models lists no model; name one with model=...")
            self._model = str(listed[0]["id"])
        return self._model

    @name.setter
    def name(self, value: str) -> None:
        self._model = value

    def choose(self, prompts: Sequence[list[Message]], options: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """Probabilities over each prompt's options (see the module's text for how far they are exact).

        They are not-a-number where the model names none of the options.

        Raises:
            ValueError: for a prompt without options or with one twice.
            EndpointError: if the server fails after all retries, or has no log-probabilities and ``"logprobs"`` was
                asked for.
        """
        if len(prompts) != len(options):
            raise ValueError(f"expected one list of options per prompt, got {len(prompts)} and {len(options)}")
        for i, choices in enumerate(options):
            if not choices or len(set(choices)) < len(choices):
                raise ValueError(f"question {i}: expected distinct options, at least one, got {list(choices)}")
        return self._map(self._choose_one, list(zip(prompts, options, strict=True)))

    def generate(self, prompts: Sequence[list[Message]], max_new_tokens: int = 16) -> list[str]:
        """Greedy answers (temperature 0).

        Raises:
            EndpointError: if the server fails after all retries.
        """
        return self._map(lambda messages: self._complete(messages, max_new_tokens), list(prompts))

    # ------------------------------------------------------------------------------------------- one question

    def _choose_one(self, question: tuple[list[Message], Sequence[str]]) -> np.ndarray:
        messages, options = question
        if len(options) == 1:
            return np.ones(1)
        if self.method != "completion":
            alternatives = self._first_token(messages)
            if alternatives:
                found = _from_alternatives(alternatives, options)
                return self._from_completion(messages, options) if found is None else found
            if self.method == "logprobs":
                raise EndpointError(
                    f"{self.address} gave no top_logprobs for {self.name}; use method='completion' for this server"
                )
            self.method = "completion"
            print(f"{self.address} gives no log-probabilities: each closed question is asked as one completion")
        return self._from_completion(messages, options)

    def _first_token(self, messages: list[Message]) -> list[tuple[str, float]]:
        """Most likely first tokens of the answer with their log-probabilities; empty if the server gives none."""
        asked = {"logprobs": True, "top_logprobs": self.alternatives}
        try:
            choice = self._chat(messages, 1, asked)
        except EndpointRefused:
            if self.method == "logprobs":
                raise
            return []
        content = (choice.get("logprobs") or {}).get("content") or []
        return [(str(a["token"]), float(a["logprob"])) for a in content[0].get("top_logprobs", [])] if content else []

    def _from_completion(self, messages: list[Message], options: Sequence[str]) -> np.ndarray:
        text = self._complete(messages, 16)
        self.asked += 1
        chosen = parse_option(text, options)
        if chosen is None:
            self.unusable += 1
            return np.full(len(options), np.nan)
        return np.eye(len(options))[chosen]

    def _complete(self, messages: list[Message], max_new_tokens: int) -> str:
        return str((self._chat(messages, max_new_tokens, {}).get("message") or {}).get("content") or "").strip()

    def _chat(self, messages: list[Message], max_new_tokens: int, more: dict[str, Any]) -> dict[str, Any]:
        body = {"model": self.name, "messages": messages, "max_tokens": max_new_tokens, "temperature": 0, **more}
        answer = self._request("POST", "/chat/completions", {"stream": False, **body})
        choices = answer.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise EndpointError(f"{self.address} answered without choices: {str(answer)[:200]}")
        return choices[0]

    # --------------------------------------------------------------------------------------------- the network

    def _request(self, verb: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        problem = ""
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(min(self.wait * 2 ** (attempt - 1), self.longest_wait))
            try:
                answer = requests.request(
                    verb, self.address + path, json=body, headers=self._headers, timeout=self.timeout
                )
            except (requests.ConnectionError, requests.Timeout) as error:
                problem = f"{type(error).__name__}: {error}"
                continue
            if answer.status_code in RETRIED_STATUS:
                problem = f"HTTP {answer.status_code}: {answer.text[:200]}"
                continue
            return self._read(answer, path)
        raise EndpointError(
            f"{self.address}{path} gave no answer in {self.retries + 1} tries ({problem}). Is the server running there?"
        )

    def _read(self, answer: requests.Response, path: str) -> dict[str, Any]:
        if answer.status_code >= 400:
            raise EndpointRefused(
                f"{self.address}{path} refused the request with HTTP {answer.status_code}: {answer.text[:300]}"
            )
        try:
            content = answer.json()
        except ValueError as error:
            raise EndpointError(f"{self.address}{path} answered no JSON: {answer.text[:200]!r}") from error
        if not isinstance(content, dict):
            raise EndpointError(f"{self.address}{path} answered {type(content).__name__}; expected a JSON object")
        return content

    def _map(self, function: Any, items: list[Any]) -> list[Any]:
        if not items:
            return []
        self.name  # noqa: B018 - one question to the server before many threads would ask it
        # The first alone: it settles the method before the others start.
        with tqdm(total=len(items), disable=not self.progress or len(items) <= 8, unit="answer") as bar:
            results = [function(items[0])]
            bar.update()
            with ThreadPoolExecutor(self.jobs) as pool:
                for result in pool.map(function, items[1:]):
                    results.append(result)
                    bar.update()
        return results


class EndpointRefused(EndpointError):
    """The server understood the request and refuses it; trying again is of no use."""


def parse_option(text: str, options: Sequence[str]) -> int | None:
    """Index of the option that the first run of digits (else the first option found as a word) in `text` names."""
    if all(option.isdigit() for option in options):
        digits = re.search(r"\d+", text)
        return options.index(digits.group()) if digits and digits.group() in options else None
    places = [(match.start(), -len(o), i) for i, o in enumerate(options) if (match := _word(o).search(text))]
    return min(places)[2] if places else None


def _word(option: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(option)}(?!\w)", re.IGNORECASE)


def _from_alternatives(alternatives: list[tuple[str, float]], options: Sequence[str]) -> np.ndarray | None:
    """Probabilities from the first token's alternatives; None where no alternative begins an option.

    An alternative counts for the options whose text begins with it (spaces aside). Where several do ("1" for "1",
    "10" and "11"), one token cannot tell them apart and they share its probability equally. Options under no
    alternative are at most as likely as what the listed ones leave over, and as the least likely of them; they share
    the smaller of the two.
    """
    weights = np.zeros(len(options))
    listed = 0.0
    for token, value in alternatives:
        text, probability = token.strip(), math.exp(value)
        listed += probability
        matching = [i for i, option in enumerate(options) if text and option.startswith(text)]
        for i in matching:
            weights[i] += probability / len(matching)
    if not weights.any():
        return None
    unseen = np.flatnonzero(weights == 0)
    if len(unseen):
        least = min(math.exp(value) for _, value in alternatives)
        weights[unseen] = min(least, max(1.0 - listed, 0.0) / len(unseen))
    return weights / weights.sum()
