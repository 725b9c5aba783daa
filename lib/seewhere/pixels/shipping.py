"""From finished stages to the weights in the package: packed, scored, with their histories and a card.

The card is written from what the runs left behind, so it cannot tell of another training than the one that was.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import pandas as pd

from seewhere import storage
from seewhere.models import micro_vlm, micro_vlm_start
from seewhere.models.micro_clip import shipped_folder
from seewhere.models.micro_vlm_weights import FOLDER, PARTS, check_wired, pack, unpack
from seewhere.models.minigpt import SETTINGS_FILE, MiniGPT
from seewhere.models.packed_folders import plain
from seewhere.pixels import history, other_tasks
from seewhere.pixels.commands import place_of
from seewhere.pixels.reader import PixelReader
from seewhere.pixels.readers import ACCOUNT, ENCODER
from seewhere.pixels.recipe import PARTS as STAGE_PARTS
from seewhere.pixels.recipe import SHIPPED_STAGES, TRAINING, apart, chain
from seewhere.pixels.study import Study, gather

SHIPPED = {"frozen": f"frozen{STAGE_PARTS[-1]}", "stage2": f"2{STAGE_PARTS[-1]}", "stage3": "3"}
"""Name of a model in the package -> the last stage of its training."""
TOLD = {"stage1": "1", "stage2": SHIPPED["stage2"], "stage3": "3", "frozen": SHIPPED["frozen"], "at-once": "at-once"}
"""Name -> stage after which a model is asked in words."""
ASKED = {"scenes": 6, "novel scenes": 3, "photographs": 0, "textures": 6}
"""Pictures of each set that the card's errors are of."""
LATE = tuple(f"{stage}{part}" for stage in ("2", "frozen") for part in STAGE_PARTS[2:])
"""Parts of stages of whose snapshots only the last ships: little moves between them."""
SCENES = 100
"""Asked about in words after every stage."""


def ship(
    runs: Path,
    target: Path = FOLDER,
    scenes: int = SCENES,
    pictures: Mapping[str, int] = ASKED,
    progress: bool = True,
) -> Path:
    """Put what ``seewhere train pixels --stage all`` left in `runs` into the package.

    Args:
        runs: folder with all stages.
        target: where the weights go; what is there is replaced as a whole.
        scenes: asked about in words for ``forgetting.csv``.
        pictures: set -> how many are reconstructed for the card.
        progress: show bars.

    Raises:
        FileNotFoundError: a stage that is not finished.
        ValueError: a frozen baseline that differs from stage 2 in more than its encoder, or a first stage that was
            wired for another language model.
    """
    made = read_runs(runs)
    check_fair(made)
    models = {name: MiniGPT.load(place_of(stage, runs) / "model") for name, stage in TOLD.items()}
    room = _room(made)
    check_wired(models["stage1"], room)
    adapted, frozen = (chain(SHIPPED_STAGES, stage) for stage in ("2", "frozen"))
    histories = {
        "micro-pixels": ["1", *adapted, "3"],
        "micro-pixels-frozen": ["1", *frozen],
        "micro-pixels-at-once": ["at-once"],
    }
    with storage.atomic_directory(target, overwrite=True) as work:
        pack({f"micro-pixels-{name}": models[name] for name in SHIPPED}, room, Path(work))
        # What ships is asked as its users get it: rounded.
        models |= {name: unpack(f"micro-pixels-{name}", Path(work)) for name in SHIPPED}
        readers = {name: PixelReader(model, progress=False) for name, model in models.items()}
        asked = other_tasks.rows(readers, scenes, progress=progress)
        study = Study.start(gather(list(pictures), pictures, [0]))
        for name in SHIPPED:
            study.ask(readers[name], name, progress)
        for name, stages in histories.items():
            seen = [history.read_history(place_of(stage, runs) / history.FILE) for stage in stages]
            whole = reduce(history.ReconstructionHistory.followed_by, seen)
            whole.without_middles(LATE).write(Path(work) / history.FILES[name])
        other_tasks.write(asked, Path(work))
        told = portable(made)
        storage.atomic_write_json(Path(work) / TRAINING, told)
        storage.atomic_write_text(Path(work) / "README.md", card(told, study.table, asked, Path(work)))
    return target


def places(runs: Path) -> list[Path]:
    """Folders of the stages, in the order of `SHIPPED_STAGES`."""
    return [place_of(stage, runs) for stage in SHIPPED_STAGES]


def read_runs(runs: Path) -> dict[str, Any]:
    """Name of each stage's folder -> what it was made by.

    Raises:
        FileNotFoundError: a stage that is not finished.
    """
    missing = [p for p in places(runs) if not (p / TRAINING).is_file() or not (p / "model" / SETTINGS_FILE).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{', '.join(map(str, missing))}: no finished stage; make all with seewhere train pixels --stage all"
        )
    return {place.name: storage.read_json(place / TRAINING) for place in places(runs)}


def portable(made: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `read_runs` gave with each stage's start by its name: the folder is this machine's affair."""
    found = {}
    for name, about in made.items():
        start = str(about["settings"].get("start", ""))
        named = Path(start).parent.name if Path(start).parent.name in made else start
        found[name] = {**about, "settings": {**about["settings"], "start": named}}
    return found


def check_fair(made: Mapping[str, Any]) -> None:
    """Refuse a baseline that differs from stage 2, in any of its parts, in more than its encoder.

    Raises:
        ValueError: the settings in which they differ.
    """
    for part in STAGE_PARTS:
        second, frozen = made[f"stage2{part}"], made[f"frozen{part}"]
        odd = apart(frozen["settings"], second["settings"], {"adapt", "start"} if part else {"adapt"})
        if frozen.get("pictures") != second.get("pictures"):
            odd.append(f"pictures {frozen.get('pictures')} against {second.get('pictures')}")
        if odd or frozen["settings"]["adapt"] or not second["settings"]["adapt"]:
            raise ValueError(
                "the frozen baseline has to be stage 2 in everything but its encoder; it differs in: "
                f"{'; '.join(odd) or 'nothing, but adapt is wrong in one of them'}"
            )


def _room(made: Mapping[str, Any]) -> micro_vlm_start.Room:
    """The directions that the first layers were wired along, which follow from the language model at the start."""
    from transformers import AutoModelForCausalLM

    folder = plain(shipped_folder(made["stage1"]["settings"]["language"], "seewhere train language --out FOLDER"))
    base: Any = AutoModelForCausalLM.from_pretrained(folder)
    return micro_vlm_start.Room.of(base.get_input_embeddings().weight.detach().float(), round(micro_vlm.GRID**0.5))


# ----------------------------------------------------------------------------------------------------------- card


def _table(wide: pd.DataFrame, digits: int) -> str:
    head = f"| | {' | '.join(map(str, wide.columns))} |\n| --- |{' --- |' * len(wide.columns)}\n"
    return head + "\n".join(
        f"| {name} | {' | '.join(f'{value:.{digits}f}' for value in row)} |"
        for name, row in zip(wide.index, wide.to_numpy(), strict=True)
    )


def _stages(made: Mapping[str, Any]) -> str:
    lines = []
    for name, entry in made.items():
        own = entry["settings"]
        shares = ", ".join(f"{task} {share:g}" for task, share in own["mixture"].items())
        asked = "/".join(str(own[f"{kind}_questions"]) for kind in ("colour", "mask", "word"))
        encoder = "trained" if own["adapt"] else "frozen"
        start = own["start"] or "new"
        lines.append(
            f"| {name} | {start} | {encoder} | {own['steps']} x {own['images']} | {shares} | {asked} | "
            f"{own['learning_rate']:g} | {'trained' if own.get('reading') else 'held'} | "
            f"{'mean with the first' if own.get('averaged') else 'the last'} |"
        )
    columns = (
        "stage",
        "begins with",
        "encoder",
        "steps x pictures",
        "pictures by task",
        "colours/masks/words a picture",
        "rate",
        "wired",
        "weights kept",
    )
    return f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}\n" + "\n".join(lines)


def card(made: Mapping[str, Any], errors: pd.DataFrame, asked: pd.DataFrame, folder: Path) -> str:
    """What the weights are, how they were made and what they can do.

    Args:
        made: see `portable`.
        errors: table of a `Study` of the models and baselines.
        asked: rows of `other_tasks.rows`, of every stage.
        folder: with the packed weights.
    """
    own = made["stage1"]["settings"]
    clip = shipped_folder(own["clip"], "seewhere train clip --out FOLDER") / "model.safetensors"
    drawn = ", ".join(f"{count} {kind}" for kind, count in made["stage2"].get("pictures", {}).items())
    re = errors.groupby(["system", "set"], sort=False).re.mean().unstack()
    counts = ", ".join(f"{n} {name}" for name, n in errors.groupby("set", sort=False).picture.nunique().items())
    tasks = asked.groupby(["model", "task"], sort=False).score.mean().unstack()[list(other_tasks.TASKS)]
    each = int(asked.groupby(["model", "task"]).size().iloc[0])
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    return f"""# micro-pixels

Three small vision-language models (`seewhere.models.micro_vlm`) that can be asked for the colour of a pixel, for
boxes and in words: `micro-pixels-frozen` (its encoder was never trained for pixels), `micro-pixels-stage2` (it was)
and `micro-pixels-stage3` (stage 2, then on with the encoder frozen). Stage 2 and the baseline were trained in
{len(STAGE_PARTS)} parts each; what ships is the end of the last (`{STAGE_PARTS[-1]}`).

| | |
| --- | --- |
| make them again | `seewhere train pixels --stage all --out RUNS --ship` |
| network | {NETWORK} {own["language"]}; 64 tokens an image |
| {ENCODER} | {own["clip"]}, sha256 of its model.safetensors `{storage.hash_file(clip)}` |
| pictures in training | {drawn}; colours also of scenes in other colours |
| size | {size:.1f} MB: about five bits a number, eight an embedding's, equal parts once |
| sha256 of {PARTS} | `{storage.hash_file(folder / PARTS)}` |

{_stages(made)}

Reconstruction error RE (channels summed, 0..300) on whole held-out pictures ({counts}; means):

{_table(re, 1)}

What is known beside pixels (shares 0..1; {each} questions of each kind about scenes of the val split,
`{other_tasks.FILE}`): boxes with an IoU above 0.5, naming a box, questions, F1 of the categories in captions.

{_table(tasks, 2)}

{PROSE}

{ACCOUNT} All by one recipe (`{TRAINING}`): the frozen baseline is stage 2 in everything but its encoder,
with the same pictures, questions, steps and rates. One training of each. The card's scores are of the
weights as they ship, rounded; those of stage 1 and of `at-once`, which do not, before rounding.

The sprites of the scenes are Twemoji (CC-BY 4.0).
"""


NETWORK = (
    "MiniGPT-v2's layout: micro-CLIP's image tower, one linear layer with a vector for each place, Llama of width 192: "
    "three wired layers and those of"
)
PROSE = """**How they start.** Not at random (`seewhere.models.micro_vlm_start`). Three layers in front of the language
model's find the patch and the cell that a question means and read a colour off what the image's token holds; they
are set by hand, held, and trained with the rest only in the last two parts. The connector starts as the least squares
from the frozen encoder's tokens to each patch's two-dimensional cosines. All of it is the same in the frozen model and
in the adapted ones. What they show is what an encoder keeps of a picture; not that a small Transformer finds by itself
where to look.

**What else differs from the paper.** The language model's own layers are trained in full and not by LoRA, tokens are
not merged by four, a colour is learnt as a bell around its value among the 256 tokens of its place in the answer, and
so are a box's corners in the last three parts of stage 2 and in stage 3."""
