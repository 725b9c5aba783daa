import base64
import io
import json
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image
from seewhere.models.api import Answer, ApiError, ApiGrounder, default_response
from seewhere.models.protocols import Grounder

GOOD = {"boxes": [[1, 2, 30, 40], [5, 6, 7, 8]], "labels": ["dog", "cat"], "scores": [0.25, 0.75]}


def picture(seed=0, size=(64, 48), mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


class Service:
    """A real HTTP server on this machine; `script` is what it does with each request in turn, then it answers well."""

    def __init__(self, *script):
        self.script = list(script)
        self.requests = []
        self.headers = []
        self.lock = threading.Lock()

    def handle(self, handler):
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self.lock:
            step = self.script.pop(0) if self.script else GOOD
            self.requests.append(body)
            self.headers.append(dict(handler.headers))
        if callable(step):
            step = step(body)
        status, headers, content = 200, {}, step
        if isinstance(step, tuple):
            status, headers, content = step
        elif step == "hang":
            time.sleep(0.6)
            content = GOOD
        elif step == "drop":
            handler.close_connection = True
            handler.connection.close()
            return
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        handler.send_response(status)
        for key, value in headers.items():
            handler.send_header(key, value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    @contextmanager
    def running(self):
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                with suppress(BrokenPipeError, ConnectionResetError):  # the client may have given up waiting
                    service.handle(self)

            def log_message(self, *arguments):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/ground"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def grounder(address, tmp_path, **options):
    defaults = {"wait": 0.01, "timeout": 5, "cache": tmp_path / "kept", "progress": False, "workers": 1}
    return ApiGrounder(address, **(defaults | options))


def test_the_documented_request_and_response(tmp_path, monkeypatch):
    monkeypatch.setenv("SEEWHERE_API_KEY", "secret-1")
    service = Service()
    image = picture(mode="RGBA")
    with service.running() as address:
        model = grounder(address, tmp_path)
        (candidates,) = model.ground([image], ["Left dog"])
    assert isinstance(model, Grounder)
    (request,) = service.requests
    assert set(request) == {"image", "phrase", "width", "height"}
    assert (request["phrase"], request["width"], request["height"]) == ("Left dog", 64, 48)
    sent = Image.open(io.BytesIO(base64.b64decode(request["image"])))
    np.testing.assert_array_equal(np.asarray(sent), np.asarray(image.convert("RGB")))
    assert service.headers[0]["Authorization"] == "Bearer secret-1"
    np.testing.assert_array_equal(candidates.xyxy, GOOD["boxes"])
    assert candidates.confidence.tolist() == [0.25, 0.75]
    assert candidates.data["label"].tolist() == ["dog", "cat"]
    assert candidates.metadata == {"detector": "api", "top": 1}
    kept = "".join(path.read_text() for path in tmp_path.rglob("*.json"))
    assert kept
    assert "secret-1" not in kept


def test_failures_are_asked_again(tmp_path):
    service = Service((503, {}, b"busy"), (429, {"Retry-After": "0"}, b"slow down"), "drop", (500, {}, b""))
    with service.running() as address:
        (candidates,) = grounder(address, tmp_path).ground([picture()], ["dog"])
    assert len(candidates) == 2
    assert len(service.requests) == 5
    assert all(request == service.requests[0] for request in service.requests)


def test_a_time_out_is_asked_again(tmp_path):
    service = Service("hang")
    with service.running() as address:
        (candidates,) = grounder(address, tmp_path, timeout=0.2).ground([picture()], ["dog"])
    assert len(candidates) == 2
    assert len(service.requests) == 2


def test_giving_up_names_the_last_problem_and_keeps_what_was_answered(tmp_path):
    service = Service(GOOD, *[(503, {}, b"down for lunch")] * 3)
    with service.running() as address:
        model = grounder(address, tmp_path, attempts=3)
        with pytest.raises(ApiError, match=r"no answer in 3 attempts.*status 503.*down for lunch.*run again"):
            model.ground([picture(), picture()], ["dog", "cat"])
        assert len(service.requests) == 4
        found = model.ground([picture(), picture()], ["dog", "cat"])
    assert [request["phrase"] for request in service.requests] == ["dog", "cat", "cat", "cat", "cat"]
    assert [len(candidates) for candidates in found] == [2, 2]


def test_nobody_listening(tmp_path):
    with Service().running() as address:
        pass
    with pytest.raises(ApiError, match=r"no answer in 2 attempts.*connection failed"):
        grounder(address, tmp_path, attempts=2).ground([picture()], ["dog"])


@pytest.mark.parametrize(
    ("garbage", "message"),
    [
        (b"<html>Hello</html>", "not JSON.*<html>.*web page"),
        (b"", "not JSON"),
        (b"null", "expected an object with"),
        ({"detections": []}, "expected an object with"),
        ({"boxes": [[1, 2, 3]]}, "four numbers"),
        ({"boxes": [[1, 2, 3, "x"]]}, "four numbers"),
        ({"boxes": [[1, 2, 3, 4], [1, 2]], "scores": [1, 1]}, "four numbers"),
        ({"boxes": [[1, 2, 3, 4]], "scores": [0.1, 0.2]}, "1 boxes but 2 scores"),
        ({"boxes": [[1, 2, 3, 4]], "scores": ["high"]}, "list of numbers"),
        ({"boxes": [[1, 2, 3, 4]], "scores": [0.1], "labels": ["a", "b"]}, "1 boxes but 2 labels"),
        ({"boxes": [[1, 2, 3, 4]], "scores": [0.1], "labels": "dog"}, '"labels" must be a list'),
        ({"boxes": [[10, 2, 3, 4]], "scores": [0.1]}, "x1 <= x2"),
        (b'{"boxes": [[1, 2, NaN, 4]], "scores": [0.1]}', "finite"),
        ({"boxes": [[1, 2, 3, 4]], "scores": [0.1], "top": 4}, "top answer 4"),
        ({"boxes": [[1, 2, 3, 4]]}, "scores=False"),
    ],
)
def test_garbage_is_an_error_and_is_not_kept(tmp_path, garbage, message):
    service = Service(garbage)
    with service.running() as address:
        model = grounder(address, tmp_path)
        with pytest.raises(ApiError, match=message):
            model.ground([picture()], ["dog"])
        assert len(service.requests) == 1
        assert not list(tmp_path.rglob("*.json"))
        assert len(model.ground([picture()], ["dog"])[0]) == 2


@pytest.mark.parametrize(("key", "state"), [("", "is not set"), ("secret-2", "is set but was not accepted")])
def test_a_refused_key_is_explained_and_not_shown(tmp_path, monkeypatch, key, state):
    monkeypatch.setenv("MY_KEY", key)
    service = Service((401, {}, b"who are you?"))
    with service.running() as address, pytest.raises(ApiError, match=f"MY_KEY, which {state}") as caught:
        grounder(address, tmp_path, key_variable="MY_KEY").ground([picture()], ["dog"])
    assert len(service.requests) == 1
    assert "secret-2" not in str(caught.value)
    assert ("Authorization" in service.headers[0]) is bool(key)


def test_a_key_that_cannot_be_sent_is_not_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("SEEWHERE_API_KEY", "secret-3\n")
    with Service().running() as address, pytest.raises(ApiError, match="check the address and the key") as caught:
        grounder(address, tmp_path).ground([picture()], ["dog"])
    assert "secret-3" not in str(caught.value)


def test_answers_are_kept_by_address_phrase_and_pixels(tmp_path):
    service = Service()
    with service.running() as address:
        ask = grounder(address, tmp_path).ground
        first = ask([picture(0)], ["dog"])[0]
        again = grounder(address, tmp_path).ground([picture(0, mode="RGBA")], ["dog"])[0]
        assert len(service.requests) == 1
        np.testing.assert_array_equal(first.xyxy, again.xyxy)
        assert again.metadata == first.metadata
        ask([picture(1)], ["dog"])
        ask([picture(0)], ["cat"])
        grounder(address + "2", tmp_path).ground([picture(0)], ["dog"])
        grounder(address, tmp_path, cache_tag="v2").ground([picture(0)], ["dog"])
        assert len(service.requests) == 5
        transposed = Image.frombytes("RGB", (48, 64), picture(0).tobytes())
        ask([transposed], ["dog"])
        assert len(service.requests) == 6
        grounder(address, tmp_path, cache=None).ground([picture(0)], ["dog"])
        assert len(service.requests) == 7


def test_a_torn_kept_answer_is_asked_again(tmp_path):
    service = Service()
    with service.running() as address:
        model = grounder(address, tmp_path)
        model.ground([picture()], ["dog"])
        (path,) = tmp_path.rglob("*.json")
        path.write_text(path.read_text()[:40])
        assert len(model.ground([picture()], ["dog"])[0]) == 2
        assert len(service.requests) == 2
        assert json.loads(path.read_text())["payload"] == GOOD


def test_the_default_cache_is_under_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("SEEWHERE_HOME", str(tmp_path))
    assert ApiGrounder("http://localhost:1").cache == tmp_path / "cache" / "api"


def test_parallel_answers_keep_their_order(tmp_path):
    def answer(body):
        time.sleep(0.05 if body["phrase"] == "0" else 0)
        return {"boxes": [[0, 0, 1 + int(body["phrase"]), 1]], "scores": [1.0]}

    service = Service(*[answer] * 8)
    with service.running() as address:
        found = grounder(address, tmp_path, workers=4).ground([picture()] * 8, [str(place) for place in range(8)])
    assert [candidates.xyxy[0, 2] for candidates in found] == list(range(1, 9))


def test_other_forms_through_adapters(tmp_path):
    def make_request(image, phrase):
        return {"prompt": phrase, "size": image.size}

    def read_response(payload, phrase, size):
        rows = payload["objects"]
        boxes = np.array([row["bbox"] for row in rows], dtype=float).reshape(-1, 4) * [*size, *size]
        return Answer(boxes, [row["category"] for row in rows], None, 0 if rows else -1)

    service = Service({"objects": [{"bbox": [0, 0, 0.5, 1], "category": "dog"}]}, {"objects": []}, {"other": 1})
    with service.running() as address:
        model = grounder(address, tmp_path, scores=False, make_request=make_request, read_response=read_response)
        found = model.ground([picture()] * 2, ["dog", "cat"])
        with pytest.raises(ApiError, match="pass read_response"):
            model.ground([picture()], ["bird"])
    assert service.requests[0] == {"prompt": "dog", "size": [64, 48]}
    np.testing.assert_array_equal(found[0].xyxy, [[0, 0, 32, 48]])
    assert found[0].confidence is None
    assert found[1].metadata["top"] == -1


def test_defaults_of_the_response():
    answer = default_response({"boxes": [[0, 0, 1, 1], [0, 0, 2, 2]]}, "left dog", (9, 9))
    assert (list(answer.labels), answer.scores, answer.top) == (["left dog"] * 2, None, 0)
    assert default_response({"boxes": []}, "dog", (9, 9)).top == -1
    assert default_response(GOOD | {"top": 0}, "dog", (9, 9)).top == 0


def test_waits_grow_are_randomised_and_respect_the_service(tmp_path):
    model = grounder("http://localhost:1", tmp_path, wait=1.0, longest_wait=5.0)
    waits = [[model._pause(attempt, 0.0) for _ in range(50)] for attempt in range(5)]
    for attempt, (low, high) in enumerate([(0.5, 1), (1, 2), (2, 4), (2.5, 5), (2.5, 5)]):
        assert low <= min(waits[attempt]) < max(waits[attempt]) <= high
    assert model._pause(0, 3.0) == 3.0
    assert model._pause(0, 600.0) == 5.0


def test_bad_requests_are_explained(tmp_path):
    model = grounder("http://localhost:1", tmp_path)
    with pytest.raises(ValueError, match="phrase 0 is empty"):
        model.ground([picture()], [""])
    with pytest.raises(ValueError, match="1 images but 2 phrases"):
        model.ground([picture()], ["a", "b"])
    with pytest.raises(ValueError, match="http://"):
        ApiGrounder("localhost:1")
    assert model.ground([], []) == []
