"""The endpoint client against a real HTTP server on this machine that speaks the chat protocol."""

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_server import Server
from seewhere.models.endpoint import EndpointError, EndpointLanguageModel, EndpointRefused, parse_option
from seewhere.models.language_model import HubLanguageModel, load_language_model
from seewhere.models.protocols import LanguageModel
from test_language_model import byte_tokenizer, tiny_model


def chat(text: str = "which?") -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def client(server: Server, **settings: Any) -> EndpointLanguageModel:
    return EndpointLanguageModel(server.address, **{"wait": 0.01, **settings})


def test_an_address_is_a_language_model(server: Server) -> None:
    model = load_language_model(server.address + "/v1/")
    assert isinstance(model, LanguageModel)
    assert model.name == "served"
    assert model.generate([chat("a"), chat("b")], 7) == ["The answer is 2."] * 2
    assert server.requests[0]["max_tokens"] == 7 and server.requests[0]["temperature"] == 0
    assert {r["messages"][0]["content"] for r in server.requests} == {"a", "b"}


def test_choose_by_log_probabilities(server: Server) -> None:
    server.alternatives = [("1", 0.5), (" 0", 0.25), ("The", 0.1), ("2", 0.05)]
    found = client(server).choose([chat()], [["0", "1", "2"]])[0]
    np.testing.assert_allclose(found, np.array([0.25, 0.5, 0.05]) / 0.8)
    assert server.requests[0]["top_logprobs"] == 20 and server.requests[0]["max_tokens"] == 1


def test_an_unlisted_option_gets_at_most_what_is_left(server: Server) -> None:
    server.alternatives = [("1", 0.9), ("0", 0.08)]
    found = client(server).choose([chat()], [["0", "1", "2", "3"]])[0]
    np.testing.assert_allclose(found, [0.08, 0.9, 0.01, 0.01], atol=1e-9)


def test_options_that_one_token_cannot_tell_apart_share(server: Server) -> None:
    server.alternatives = [("1", 0.6), ("0", 0.4)]
    found = client(server).choose([chat()], [["0", "1", "10"]])[0]
    np.testing.assert_allclose(found, [0.4, 0.3, 0.3])


def test_a_first_token_that_is_no_option_is_no_choice(server: Server) -> None:
    server.alternatives = [("<think>", 0.99), ("The", 0.01)]
    model = client(server)
    assert model.choose([chat()], [["0", "1", "2"]])[0].tolist() == [0, 0, 1], "its whole answer names one"
    server.text = "<think> Well,"
    assert np.isnan(model.choose([chat()], [["0", "1", "2"]])[0]).all()
    assert (model.unusable, model.asked, model.method) == (1, 2, "auto")


@pytest.mark.parametrize("refuses", [True, False])
def test_completions_where_there_are_no_log_probabilities(server: Server, refuses: bool) -> None:
    server.refuse_logprobs = refuses
    model = client(server)
    found = model.choose([chat()] * 3, [["0", "1", "2"]] * 3)
    assert all(p.tolist() == [0, 0, 1] for p in found)
    server.text = "I cannot tell."
    assert np.isnan(model.choose([chat()], [["0", "1"]])[0]).all()
    assert (model.unusable, model.asked) == (1, 4)
    assert sum("logprobs" in request for request in server.requests) == 1, "the method is settled once"
    with pytest.raises(EndpointError):
        client(server, method="logprobs").choose([chat()], [["0", "1"]])


def test_busy_servers_are_tried_again_and_refusals_are_not(server: Server) -> None:
    server.failures = [503, 429]
    assert client(server).generate([chat()]) == ["The answer is 2."]
    assert len(server.requests) == 3
    server.failures = [401]
    with pytest.raises(EndpointRefused, match="401"):
        client(server).generate([chat()])
    assert len(server.requests) == 4
    server.failures = [500] * 3
    with pytest.raises(EndpointError, match="3 tries"):
        client(server, retries=2).generate([chat()])


@pytest.mark.parametrize("raw", [b"<html>", b"[]", b"{}", b'{"choices": []}'])
def test_answers_that_are_no_completion(server: Server, raw: bytes) -> None:
    server.raw = raw
    with pytest.raises(EndpointError, match=r"no JSON|expected a JSON object|without choices"):
        client(server).generate([chat()])


def test_nobody_there_and_unusable_questions() -> None:
    model = EndpointLanguageModel("http://127.0.0.1:9", model="m", retries=1, wait=0.01)
    with pytest.raises(EndpointError, match="Is the server running"):
        model.generate([chat()])
    for options in ([], ["0", "0"]):
        with pytest.raises(ValueError, match="distinct options"):
            model.choose([chat()], [options])
    assert model.choose([], []) == []


def test_the_key_is_sent(server: Server) -> None:
    client(server, key="abc").generate([chat()])
    assert server.keys == ["Bearer abc"]


@pytest.mark.parametrize(
    ("text", "options", "index"),
    [
        ("12", ["1", "12"], 1),
        ("box 1, not 12", ["1", "12"], 0),
        ("7", ["0", "1"], None),
        ("", ["0"], None),
        ("No, yes.", ["yes", "no"], 1),
        ("nothing", ["yes", "no"], None),
    ],
)
def test_parsing_a_completion(text: str, options: list[str], index: int | None) -> None:
    assert parse_option(text, options) == index


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("fastapi", "uvicorn", "openai")),
    reason="`transformers serve` needs fastapi, uvicorn and openai (pip install 'transformers[serving]')",
)
def test_a_model_served_by_transformers(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # The script of this environment, whether or not its folder is on the PATH.
    script = str(Path(sys.executable).with_name("transformers"))
    command = [script, "serve", "--host", "127.0.0.1", "--port", str(port), str(tmp_path)]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=offline, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        try:
            model = EndpointLanguageModel(f"http://127.0.0.1:{port}", model=str(tmp_path), retries=90, wait=0.5, jobs=1)
            model.longest_wait = 2.0
            local = HubLanguageModel(tiny_model(), byte_tokenizer(), "local")
            assert model.generate([chat("which dog?")], 5) == local.generate([chat("which dog?")], 5)
            probabilities = model.choose([chat()], [["0", "1", "2"]])[0]
            # A random model's one completion names an option or none; a choice is never made up.
            told = parse_option(local.generate([chat()], 16)[0], ["0", "1", "2"])
            assert probabilities.shape == (3,) and np.isnan(probabilities).all() == (told is None)
        finally:
            running.terminate()
