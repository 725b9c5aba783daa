"""The pictures of a data set, opened one by one: missing, unreadable, of another size, not RGB."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image
from tqdm.auto import tqdm

from seewhere.datasets.report import Report, some
from seewhere.records import DataError, open_image

Seen = tuple[str, tuple[int, int]]


class ImageChecker:
    """Checks images, each file once, however many annotation files name it."""

    def __init__(self, report: Report, read: bool = True) -> None:
        self.report, self.read = report, read
        self.seen: dict[Path, Seen] = {}

    def check(self, title: str, images: Sequence[tuple[Path, tuple[int, int]]]) -> None:
        """Add findings on `images`, pairs of a path and the (width, height) that the annotations are for."""
        expected = dict(images)
        missing = [path for path in expected if not path.is_file()]
        if missing and len(missing) == len(expected):
            text = f"none of {len(expected)} images is on disk (looked for {missing[0]} first); annotations only"
            self.report.add("warn", title, text, "Pass --images FOLDER if they are elsewhere.")
            return
        if missing:
            text = f"{len(missing)} of {len(expected)} images are missing: {some([path.name for path in missing])}"
            self.report.add("error", title, text, "Fetch them, or pass --images FOLDER if they are elsewhere.")
        if self.read:
            self._read(title, {path: size for path, size in expected.items() if path.is_file()})

    def _read(self, title: str, expected: dict[Path, tuple[int, int]]) -> None:
        fresh = [path for path in expected if path not in self.seen]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            results = pool.map(_look, fresh)
            shown = tqdm(results, total=len(fresh), desc="opening images", unit="image", delay=1, leave=False)
            self.seen.update(zip(fresh, shown, strict=True))
        broken = [path.name for path in expected if self.seen[path][0] == "broken"]
        if broken:
            text = f"{len(broken)} of {len(expected)} images cannot be read (cut short?): {some(broken)}"
            self.report.add("error", title, text, "Fetch these files again.")
        whole = {path: size for path, size in expected.items() if self.seen[path][0] != "broken"}
        other = [path.name for path, size in whole.items() if self.seen[path][1] != tuple(size)]
        if other:
            text = f"{len(other)} of {len(expected)} images have another size than the annotations say: {some(other)}"
            self.report.add("error", title, text, "Their boxes are in another frame: take the original images.")
        converted = [f"{path.name} ({self.seen[path][0]})" for path in whole if self.seen[path][0] != "RGB"]
        if converted:
            text = f"{len(converted)} of {len(expected)} images are not RGB: {some(converted)}"
            self.report.add("warn", title, text, "Nothing to do: they are converted when opened.")
        if not broken and not other:
            self.report.add("ok", title, f"{len(whole)} images opened, each of its recorded size")


def _look(path: Path) -> Seen:
    """Return the mode ("broken" if it cannot be read to its end) and size of an image."""
    try:
        image = open_image(path)
        with Image.open(path) as stored:
            return stored.mode, image.size
    except DataError:
        return "broken", (0, 0)
