"""What a check of a data set found: lines of [ok], [warn] and [error], each saying what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Level = Literal["ok", "warn", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: its level, what it is about, what was found, and what to do ("" where there is nothing to do)."""

    level: Level
    subject: str
    text: str
    advice: str = ""

    def __str__(self) -> str:
        return f"[{self.level}] {self.subject}: {self.text}" + (f"\n        -> {self.advice}" if self.advice else "")


@dataclass
class Report:
    """All findings of a check, in the order in which they were made."""

    findings: list[Finding] = field(default_factory=list)

    def add(self, level: Level, subject: str, text: str, advice: str = "") -> None:
        """Append a finding."""
        self.findings.append(Finding(level, subject, text, advice))

    def of(self, level: Level) -> list[Finding]:
        """Return the findings of a level."""
        return [finding for finding in self.findings if finding.level == level]

    @property
    def exit_code(self) -> int:
        """1 when there is an error, else 0."""
        return int(bool(self.of("error")))

    def __str__(self) -> str:
        counts = f"{len(self.of('error'))} errors, {len(self.of('warn'))} warnings, {len(self.of('ok'))} ok"
        return "\n".join([*map(str, self.findings), counts])


def some(names: Sequence[object], limit: int = 5) -> str:
    """Return the first names of a list, and how many more there are."""
    shown = ", ".join(str(name) for name in names[:limit])
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")
