"""The linear probe of what an encoder's tokens hold: it finds what is there, and nothing where nothing is."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from seewhere.pixels import pictures, readers, token_probe, verdicts


def _tokens(labels: list[str], strength: float, seed: int) -> torch.Tensor:
    """Noise with a direction of its own for every label."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.eye(12)[[ord(label) - ord("a") for label in labels]]
    return strength * directions + torch.randn(len(labels), 12, generator=generator)


@pytest.mark.parametrize(("strength", "least", "most"), [(6.0, 0.95, 1.0), (0.0, 0.0, 0.4)])
def test_a_probe_reads_what_tokens_hold_and_no_more(strength: float, least: float, most: float) -> None:
    known, asked = ["abcde"[i % 5] for i in range(500)], ["abcde"[i % 5] for i in range(200)]
    said = token_probe.fit_and_read(
        _tokens(known, strength, 0), known, torch.arange(500) // 5, _tokens(asked, strength, 1)
    )
    assert least <= sum(a == b for a, b in zip(said, asked, strict=True)) / 200 <= most


def test_a_scale_or_an_offset_of_the_tokens_changes_nothing() -> None:
    known, asked = ["abc"[i % 3] for i in range(300)], ["abc"[i % 3] for i in range(60)]
    scenes = torch.arange(300) // 3
    first, second = _tokens(known, 1.5, 2), _tokens(asked, 1.5, 3)
    plain = token_probe.fit_and_read(first, known, scenes, second)
    assert token_probe.fit_and_read(40 * first + 7, known, scenes, 40 * second + 7) == plain


def test_every_model_is_asked_about_the_same_objects_and_chat_models_are_left_out() -> None:
    found = token_probe.rows(
        {"one": readers.tiny_reader(seed=0), "two": readers.tiny_reader(seed=1), "chat": object()}, 12, progress=False
    )
    assert list(found.model.unique()) == ["one", "two"] and set(found.task) == set(token_probe.TASKS)
    sides = [part.reset_index(drop=True) for _, part in found.groupby("model")]
    pd.testing.assert_series_equal(sides[0].image_id, sides[1].image_id)
    assert set(found.image_id) == {0, 1, 2} and set(found.score) <= {0.0, 1.0}
    figure = token_probe.chart(found)
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == list(token_probe.TASKS.values())


def test_tokens_are_the_same_in_batches_of_any_size() -> None:
    model = {"one": readers.tiny_reader(seed=0)}
    shown = pictures.world_pictures(7, "val", 0)
    means, at = token_probe._read(model["one"].model, shown, 7, "", False)
    for batch in (1, 3):
        other, rows = token_probe._read(model["one"].model, shown, batch, "", False)
        torch.testing.assert_close(other, means, atol=2e-3, rtol=1e-3)  # fp16 in between
        assert torch.equal(rows.rows, at.rows) and len(other) == sum(len(scene.objects) for _, scene in shown)


def test_only_chat_models_leave_an_empty_table_and_too_few_scenes_are_refused() -> None:
    assert token_probe.rows({"chat": object()}, 12, progress=False).empty
    with pytest.raises(ValueError, match="at least 10 scenes"):
        token_probe.rows({}, 9)


def test_the_records_say_what_adaptation_changed_task_by_task() -> None:
    right = {
        ("frozen", "category"): 1.0,
        ("adapted", "category"): 0.0,
        ("frozen", "cell"): 0.0,
        ("adapted", "cell"): 1.0,
    }
    rows = pd.DataFrame(
        [(model, task, image, score) for (model, task), score in right.items() for image in range(8)],
        columns=["model", "task", "image_id", "score"],
    )
    records = verdicts.read_from_tokens(rows, "frozen", "adapted", verdicts.Origin("smoke", (0, 1), {}))
    assert {r["setting"]["task"]: (r["value"], r["low"], r["high"]) for r in records} == {
        "category": (-100.0, -100.0, -100.0),
        "cell": (100.0, 100.0, 100.0),
    }
    assert all(r["claim"] is None and r["metric"] == "read_from_tokens" for r in records)
