"""What ``seewhere data check`` says about a jsonl of spatial statements (VSR's, or the world's)."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from PIL import Image

from seewhere.datasets.images import ImageFinder
from seewhere.datasets.report import Report, some
from seewhere.datasets.vsr import PARTITIONS, STATEMENTS, UNLISTED, category_of, read_rows


def check_vsr(path: Path, title: str, report: Report, finder: ImageFinder, read_images: bool = True) -> None:
    """Add findings on one file: its count against the published one, relations, contradictions, pictures.

    Raises:
        DataError: a line that is not in the format.
    """
    rows = [row for _, row in read_rows(path)]
    if not rows:
        report.add("error", title, "no lines", "Was the file cut short? Fetch it again.")
        return
    published = None if "program" in rows[0] else STATEMENTS.get(path.parent.name, {}).get(path.stem)
    count = f"{len(rows):,} statements, {sum(bool(row['label']) for row in rows) / len(rows):.1%} of them true"
    if published in (None, len(rows)):
        report.add("ok", title, count + (", as published" if published else ""))
    else:
        advice = "A subset or another version: its scores do not compare with published ones."
        report.add("warn", title, f"{count}; published are {published:,}", advice)
    unlisted = sorted({str(row["relation"]) for row in rows if category_of(str(row["relation"])) == UNLISTED})
    if unlisted:
        text = f"relations of none of the seven categories: {some(unlisted)}"
        report.add("warn", title, text, "They count in totals and in no category.")
    labels = defaultdict(set)
    for row in rows:
        labels[row["image"], row["caption"]].add(row["label"])
    torn = [f"{image}: {caption}" for (image, caption), found in labels.items() if len(found) > 1]
    if torn:
        report.add("warn", title, f"{len(torn)} statements stand there as true and as false: {some(torn, 2)}")
    _check_images(
        title, [finder.find(name) for name in dict.fromkeys(str(r["image"]) for r in rows)], report, read_images
    )


def _check_images(title: str, paths: list[Path], report: Report, read_images: bool) -> None:
    there = [path for path in paths if path.is_file()]
    if len(there) < len(paths):
        text = f"{len(paths) - len(there)} of {len(paths)} images are not on disk"
        report.add(
            "warn", title, text, "Get COCO train2017 and val2017, or pass --images FOLDER; the rest can be used."
        )
    broken = [path.name for path in there if read_images and not _readable(path)]
    if broken:
        text = f"{len(broken)} of {len(paths)} images cannot be read (cut short?): {some(broken)}"
        report.add("error", title, text, "Fetch these files again.")
    elif there and read_images:
        report.add("ok", title, f"{len(there)} images opened")


def _readable(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError, Image.DecompressionBombError):
        return False
    return True


def is_statement_file(path: Path) -> bool:
    """Whether a jsonl lies where VSR's do: in a folder named after a partition."""
    return path.parent.name in PARTITIONS
