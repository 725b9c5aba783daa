"""``seewhere data check ROOT``: everything wrong with a copy of a data set, found before a model is run on it.

Readers stop at the first error; this goes on and counts. It knows REFER folders, COCO files, Talk2Car, HC-RefLoCo and
VSR, and looks for them at ROOT and two levels below.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seewhere.datasets import hc_refloco, refer, talk2car
from seewhere.datasets.check_images import ImageChecker
from seewhere.datasets.check_vsr import check_vsr, is_statement_file
from seewhere.datasets.coco import BORDER_TOLERANCE, convention_problem, read_annotations
from seewhere.datasets.images import ImageFinder
from seewhere.datasets.published import SENTENCES
from seewhere.datasets.report import Report, some
from seewhere.datasets.rows import choose_columns, sentences_of
from seewhere.records import DataError

_FETCH = "Fetch this file again, from the source that the data card names."


def check(root: Path | str, images: Path | str | None = None, read_images: bool = True) -> Report:
    """Check every data set found at `root`.

    Args:
        root: a data set's folder, or one that holds several.
        images: folder of the images, if they are not in a usual place.
        read_images: open every image; False only looks whether it is there.

    Returns:
        The findings: counts against the published ones, dangling ids, images that are missing, unreadable, of another
        size or not RGB, boxes outside their image or in another convention. ``exit_code`` is 1 when there is an error.
    """
    place, report = Path(root).expanduser(), Report()
    if not place.is_dir():
        report.add("error", str(place), "no such folder", "Pass the folder that holds the data set.")
        return report
    checker = _Checker(place, report, ImageChecker(report, read_images), None if images is None else Path(images))
    checker.run()
    if not report.findings:
        report.add(
            "error",
            str(place),
            "no data set found, here or two levels below",
            "Expected instances.json with refs(*).p, instances_*.json, *_commands.json, hc_refloco*.json or *.parquet, "
            "or random/ and zeroshot/ with VSR's *.jsonl.",
        )
    return report


class _Checker:
    """Walks over the data sets below a root and adds what it finds to a report."""

    def __init__(self, root: Path, report: Report, pictures: ImageChecker, images: Path | None) -> None:
        self.root, self.report, self.pictures, self.images = root, report, pictures, images

    def run(self) -> None:
        """Check everything there is; a data set that cannot be read at all becomes one error."""
        for path in self._below("instances.json"):
            if any(path.parent.glob("refs(*).p")):
                self._guard(path, self._refer)
            else:
                self._guard(path, self._coco)
        for path in self._below("instances_*.json"):
            self._guard(path, self._coco)
        for path in self._below("*_commands.json"):
            self._guard(path, self._talk2car)
        tables = [*self._below("hc_refloco*.json"), *self._below("*.parquet")]
        for path in tables:
            self._guard(path, self._hc_refloco)
        for path in filter(is_statement_file, self._below("*.jsonl")):
            self._guard(path, self._vsr)

    def _below(self, pattern: str) -> list[Path]:
        return sorted({path for depth in ("", "*/", "*/*/") for path in self.root.glob(depth + pattern)})

    def _guard(self, path: Path, part: Callable[[Path], None]) -> None:
        try:
            part(path)
        except DataError as error:
            self.report.add("error", self._title(path), str(error), _FETCH)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            text = f"not in its format ({type(error).__name__}: {error})"
            self.report.add("error", self._title(path), text, _FETCH)

    def _title(self, path: Path) -> str:
        return str(path.relative_to(self.root))

    # -- the formats ---------------------------------------------------------------------------------------------

    def _refer(self, path: Path) -> None:
        regions = self._instances(path, ImageFinder(refer.image_bases(self.root, path.parent), self.images))
        for file in sorted(path.parent.glob("refs(*).p")):
            self._guard(file, lambda file=file: self._references(file, regions))  # type: ignore[misc]

    def _references(self, path: Path, regions: Mapping[Any, Any]) -> None:
        references = refer.read_references(path)
        lost = refer.dangling(references, regions)
        if lost:
            message = refer.dangling_message(path.name, lost, len(references)).removeprefix(f"{path.name}: ")
            self.report.add("error", self._title(path), message, "Take both files from one download.")
        moved = [r for r in references if r["ann_id"] in regions and regions[r["ann_id"]] != r["image_id"]]
        if moved:
            text = f"{len(moved)} of {len(references)} refs name another image than their annotation (first: ref "
            self.report.add(
                "error", self._title(path), f"{text}{moved[0]['ref_id']})", "Take both files from one download."
            )
        doubled = [key for key, n in Counter(s["sent_id"] for r in references for s in r["sentences"]).items() if n > 1]
        if doubled:
            self.report.add("error", self._title(path), f"sentence ids occur twice: {some(doubled)}", _FETCH)
        counts: Counter[str] = Counter()
        for item in references:
            counts[str(item["split"])] += len(item["sentences"])
        name = f"{path.parent.name} ({path.name.removeprefix('refs(').removesuffix(').p')})"
        self._count(self._title(path), name, counts, all_splits=True)

    def _coco(self, path: Path) -> None:
        bases = list(dict.fromkeys([path.parent.parent, path.parent, self.root]))
        self._instances(path, ImageFinder(bases, self.images))

    def _instances(self, path: Path, finder: ImageFinder) -> dict[Any, Any]:
        """Check a COCO file and its images; return annotation id -> image id."""
        title = self._title(path)
        content = read_annotations(path, ("images", "annotations", "categories"))
        sizes = {item["id"]: (item["width"], item["height"]) for item in content["images"]}
        categories = {item["id"] for item in content["categories"]}
        annotations = content["annotations"]
        self.report.add("ok", title, f"{len(sizes)} images, {len(annotations)} objects, {len(categories)} categories")
        for kind, rows in (("image", content["images"]), ("annotation", annotations)):
            doubled = [key for key, n in Counter(row["id"] for row in rows).items() if n > 1]
            if doubled:
                self.report.add("error", title, f"{len(doubled)} {kind} ids occur twice: {some(doubled)}", _FETCH)
        lost = [a for a in annotations if a["image_id"] not in sizes or a["category_id"] not in categories]
        if lost:
            text = f"{len(lost)} of {len(annotations)} annotations point at images or categories missing from the file"
            first = lost[0]
            detail = f"annotation {first['id']} -> image {first['image_id']}, category {first['category_id']}"
            self.report.add("error", title, f"{text} (first: {detail})", _FETCH)
        known = [a for a in annotations if a["image_id"] in sizes]
        self._boxes(title, known, [a["bbox"] for a in known], [sizes[a["image_id"]] for a in known])
        found = [(finder.find(item["file_name"], item["id"]), sizes[item["id"]]) for item in content["images"]]
        self.pictures.check(title, found)
        return {a["id"]: a["image_id"] for a in annotations}

    def _talk2car(self, path: Path) -> None:
        commands = talk2car.read_commands(path)
        title, size = self._title(path), talk2car.IMAGE_SIZE
        split = path.name.removesuffix("_commands.json")
        self._count(title, "talk2car", {split: len(commands)}, all_splits=False)
        rows = [{"id": place} for place in range(len(commands))]
        self._boxes(title, rows, [c["2d_box"] for c in commands], [size] * len(commands))
        finder = ImageFinder([path.parent, path.parent.parent], self.images, coco=False)
        self.pictures.check(title, [(finder.find(c["t2c_img"]), size) for c in commands])

    def _hc_refloco(self, path: Path) -> None:
        rows = hc_refloco.read_rows([path], "all")
        title = self._title(path)
        columns = choose_columns(rows[0], None, path.name)
        if "file_name" not in columns or "width" not in columns:
            self.report.add("warn", title, "not HC-RefLoCo's columns; not checked further", "Read it with load_hub.")
            return
        counts: Counter[str] = Counter()
        for row in rows:
            split = row.get("split") or next((s for s in ("val", "test") if s in path.stem), "all")
            counts[str(split)] += len(sentences_of(row[columns["text"]]))
        self._count(title, "hc-refloco", counts, all_splits=path.suffix == ".json" and len(counts) > 1)
        sizes = [(int(row["width"]), int(row["height"])) for row in rows]
        numbered = [{"id": row.get("id", place)} for place, row in enumerate(rows)]
        self._boxes(title, numbered, [list(row[columns["box"]]) for row in rows], sizes)
        finder = ImageFinder([path.parent, path.parent.parent], self.images, coco=False)
        self.pictures.check(title, [(finder.find(r["file_name"]), s) for r, s in zip(rows, sizes, strict=True)])

    def _vsr(self, path: Path) -> None:
        bases = list(dict.fromkeys([self.root, path.parent, path.parent.parent, path.parent.parent.parent]))
        check_vsr(path, self._title(path), self.report, ImageFinder(bases, self.images), self.pictures.read)

    # -- what is the same in all of them -----------------------------------------------------------------------------

    def _count(self, title: str, name: str, counts: Mapping[str, int], all_splits: bool) -> None:
        published = SENTENCES.get(name)
        if published is None:
            shown = ", ".join(f"{split} {count:,}" for split, count in counts.items())
            self.report.add(
                "ok", title, f"{sum(counts.values()):,} sentences ({shown}); no published counts to compare"
            )
            return
        for split, count in counts.items():
            if published.get(split) == count:
                self.report.add("ok", title, f"{split}: {count:,} sentences, as published")
            else:
                expected = f"{published[split]:,}" if split in published else "none"
                advice = "A subset or another version: its scores do not compare with published ones."
                self.report.add("warn", title, f"{split}: {count:,} sentences, published are {expected}", advice)
        absent = [split for split in published if split not in counts] if all_splits else []
        if absent:
            self.report.add("warn", title, f"no sentences of the split {some(absent)}", "Is the file a subset?")

    def _boxes(
        self, title: str, rows: Sequence[Mapping[str, Any]], boxes: Iterable[Any], sizes: Sequence[tuple[int, int]]
    ) -> None:
        written = np.array([_numbers(box) for box in boxes], dtype=np.float64).reshape(-1, 4)
        limits = np.array(sizes, dtype=np.float64).reshape(-1, 2)
        bad = ~np.isfinite(written).all(axis=1) | (written[:, 2:] <= 0).any(axis=1)
        if bad.any():
            names = some([rows[place]["id"] for place in np.flatnonzero(bad).tolist()])
            text = f"{int(bad.sum())} of {len(written)} boxes are empty or not four numbers (ids {names})"
            self.report.add("error", title, text, "They should be [x, y, width, height] in pixels.")
        whole = ~bad
        problem = convention_problem(written[whole], limits[whole])
        if problem:
            advice = "Convert them to [x, y, width, height] in pixels, or fetch the published file."
            self.report.add("error", title, problem, advice)
            return
        outside = whole & _outside(written, limits)
        if outside.any():
            names = some([rows[place]["id"] for place in np.flatnonzero(outside).tolist()])
            text = f"{int(outside.sum())} of {len(written)} boxes reach outside their image (ids {names})"
            self.report.add("warn", title, text, "Do the images come from the same version? They are used as they are.")
        elif not bad.any():
            self.report.add("ok", title, f"{len(written)} boxes inside their images, as xywh in pixels")


def _numbers(box: Any) -> list[float]:
    if isinstance(box, (list, tuple, np.ndarray)) and len(box) == 4:
        try:
            return [float(value) for value in box]
        except (TypeError, ValueError):
            pass
    return [float("nan")] * 4


def _outside(boxes: NDArray[np.float64], sizes: NDArray[np.float64]) -> NDArray[np.bool_]:
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    return np.asarray((low < -BORDER_TOLERANCE).any(axis=1) | (high > sizes + BORDER_TOLERANCE).any(axis=1))


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the command ``data check`` to the command line."""
    data = subparsers.add_parser("data", help="check a data set on disk")
    actions = data.add_subparsers(metavar="action", required=True)
    parser = actions.add_parser("check", help="counts, dangling ids, images and boxes of everything below a folder")
    parser.add_argument("root", type=Path, help="a data set's folder, or one that holds several")
    parser.add_argument("--images", type=Path, help="folder of the images, if they are not in a usual place")
    parser.add_argument("--no-images", action="store_true", help="do not open the images, only look for them")
    parser.set_defaults(handler=_command)


def _command(arguments: argparse.Namespace) -> int:
    report = check(arguments.root, arguments.images, not arguments.no_images)
    print(report)
    return report.exit_code
