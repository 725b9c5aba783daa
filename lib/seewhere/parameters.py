"""What may be said to a notebook: its parameters, read from its own tagged cell, and values typed by their defaults.

papermill warns about a parameter that a notebook does not have and goes on, so a misspelt seed runs for an hour with
the default. Here such a call is refused before anything starts, with the list of what exists.
"""

from __future__ import annotations

import ast
import json
import logging
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class ParameterError(ValueError):
    """An unknown parameter or a value of the wrong type; the message lists the notebook's parameters."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a notebook: its name, its default and the comment beside it."""

    name: str
    default: Any
    help: str = ""

    def __str__(self) -> str:
        kind = "any" if self.default is None else type(self.default).__name__
        comment = f"  # {self.help}" if self.help else ""
        return f"  {self.name} = {self.default!r}  ({kind}){comment}"


def known_parameters(notebook: Path | str) -> dict[str, Parameter]:
    """The parameters of a notebook's cell tagged ``parameters``: name -> default and comment; none without such a cell.

    Raises:
        ParameterError: a default in that cell is computed instead of written out.
    """
    import papermill  # here and not above: half a second that other commands need not wait for

    with _quiet_papermill():
        found = papermill.inspect_notebook(str(notebook))
    parameters = {}
    for name, entry in found.items():
        try:
            default = ast.literal_eval(entry["default"])
        except (ValueError, SyntaxError) as error:
            raise ParameterError(
                f"{notebook}: parameter {name} = {entry['default']} is computed; "
                "the parameters cell may hold only literals"
            ) from error
        parameters[name] = Parameter(name, default, entry["help"])
    return parameters


@contextmanager
def _quiet_papermill() -> Any:
    """A notebook without a parameters cell is a normal thing here; papermill would log a warning about it."""
    logger = logging.getLogger("papermill")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def parse(notebook: Path | str, assignments: Iterable[str]) -> dict[str, Any]:
    """``["seed=3", "llm=micro"]`` as typed values, checked against the notebook's own parameters.

    Raises:
        ParameterError: not of the form name=value, unknown name, or a value that its default's type does not admit.
    """
    known = known_parameters(notebook)
    values = {}
    for assignment in assignments:
        name, sign, written = assignment.partition("=")
        if not sign or not name.strip():
            raise ParameterError(f"expected name=value, got {assignment!r}\n{listing(notebook, known)}")
        values[name.strip()] = read_value(written, _find(notebook, known, name.strip()), listing(notebook, known))
    return values


def check(notebook: Path | str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values given as Python objects, checked like `parse`: what is returned has the defaults' types.

    Raises:
        ParameterError: as `parse`.
    """
    known = known_parameters(notebook)
    return {name: _fit(value, _find(notebook, known, name), listing(notebook, known)) for name, value in values.items()}


def resolve(notebook: Path | str, values: Mapping[str, Any]) -> dict[str, Any]:
    """All parameters of the notebook: its defaults, replaced by `values`."""
    return {name: values.get(name, entry.default) for name, entry in known_parameters(notebook).items()}


def listing(notebook: Path | str, known: Mapping[str, Parameter]) -> str:
    """The parameters of a notebook, one a line with default, type and comment."""
    if not known:
        return f"{Path(notebook).name} has no parameters"
    return "\n".join([f"{Path(notebook).name} has these parameters:", *map(str, known.values())])


def _find(notebook: Path | str, known: Mapping[str, Parameter], name: str) -> Parameter:
    if name not in known:
        raise ParameterError(f"unknown parameter {name!r}\n{listing(notebook, known)}")
    return known[name]


def read_value(written: str, parameter: Parameter, known: str = "") -> Any:
    """A value from the command line, read as its default's type; with the default None, as whatever it looks like.

    Raises:
        ParameterError: it cannot be read as that type.
    """
    if isinstance(parameter.default, str):
        return written
    value: Any = written
    for reader in (json.loads, ast.literal_eval):
        try:
            value = reader(written)
            break
        except (ValueError, SyntaxError):
            continue
    if written.strip().lower() in ("true", "false"):
        value = written.strip().lower() == "true"
    if isinstance(parameter.default, (list, tuple)) and not isinstance(value, (list, tuple)):
        value = [_scalar(part) for part in written.split(",") if part]
    return _fit(value, parameter, known)


def _scalar(written: str) -> Any:
    try:
        return ast.literal_eval(written.strip())
    except (ValueError, SyntaxError):
        return written.strip()


def _fit(value: Any, parameter: Parameter, known: str) -> Any:
    """`value` if it is of the default's type; a whole number is taken for a fraction, nothing else is bent."""
    default = parameter.default
    if default is None or (value is None and not isinstance(default, (bool, int, float))):
        return value
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(default, (list, tuple)) and isinstance(value, (list, tuple)):
        return type(default)(_fit_items(list(value), parameter, known))
    if type(value) is not type(default):
        kind = type(default).__name__
        raise ParameterError(f"{parameter.name}: expected {kind} like {default!r}, got {value!r}\n{known}")
    return value


def _fit_items(values: list[Any], parameter: Parameter, known: str) -> list[Any]:
    """Items of a list checked against the first item of the default, where it has one."""
    if not parameter.default:
        return values
    item = Parameter(f"items of {parameter.name}", parameter.default[0])
    return [_fit(value, item, known) for value in values]
