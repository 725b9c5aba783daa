"""From a preset to a probe's settings and to its search space (table 4 of "Lost in Space")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from seewhere.probing.search import SearchSpace
from seewhere.probing.training import ProbeSettings

NOTEBOOK = "01_probing_resamplers"
KINDS = ("qformer", "instruct", "vilt")
"""The paper's models: BLIP-2's Q-Former, InstructBLIP's, trained further on instructions, and ViLT."""


def kind_of(name: str, arm: str = "unfrozen") -> str:
    """Return which of the paper's models gives a model of this name its settings; ViLT has an unfrozen arm only."""
    if "vilt" in name and arm == "unfrozen":
        return "vilt"
    return "instruct" if "instruct" in name else "qformer"


def settings_of(
    preset: Mapping[str, Any], task: str, kind: str = "qformer", arm: str = "frozen", **changes: Any
) -> ProbeSettings:
    """Return the settings that a preset gives one arm of one task.

    Args:
        preset: of notebook 01.
        task: "rec", "vsr" or "rcm".
        kind: one of `KINDS`.
        arm: "frozen" or "unfrozen".
        changes: other values, by names of `ProbeSettings` (``layers``, ``seed``, ``epochs``, ...).

    Raises:
        ValueError: no such arm in the preset.
    """
    name = f"{task}_{kind}_{arm}"
    if name not in preset:
        raise ValueError(
            f"the preset has no setting {name!r}; expected rec, vsr or rcm, {', '.join(KINDS)}, and an arm"
        )
    values: dict[str, Any] = {
        "batch": preset["batch"],
        "weight_decay": preset["weight_decay"],
        "warmup": preset["warmup"],
        "hidden": preset["hidden"],
        "patience": preset["rcm_patience"] if task == "rcm" else 0,
        # Tokens that are trained along have no fixed mean to subtract.
        "standardise": preset["standardise"] and arm == "frozen",
        **preset[name],
    }
    return ProbeSettings(**{**values, **changes})


def space_of(preset: Mapping[str, Any], task: str) -> SearchSpace:
    """Return the search space that a preset gives for "rec", "vsr" or "rcm"."""
    low, high = preset["search_learning_rates"]
    weights = tuple(float(value) for value in preset["search_loss_weights"]) if task == "rec" else ()
    return SearchSpace((float(low), float(high)), tuple(int(e) for e in preset[f"search_{task}_epochs"]), weights)


def sizes_of(preset: Mapping[str, Any]) -> dict[str, int | None]:
    """Return split -> most examples, for `tasks.load_task`; a preset's 0 means all."""
    return {split: preset[f"{split}_examples"] or None for split in ("train", "validation", "test")}
