"""Batches side by side: the same numbers in the same order as one after the other."""

import numpy as np
import pytest
import torch
from seewhere.probing import features
from seewhere.probing.adapter import Probed
from seewhere.probing.cores import SIDE_BY_SIDE, over_cores, spreads
from seewhere.probing.features import cached_encodings, features_of_encodings
from seewhere.probing.micro_models import untrained


@pytest.fixture
def two_cores():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("spread", [True, False])
def test_results_come_in_order_and_without_gradients(two_cores, spread):
    weight = torch.ones(1, requires_grad=True)
    found = list(over_cores(lambda n: (weight * n).requires_grad, range(9), spread))
    assert found == [False] * 9
    assert list(over_cores(lambda n: n * n, range(9), spread)) == [n * n for n in range(9)]
    assert list(over_cores(lambda n: n, [], spread)) == []
    assert torch.get_num_threads() == 2 and SIDE_BY_SIDE >= 2


def test_an_error_reaches_the_caller(two_cores):
    def work(number):
        if number == 3:
            raise ValueError("the third")
        return number

    with pytest.raises(ValueError, match="the third"):
        list(over_cores(work, range(50)))


@pytest.mark.parametrize("name", ["micro-blip2", "micro-instruct", "micro-perceiver", "micro-patches"])
def test_a_resampler_gives_the_same_tokens_side_by_side(name, two_cores, binary_task, tmp_path, monkeypatch):
    model, examples = Probed(untrained(name)), binary_task.splits["train"]
    assert spreads(model) == (name != "micro-perceiver") and not spreads(object())
    monkeypatch.setattr(features, "BATCH", 7)
    encoded = cached_encodings(model, examples, tmp_path, progress=False)
    rows = range(len(examples))
    both = features_of_encodings(model, encoded, examples, rows, model.layers)
    monkeypatch.setattr(model, "thread_safe", False)
    alone = features_of_encodings(model, encoded, examples, rows, model.layers)
    for layer in model.layers:
        np.testing.assert_allclose(both[layer], alone[layer], atol=1e-5)
