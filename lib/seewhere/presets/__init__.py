"""Every setting of every notebook in one place: a preset is a TOML file with a table per notebook.

Each value tells its trade-off. Presets change values, never branches. ``smoke`` proves that the code runs, ``quick`` is
for a laptop and is what the committed outputs come from, ``full`` takes large samples, ``paper`` holds the published
values. ``quick`` is the list of names that exist: every preset must give every one of them, with the same
type, so a notebook never has to ask whether a value is there.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
NAMES = ("smoke", "quick", "full", "paper")
REFERENCE = "quick"


class PresetError(ValueError):
    """A preset, a notebook in it, or a value that is not as it should be; the message lists what exists."""


class UnknownSetting(PresetError, KeyError):
    """A setting that the preset does not have."""

    __str__ = Exception.__str__  # KeyError would print the message in quotes


class Preset(Mapping[str, Any]):
    """The settings of one notebook under one preset: a read-only mapping whose values are also attributes.

    ``settings.epochs`` and ``settings["epochs"]`` are the same. `name` and `notebook` say where the values come from;
    `seewhere.presets.with_changes` gives a copy with some of them replaced.
    """

    def __init__(self, name: str, notebook: str, values: Mapping[str, Any]) -> None:
        self.name = name
        self.notebook = notebook
        self._values = dict(values)

    def __getitem__(self, key: str) -> Any:
        try:
            return self._values[key]
        except KeyError:
            raise UnknownSetting(
                f"preset {self.name!r} has no setting {key!r} for {self.notebook}; it has: {', '.join(self._values)}"
            ) from None

    def __getattr__(self, key: str) -> Any:
        if key.startswith("_"):
            raise AttributeError(key)
        try:
            return self[key]
        except PresetError as error:
            raise AttributeError(str(error)) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        lines = "\n".join(f"  {key} = {value!r}" for key, value in self._values.items())
        return f"Preset {self.name!r} of {self.notebook}:\n{lines}"


def load(name: str, notebook: str = "02_llm_wrapper") -> Preset:
    """Settings of `notebook` (its stem, or its number) under the preset `name`.

    Raises:
        PresetError: no such preset, no such notebook in it, or the file lacks a value or holds one of another type
            than `quick` has.
    """
    tables = _tables(name)
    matches = [key for key in tables if key == notebook or key.split("_")[0] == notebook]
    if not matches:
        raise PresetError(f"preset {name!r} has no table for notebook {notebook!r}; it has: {', '.join(tables)}")
    values = tables[matches[0]]
    if name != REFERENCE:
        _compare(name, matches[0], values, _tables(REFERENCE).get(matches[0], {}))
    return Preset(name, matches[0], values)


def with_changes(preset: Preset, **changes: Any) -> Preset:
    """A copy of `preset` with some values replaced.

    Raises:
        PresetError: a name that the preset does not have, or a value of another type.
    """
    values = dict(preset)
    for key, value in changes.items():
        values[key] = _typed(preset.name, preset.notebook, key, value, preset[key])
    return Preset(preset.name, preset.notebook, values)


@cache
def _tables(name: str) -> dict[str, dict[str, Any]]:
    if name not in NAMES:
        raise PresetError(f"unknown preset {name!r}; the presets are: {', '.join(NAMES)}")
    return tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))


def _compare(name: str, notebook: str, values: dict[str, Any], reference: dict[str, Any]) -> None:
    missing, surplus = reference.keys() - values.keys(), values.keys() - reference.keys()
    if missing or surplus:
        raise PresetError(
            f"{name}.toml [{notebook}] and {REFERENCE}.toml must hold the same names; "
            f"missing: {', '.join(sorted(missing)) or 'none'}; only there: {', '.join(sorted(surplus)) or 'none'}"
        )
    for key, value in values.items():
        values[key] = _typed(name, notebook, key, value, reference[key])


def _typed(name: str, notebook: str, key: str, value: Any, reference: Any) -> Any:
    """`value` if it is of the reference's type; whole numbers are taken for fractions."""
    if isinstance(reference, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(reference):
        raise PresetError(
            f"{name}.toml [{notebook}] {key}: expected {type(reference).__name__} like {reference!r}, got {value!r}"
        )
    return value
