"""The data card's figures and numbers, counted from a build on disk and not from the code that made it."""

from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from seewhere import storage
from seewhere.world.annotations import REFER_NAMES
from seewhere.world.render import render_image
from seewhere.world.scenes import FAMILIES, SceneSettings, sample_scene
from seewhere.world.sprites import SpriteSet, load_sprites

_BLUE, _ORANGE, _GREEN = "#0072B2", "#E69F00", "#009E73"  # Okabe and Ito, as in every figure here


@dataclass(frozen=True, slots=True)
class _Build:
    """A build, read back: one row per object, one row per sentence."""

    manifest: dict[str, Any]
    objects: pd.DataFrame
    sentences: pd.DataFrame


def _read(root: Path) -> _Build:
    manifest = storage.read_json(root / "manifest.json")
    parts = [_objects(root, split) for split in manifest["counts"] if manifest["counts"][split]["images"]]
    objects = pd.concat(parts, ignore_index=True)
    sentences = pd.concat([_sentences(root, style, name) for style, name in REFER_NAMES.items()], ignore_index=True)
    columns = ["annotation", "category", "area", "same", "count"]
    return _Build(manifest, objects, sentences.merge(objects[columns], on="annotation"))


def _objects(root: Path, split: str) -> pd.DataFrame:
    content = storage.read_json(root / "annotations" / f"instances_{split}.json")
    images = {i["id"]: i for i in content["images"]}
    names = {c["id"]: c["name"] for c in content["categories"]}
    rows = []
    for a in content["annotations"]:
        image, (x, y, w, h) = images[a["image_id"]], a["bbox"]
        rows.append(
            {
                "split": split,
                "image": a["image_id"],
                "background": image["background"],
                "annotation": a["id"],
                "category": names[a["category_id"]],
                "area": w * h,
                "side": max(w, h),
                "x": (x + w / 2) / image["width"],
                "y": (y + h / 2) / image["height"],
                "tint": a["attributes"]["tint"],
                "visible": a["attributes"]["visible_fraction"],
            }
        )
    frame = pd.DataFrame(rows)
    frame["same"] = frame.groupby(["image", "category"])["annotation"].transform("count")
    frame["count"] = frame.groupby("image")["annotation"].transform("count")
    return frame


def _sentences(root: Path, style: str, name: str) -> pd.DataFrame:
    with (root / "refer" / name / "refs(world).p").open("rb") as stream:
        references = pickle.load(stream)  # our own build; files of others go through the readers' restricted unpickler
    rows = [
        {"style": style, "split": r["split"], "annotation": r["ann_id"], "words": len(s["tokens"]), "raw": s["raw"]}
        for r in references
        for s in r["sentences"]
    ]
    return pd.DataFrame(rows, columns=["style", "split", "annotation", "words", "raw"])


def tables(root: Path | str) -> str:
    """Return the card's tables as Markdown: counts by split, shares over all objects, and sentences by style.

    Raises:
        FileNotFoundError: `root` holds no build.
    """
    build = _read(Path(root))
    return "\n\n".join([_count_table(build), _share_table(build), _style_table(build)])


def _markdown(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _count_table(build: _Build) -> str:
    counts = build.manifest["counts"]
    kinds = list(next(iter(counts.values())))
    return _markdown(["", *counts], [[kind, *(f"{counts[s][kind]:,}" for s in counts)] for kind in kinds])


def _share_table(build: _Build) -> str:
    o = build.objects
    scenes = o.groupby("image").agg(count=("annotation", "count"), same=("same", "max"))
    sides = np.percentile(o["side"], [5, 50, 95])
    rows = [
        ["objects per scene, mean (least to most)",
         f"{scenes['count'].mean():.1f} ({scenes['count'].min()} to {scenes['count'].max()})"],
        ["scenes with a category twice or more", f"{(scenes['same'] > 1).mean():.1%}"],
        ["tinted objects; among those with a twin", f"{o['tint'].notna().mean():.1%}; "
         f"{o.loc[o['same'] > 1, 'tint'].notna().mean():.1%}"],
        ["objects partly covered (visible < 85 %); least visible", f"{(o['visible'] < 0.85).mean():.1%}; "
         f"{o['visible'].min():.2f}"],
        ["longer side of the visible box, 5th, 50th, 95th percentile (pixels)",
         ", ".join(f"{v:.0f}" for v in sides)],
    ]  # fmt: skip
    return _markdown(["over all splits", "value"], rows)


def _style_table(build: _Build) -> str:
    rows = []
    for style, name in REFER_NAMES.items():
        s = build.sentences[(build.sentences["style"] == style) & (build.sentences["split"] == "test")]
        if s.empty:
            continue
        rows.append([
            f"`{name}` ({style})", f"{s['words'].mean():.1f}", f"{s['raw'].nunique() / len(s):.0%}",
            f"{(s['same'] > 1).mean():.0%}", f"{(1 / s['count']).mean():.2f}", f"{(1 / s['same']).mean():.2f}",
        ])  # fmt: skip
    head = ["test sentences", "words", "distinct", "target has a twin", "P@1 of a random box",
            "P@1 of a random box of the right category"]  # fmt: skip
    return _markdown(head, rows)


def draw_figures(root: Path | str, folder: Path | str) -> list[Path]:
    """Draw the card's figures into a folder and return their paths: scenes, sprites, distributions.

    Raises:
        FileNotFoundError: `root` holds no build.
    """
    build, out = _read(Path(root)), Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    sprites = load_sprites()
    paths = [out / "world_scenes.png", out / "world_sprites.png", out / "world_distributions.png"]
    _save(scene_sheet(sprites), paths[0])
    _save(sprite_sheet(sprites), paths[1])
    figure = _distributions(build)
    figure.savefig(paths[2], dpi=80)
    _save(Image.open(paths[2]).convert("RGB"), paths[2])
    return paths


def _save(image: Image.Image, path: Path) -> None:
    """Save with at most 256 colours: flat artwork loses nothing visible and the file a good half."""
    image.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def scene_sheet(sprites: SpriteSet, columns: int = 6, boxes: bool = True) -> Image.Image:
    """Return test scenes of every family of backgrounds in a grid, one family to a row, with their visible boxes."""
    cell, gap = 192, 6
    settings = SceneSettings(sizes=((256, 192),))
    sheet = Image.new("RGB", (columns * (cell + gap) + gap, len(FAMILIES) * (144 + gap) + gap), "white")
    for row, family in enumerate(FAMILIES):
        found = (s for s in (sample_scene(n, sprites, settings, "test") for n in range(100_000))
                 if s.background == family)  # fmt: skip
        for column in range(columns):
            scene = next(found)
            picture = render_image(scene, sprites)
            if boxes and column >= columns // 2:
                draw = ImageDraw.Draw(picture)
                for item in scene.objects:
                    x1, y1, x2, y2 = item.box
                    draw.rectangle((x1 - 1, y1 - 1, x2, y2), outline=(0, 158, 115), width=2)
            small = picture.resize((cell, 144), Image.Resampling.LANCZOS)
            sheet.paste(small, (gap + column * (cell + gap), gap + row * (144 + gap)))
    return sheet


def sprite_sheet(sprites: SpriteSet, columns: int = 15) -> Image.Image:
    """Return one labelled picture of every category, COCO's first, novel ones (blue labels) after."""
    width, height = 84, 76
    categories = [*sprites.coco, *sprites.novel]
    rows = -(-len(categories) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), (246, 247, 250))
    draw = ImageDraw.Draw(sheet)
    for k, category in enumerate(categories):
        x, y = k % columns * width, k // columns * height
        art = sprites.picture(sprites.of[category.category_id][0].name, 52)
        sheet.paste(art, (x + (width - art.width) // 2, y + 4 + (52 - art.height) // 2), art)
        text = category.name
        draw.text((x + (width - draw.textlength(text)) / 2, y + 60), text, fill=_BLUE if category.novel else "#333333")
    return sheet


def _distributions(build: _Build) -> Figure:
    o, trained = build.objects, build.objects[build.objects["split"] != "novel"]
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(11, 6), layout="constrained")
        axes = figure.subplots(2, 3)
        counts = Counter(o.groupby("image").size())
        axes[0, 0].bar(list(counts), list(counts.values()), color=_BLUE)
        axes[0, 0].set(title="Objects per scene", xlabel="objects", ylabel="scenes", xticks=range(2, 11))
        common = trained["category"].value_counts()
        axes[0, 1].bar(range(len(common)), common, width=1, color=_ORANGE)
        shown = [0, len(common) // 2, len(common) - 1]
        axes[0, 1].set(title=f"Objects by category ({len(common)} of COCO's)", ylabel="objects")
        axes[0, 1].set_xticks(shown, [common.index[k] for k in shown])
        axes[0, 2].hist(o["side"], bins=np.arange(14, 102, 4), color=_GREEN)
        axes[0, 2].set(title="Longer side of the visible box", xlabel="pixels", ylabel="objects")
        _place_map(axes[1, 0], trained, "all COCO categories")
        _place_map(axes[1, 1], trained[trained["category"].isin(["bird", "airplane", "kite"])], "bird, airplane, kite")
        bins = np.geomspace(0.8, 160, 28)
        for style, color in zip(REFER_NAMES, (_BLUE, _ORANGE, _GREEN, "#CC79A7"), strict=True):
            words = build.sentences.loc[build.sentences["style"] == style, "words"]
            label = f"{style} ({words.mean():.0f})"
            share = np.full(len(words), 1 / max(len(words), 1))
            axes[1, 2].hist(words, bins=bins, weights=share, color=color, alpha=0.75, label=label)
        axes[1, 2].set(title="Words per expression (mean)", xscale="log", xlabel="words", ylabel="share of the style")
        axes[1, 2].set_xticks([1, 3, 10, 30, 100], ["1", "3", "10", "30", "100"])
        axes[1, 2].set_ylim(0, 0.65)
        axes[1, 2].legend(frameon=False, loc="upper left", ncols=2)
    return figure


def _place_map(axes: Any, objects: pd.DataFrame, title: str) -> None:
    axes.hist2d(objects["x"], objects["y"], bins=24, range=[[0, 1], [0, 1]], cmap="Blues")
    axes.invert_yaxis()
    axes.set(title=f"Where centres lie: {title}", xlabel="x / width", ylabel="y / height")
