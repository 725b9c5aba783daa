"""A grounder behind any HTTP address: closed models, or one that runs on another machine.

The address receives, by POST, one JSON object per pair::

    {"image": "<base64 PNG>", "phrase": "the left dog", "width": 640, "height": 480}

and answers with another, boxes in absolute pixels of that image::

    {"boxes": [[x1, y1, x2, y2], ...], "labels": ["dog", ...], "scores": [0.91, ...], "top": 0}

``labels`` (default: the phrase), ``scores`` (default: none) and ``top`` (default: the highest score, or the first box
without scores) may be left out. A service that speaks otherwise needs two small functions: `make_request` and
`read_response`.

Services fail and cost money, so busy answers, server errors and time-outs are tried again after growing, randomised
waits, and every good answer is kept on disk: a stopped run goes on where it was, and a second run asks nothing.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import requests
from tqdm.auto import tqdm

from seewhere import storage
from seewhere.models.candidates import Detections, make_candidates
from seewhere.models.inputs import check_pairs
from seewhere.models.provenance import is_address

if TYPE_CHECKING:
    from PIL import Image

KEY_VARIABLE = "SEEWHERE_API_KEY"


class ApiError(RuntimeError):
    """The service could not be asked, or answered with something that cannot be used."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a service said: boxes ``(N, 4)`` xyxy pixels, N labels, N scores or None, index of its own answer or -1."""

    boxes: npt.NDArray[np.float64]
    labels: Sequence[str]
    scores: npt.NDArray[np.float64] | None
    top: int


RequestMaker = Callable[["Image.Image", str], Mapping[str, Any]]
ResponseReader = Callable[[Any, str, tuple[int, int]], Answer]


def encode_image(image: Image.Image, form: str = "PNG") -> str:
    """A picture as base64 text."""
    stream = io.BytesIO()
    image.save(stream, format=form)
    return base64.b64encode(stream.getvalue()).decode("ascii")


def default_request(image: Image.Image, phrase: str) -> dict[str, Any]:
    """The request described at the top of this module."""
    return {"image": encode_image(image), "phrase": phrase, "width": image.width, "height": image.height}


def default_response(payload: Any, phrase: str, size: tuple[int, int]) -> Answer:
    """Read the response described at the top of this module; `size` is (width, height), unused as boxes are in pixels.

    Raises:
        ValueError: the payload is something else; the message says what was expected.
    """
    if not isinstance(payload, Mapping) or "boxes" not in payload:
        raise ValueError('expected an object with "boxes": [[x1, y1, x2, y2], ...]')
    try:
        boxes = np.asarray(payload["boxes"], dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError('"boxes" must be a list of four numbers each, in pixels') from None
    if boxes.size == 0:
        return Answer(np.zeros((0, 4)), [], None if payload.get("scores") is None else np.zeros(0), -1)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f'"boxes" must be a list of four numbers each, got the shape {boxes.shape}')
    scores = payload.get("scores")
    try:
        numbers = None if scores is None else np.asarray(scores, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError):
        raise ValueError('"scores" must be a list of numbers') from None
    if numbers is not None and len(numbers) != len(boxes):
        raise ValueError(f"{len(boxes)} boxes but {len(numbers)} scores")
    labels = payload.get("labels") or [phrase] * len(boxes)
    best = 0 if numbers is None else int(numbers.argmax())
    top = payload.get("top", best)
    if not isinstance(labels, list) or not isinstance(top, int):
        raise ValueError('"labels" must be a list of texts and "top" a whole number')
    return Answer(boxes, [str(label) for label in labels], numbers, top)


def image_hash(image: Image.Image) -> str:
    """SHA-256 of an RGB picture's size and pixels; the same for every file format that keeps them."""
    digest = hashlib.sha256(f"{image.width}x{image.height}:".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


class ApiGrounder:
    """An HTTP service that answers the ``Grounder`` protocol.

    Args:
        endpoint: the address, "http://..." or "https://...".
        name: written into the candidates.
        scores: whether the service gives scores.
        make_request: (RGB image, phrase) -> the JSON object to send.
        read_response: (parsed JSON, phrase, (width, height)) -> :class:`Answer` with boxes in pixels of the image;
            raises ValueError, TypeError, KeyError or IndexError for a payload it cannot read.
        key_variable: environment variable with the key, sent as ``Authorization: Bearer <key>`` when it is set. The
            key is neither stored nor printed.
        headers: more headers.
        timeout: seconds to wait for a connection, and for each part of an answer.
        attempts: how often to ask before giving up.
        wait: seconds before the second attempt; doubled each time, up to `longest_wait`, and randomised between
            half and the whole, so that parallel callers do not return together. A longer ``Retry-After`` of the
            service is respected up to `longest_wait`.
        longest_wait: in seconds.
        workers: requests in flight at once.
        cache: folder of kept answers, default ``cache_home() / "api"``; None keeps nothing.
        cache_tag: part of the cache's key; change it when adapters or the service's model change.
        seed: of the randomised waits.
        progress: show a progress bar.
    """

    def __init__(
        self,
        endpoint: str,
        name: str = "api",
        scores: bool = True,
        make_request: RequestMaker = default_request,
        read_response: ResponseReader = default_response,
        key_variable: str = KEY_VARIABLE,
        headers: Mapping[str, str] | None = None,
        timeout: float = 60.0,
        attempts: int = 5,
        wait: float = 1.0,
        longest_wait: float = 60.0,
        workers: int = 4,
        cache: Path | str | None = "default",
        cache_tag: str = "",
        seed: int = 0,
        progress: bool = True,
    ) -> None:
        if not is_address(endpoint):
            raise ValueError(
                f"{name}: endpoint {endpoint!r}; expected an address that starts with http:// or https://."
            )
        if attempts < 1 or workers < 1:
            raise ValueError(f"{name}: attempts={attempts}, workers={workers}; expected 1 or more of each.")
        self.endpoint = endpoint
        self.name = name
        self.scores = scores
        self.make_request = make_request
        self.read_response = read_response
        self.key_variable = key_variable
        self.headers = dict(headers or {})
        self.timeout = timeout
        self.attempts = attempts
        self.wait = wait
        self.longest_wait = longest_wait
        self.workers = workers
        self.cache = storage.cache_home() / "api" if cache == "default" else (Path(cache) if cache else None)
        self.cache_tag = cache_tag
        self.progress = progress
        self._random = random.Random(seed)

    def ground(self, images: Sequence[Image.Image], phrases: Sequence[str]) -> list[Detections]:
        """Candidates for each (image, phrase) pair, as the service gave them.

        Raises:
            ValueError: an empty phrase, or lists of different lengths.
            ApiError: a pair could not be answered. Pairs answered before are in the cache and are not asked again.
        """
        pictures = check_pairs(images, phrases, self.name)
        with ThreadPoolExecutor(max_workers=self.workers) as pool:
            futures = [pool.submit(self._answer, *pair) for pair in zip(pictures, phrases, strict=True)]
            try:
                return [
                    future.result()
                    for future in tqdm(
                        futures, desc=self.name, unit="phrase", disable=not self.progress or len(futures) < 2
                    )
                ]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # what has not started must not be asked (and paid)
                raise

    def _answer(self, image: Image.Image, phrase: str) -> Detections:
        place = self._cache_place(image, phrase)
        if place is not None and (kept := self._kept(place, phrase, image.size)) is not None:
            return kept
        payload = self._ask(self.make_request(image, phrase))
        try:
            candidates = self._candidates(payload, phrase, image.size)
        except (ValueError, TypeError, KeyError, IndexError) as error:
            shown = json.dumps(payload)[:200]
            raise ApiError(
                f"{self.name}: {self.endpoint} answered with JSON that cannot be read ({error}); got {shown}. "
                "If the service speaks another form, pass read_response=..."
            ) from error
        if place is not None:
            storage.atomic_write_json(place, {"endpoint": self.endpoint, "phrase": phrase, "payload": payload})
        return candidates

    def _candidates(self, payload: Any, phrase: str, size: tuple[int, int]) -> Detections:
        answer = self.read_response(payload, phrase, size)
        if self.scores and answer.scores is None and len(answer.boxes):
            raise ValueError("no scores; create the grounder with scores=False if the service gives none")
        scores = (np.zeros(0) if answer.scores is None else answer.scores) if self.scores else None
        return make_candidates(answer.boxes, answer.labels, scores, self.name, answer.top)

    def _cache_place(self, image: Image.Image, phrase: str) -> Path | None:
        if self.cache is None:
            return None
        parts = json.dumps([self.endpoint, self.cache_tag, phrase, image_hash(image)])
        key = hashlib.sha256(parts.encode()).hexdigest()
        return self.cache / key[:2] / f"{key}.json"

    def _kept(self, place: Path, phrase: str, size: tuple[int, int]) -> Detections | None:
        """The kept answer; None when there is none or it cannot be read any more, and the service is asked again."""
        try:
            return self._candidates(storage.read_json(place)["payload"], phrase, size)
        except (FileNotFoundError, ValueError, TypeError, KeyError, IndexError):
            return None

    def _ask(self, body: Mapping[str, Any]) -> Any:
        """POST until there is an answer; the parsed JSON."""
        problem = ""
        for attempt in range(self.attempts):
            asked = 0.0
            try:
                response = requests.post(
                    self.endpoint, json=dict(body), headers=self._headers(), timeout=self.timeout, allow_redirects=False
                )
            except requests.Timeout:
                problem = f"no answer within {self.timeout:g} s"
            except requests.RequestException as error:
                # The text of such an error may hold the headers, and with them the key: only its kind is told.
                kind = type(error).__name__
                if isinstance(error, ValueError):
                    message = f"{self.name}: {self.endpoint} cannot be asked ({kind}); check the address and the key."
                    raise ApiError(message) from None
                problem = f"connection failed ({kind})"
            else:
                if 200 <= response.status_code < 300:
                    return self._json_of(response)
                problem = f"status {response.status_code}: {response.text[:200]!r}"
                if response.status_code != 429 and response.status_code < 500:
                    hint = self._hint(response)
                    raise ApiError(f"{self.name}: {self.endpoint} refused the request, {problem}.{hint}")
                asked = _retry_after(response.headers.get("Retry-After", ""))
            if attempt + 1 < self.attempts:
                time.sleep(self._pause(attempt, asked))
        raise ApiError(
            f"{self.name}: {self.endpoint} gave no answer in {self.attempts} attempts; the last: {problem}. "
            "Answers so far are kept; run again to go on, or raise attempts=, wait= or timeout=."
        )

    def _pause(self, attempt: int, asked: float) -> float:
        doubled = min(self.longest_wait, self.wait * 2.0**attempt)
        return max(doubled * self._random.uniform(0.5, 1.0), min(asked, self.longest_wait))

    def _headers(self) -> dict[str, str]:
        key = os.environ.get(self.key_variable, "")
        return ({"Authorization": f"Bearer {key}"} if key else {}) | self.headers

    def _json_of(self, response: requests.Response) -> Any:
        try:
            return response.json()
        except ValueError as error:
            raise ApiError(
                f"{self.name}: {self.endpoint} answered with something that is not JSON: {response.text[:200]!r}. "
                "Is this the address of the model and not of a web page?"
            ) from error

    def _hint(self, response: requests.Response) -> str:
        if response.status_code not in (401, 403):
            return ""
        state = "is set but was not accepted" if os.environ.get(self.key_variable) else "is not set"
        return f" The key is read from the environment variable {self.key_variable}, which {state}."


def _retry_after(value: str) -> float:
    """Seconds a service asks to wait, from a ``Retry-After`` header in either of its forms; 0 if there is none."""
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return 0.0
