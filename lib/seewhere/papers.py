"""What the four papers claim, what they print, and what our records must show for a claim to count as reproduced."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

from seewhere import results

NORMAL = NormalDist()
REPRODUCED, CONTRADICTED, UNSEEN, ABSENT = "reproduced", "contradicted", "not at this scale", "not yet run"


@dataclass(frozen=True, slots=True)
class Condition:
    """What a claim's records must show: `metric` wholly ``above`` or ``below`` `bound`.

    With `closed`, touching the bound counts as being on the right side (a rate of exactly 0 is not above 0). A claim
    that speaks of several tasks needs records of all of them: those that `tasks` names, as ``setting.task``.
    Only beyond `nothing`, the value of no effect (the bound where none is given), does a record contradict a claim: an
    effect half as large as the paper's is not its opposite.
    """

    metric: str
    side: str = "above"
    bound: float = 0.0
    closed: bool = False
    tasks: tuple[str, ...] = ()
    nothing: float | None = None

    def judge(self, record: results.Record, among: int = 1) -> str:
        """Verdict on one record of `among`; one without an interval is clear of nothing.

        One record on the wrong side contradicts a claim, and of twelve 95 % intervals one strays by chance every third
        or fourth time. So its interval is widened first, as a normal one, to cover all `among` at once (Bonferroni).
        """
        value, low, high, bound = record["value"], record["low"], record["high"], self.bound
        nothing = bound if self.nothing is None else self.nothing
        if low is None:
            return UNSEEN
        if self.side == "below":
            value, low, high, bound, nothing = -value, -high, -low, -bound, -nothing
        if low > bound or (self.closed and low >= bound):
            return REPRODUCED
        ratio = NORMAL.inv_cdf(1 - 0.025 / among) / NORMAL.inv_cdf(0.975)
        wide = high + (high - value) * (ratio - 1)
        return CONTRADICTED if wide < nothing else UNSEEN


@dataclass(frozen=True, slots=True)
class Printed:
    """A number that the paper printed: what it is of, the metric here that it stands beside, and the number."""

    label: str
    metric: str
    value: float
    unit: str = "points"


@dataclass(frozen=True, slots=True)
class Claim:
    """One claim: number, paper, our wording, the notebook that examines it, its conditions and the paper's numbers."""

    number: str
    paper: str
    text: str
    notebook: str
    conditions: tuple[Condition, ...]
    printed: tuple[Printed, ...] = ()


# What the metrics of the probing claims mean; percentage points but for the rank correlations, with a 95 % interval.
#   gap                   accuracy of the unfrozen arm minus the frozen, linear probes; one record per task x resampler
#   earlier_layer_gain    frozen: accuracy from an earlier layer minus that from the last
#   bigger_probe_gap      frozen under a 2- or 4-layer probe minus unfrozen under a linear one
#   area_tau, distance_tau  Kendall's tau-b of the super-categories' scores with mean area, distance from the centre
#   topological_over_directional  frozen, VSR: accuracy on topological minus directional statements
# What the metrics of LLM-wrapper's claims mean; all are percentage points or percent, with a 95 % interval.
#   gain_p_at_1           P@1 of the wrapper minus P@1 of its detector, paired; one record per detector x language model
#   ensemble_gain         P@1 with both detectors' boxes minus the better single wrapper
#   transfer_gain         P@1 of a wrapper trained on the other detector minus P@1 of this detector
#   long_query_gain       the same on the very long style, trained on the relational one
#   long_text_gain        P@1 minus the detector's on the longest quarter of texts
#   many_candidates_gain  P@1 minus the detector's on the quarter with the most candidates
#   same_label_gap        P@1 where most candidates share the target's label minus P@1 where none does
#   non_integer_rate, out_of_range_rate   share of answers, percent
# What the metrics of the pixel claims mean; RE is 0..300, cIoU and P@1 are percent, differences points.
#   re_ratio              mean RE with the encoder frozen over mean RE with it adapted; one record per evaluation set
#   gain_ciou             cIoU with pixel questions and an adapted encoder minus cIoU with neither
#   pixels_gain, adaptation_gain  cIoU with the one ingredient alone minus cIoU with neither
#   over_pixels, over_adaptation  cIoU with both minus cIoU with the one alone
#   second_stage_drop     RE after stage 1 minus RE after stage 2
#   third_stage_re_ratio  RE after stage 3 over RE after stage 2
#   third_stage_restored  score of the other tasks after stage 3 minus after stage 2; one record per task
#   referring_gain        P@1 of the boxes with the encoder adapted minus frozen, over the referring styles
#   referring_over_constant  P@1 with the encoder adapted minus that of one median box for every phrase
PROBING, WRAPPER, LOCVLM, PIXELS = "Lost in Space", "LLM-wrapper", "LocVLM", "PAE-LaMM"
_GAIN, _ENSEMBLE, _TRANSFER, _LONG = "gain_p_at_1", "ensemble_gain", "transfer_gain", "long_query_gain"

_F1 = tuple(
    Printed(f"{resampler}, {task} test", "gap", gap)
    for resampler, task, gap in (
        ("Q-Former", "RefCOCOg", 41.46),
        ("InstructBLIP Q-Former", "RefCOCOg", 49.42),
        ("Q-Former", "VSR random", 15.53),
        ("InstructBLIP Q-Former", "VSR random", 21.27),
        ("Q-Former", "RCM", 11.86),
        ("InstructBLIP Q-Former", "RCM", 17.78),
    )
)
_F3 = tuple(
    Printed(f"{resampler}, {layers} layers, {task} test", "bigger_probe_gap", gap)
    for resampler, layers, task, gap in (
        ("Q-Former", 2, "RefCOCOg", -39.64),
        ("Q-Former", 4, "RefCOCOg", -37.23),
        ("InstructBLIP Q-Former", 2, "RefCOCOg", -44.33),
        ("InstructBLIP Q-Former", 4, "RefCOCOg", -34.85),
        ("Q-Former", 4, "VSR random", -15.49),
        ("InstructBLIP Q-Former", 4, "VSR random", -17.90),
        ("Q-Former", 4, "RCM", -10.64),
        ("InstructBLIP Q-Former", 4, "RCM", -11.57),
    )
)
_F4 = (
    Printed("frozen Q-Former, area", "area_tau", 0.84, "tau"),
    Printed("frozen InstructBLIP Q-Former, area", "area_tau", 0.66, "tau"),
    Printed("frozen Q-Former, distance from the centre", "distance_tau", -0.51, "tau"),
    Printed("frozen InstructBLIP Q-Former, distance from the centre", "distance_tau", -0.63, "tau"),
)
_F5 = (
    Printed("frozen Q-Former", "topological_over_directional", 32.51),
    Printed("frozen InstructBLIP Q-Former", "topological_over_directional", 27.50),
)
_F6 = tuple(
    Printed(f"{detector} + {llm}, {data}", _GAIN, gain)
    for detector, llm, data, gain in (
        ("Grounding DINO (T)", "Llama 3", "RefCOCOg test", 18.0),
        ("Grounding DINO (T)", "Mixtral", "RefCOCOg test", 17.7),
        ("Florence-2", "Llama 3", "RefCOCOg test", 11.9),
        ("Florence-2", "Mixtral", "RefCOCOg test", 11.5),
        ("Grounding DINO (T)", "Llama 3", "RefCOCO test", 23.0),
        ("Florence-2", "Llama 3", "RefCOCO test", 14.7),
        ("Grounding DINO (T)", "Llama 3", "RefCOCO+ test", 12.0),
        ("Florence-2", "Llama 3", "RefCOCO+ test", 8.5),
        ("Grounding DINO (T)", "Llama 3", "Talk2Car test", 10.2),
        ("Florence-2", "Llama 3", "Talk2Car test", 18.3),
    )
)
_F7 = (
    Printed("both detectors, RefCOCOg val (P@1)", "ensemble_p_at_1", 81.25, "%"),
    Printed("both detectors, RefCOCOg test (P@1)", "ensemble_p_at_1", 80.13, "%"),
    Printed("Florence-2 alone, val (P@1)", "single_p_at_1", 78.76, "%"),
    Printed("GDrec alone, val (P@1)", "single_p_at_1", 78.25, "%"),
    Printed("over the better single one, val", _ENSEMBLE, 2.49),
    Printed("over the better single one, test", _ENSEMBLE, 2.10),
)
_F8 = (
    Printed("Florence-2 -> GDrec, RefCOCOg val", _TRANSFER, 6.3),
    Printed("Florence-2 -> GDrec, RefCOCOg test", _TRANSFER, 5.1),
    Printed("GDrec -> Florence-2, RefCOCOg val", _TRANSFER, 6.0),
    Printed("GDrec -> Florence-2, RefCOCOg test", _TRANSFER, 6.9),
    Printed("GDrec -> Grounding DINO 1.5, 300 of val", _TRANSFER, 29.0),
)
_F9 = (
    Printed("RefCOCOg -> HC-RefLoCo val", _LONG, 18.9),
    Printed("RefCOCOg -> HC-RefLoCo test", _LONG, 19.1),
)
_F11 = (
    Printed("answers without an integer", "non_integer_rate", 0.0, "%"),
    Printed("answers out of range (less than)", "out_of_range_rate", 0.3, "%"),
)
_F17 = (Printed("Conceptual Captions, 20.38 to 6.65", "re_ratio", 3.06, "times"),)
_F18 = (
    Printed("both over neither, mean of eight splits", "gain_ciou", 10.19),
    Printed("both over neither, RefCOCO testA", "gain_ciou", 16.33),
    Printed("both over neither, RefCOCO+ val", "gain_ciou", 5.96),
    Printed("both over neither, RefCOCOg test", "gain_ciou", 7.37),
    Printed("pixel questions alone", "pixels_gain", 4.86),
    Printed("adaptation alone", "adaptation_gain", 4.89),
    Printed("both over pixel questions alone", "over_pixels", 5.33),
    Printed("both over adaptation alone", "over_adaptation", 5.30),
)
_F19 = (
    Printed("20.27 to 6.65", "second_stage_drop", 13.62, "of RE"),
    Printed("6.65 to 6.59", "third_stage_re_ratio", 0.99, "times"),
    Printed("referring boxes, 82.3 to 83.2", "third_stage_restored", 0.9),
    Printed("GQA, 56.2 to 57.7", "third_stage_restored", 1.5),
    Printed("VSR, 56.7 to 59.2", "third_stage_restored", 2.5),
    Printed("VizWiz, 53.22 to 56.4", "third_stage_restored", 3.18),
    Printed("HM, 57.6 to 57.2", "third_stage_restored", -0.4),
)
_F21 = (Printed("RefCOCO, RefCOCO+ and RefCOCOg, 77.2 to 82.3", "referring_gain", 5.1),)

_PROBED = ("rec", "vsr", "rcm")
_N1, _N2, _N3, _N4 = "01_probing_resamplers", "02_llm_wrapper", "03_locvlm", "04_locvlm_video"
_N5, _N6, _N7 = "05_pixel_reconstruction", "06_referring_segmentation", "07_game_rollouts"


def _above(*metrics: str) -> tuple[Condition, ...]:
    return tuple(Condition(metric) for metric in metrics)


_ALL = (
    Claim(
        "F1",
        PROBING,
        "A probe on a frozen resampler stays far behind the same probe with the resampler "
        "trained along, on referring boxes, spatial statements and region captions.",
        _N1,
        (Condition("gap", tasks=_PROBED),),
        _F1,
    ),
    Claim(
        "F2",
        PROBING,
        "Layers of the resampler before the last hold no more of it.",
        _N1,
        (Condition("earlier_layer_gain", "below", 0.0, True),),
    ),
    Claim(
        "F3",
        PROBING,
        "A larger probe does not make up for a frozen resampler.",
        _N1,
        (Condition("bigger_probe_gap", "below", tasks=_PROBED),),
        _F3,
    ),
    Claim(
        "F4",
        PROBING,
        "Large objects are found more easily, objects far from the centre less so.",
        _N1,
        (Condition("area_tau"), Condition("distance_tau", "below")),
        _F4,
    ),
    Claim(
        "F5",
        PROBING,
        "Frozen, topological relations are read better than directional ones.",
        _N1,
        _above("topological_over_directional"),
        _F5,
    ),
    Claim(
        "F6",
        WRAPPER,
        "A language model that reads a detector's boxes picks better than the detector itself,"
        " for every pair of detector and language model.",
        _N2,
        _above(_GAIN),
        _F6,
    ),
    Claim(
        "F7",
        WRAPPER,
        "Given two detectors' boxes at once, it beats what it makes of either alone.",
        _N2,
        _above(_ENSEMBLE),
        _F7,
    ),
    Claim(
        "F8",
        WRAPPER,
        "Trained on one detector's boxes, it still beats another detector that it never saw.",
        _N2,
        _above(_TRANSFER),
        _F8,
    ),
    Claim(
        "F9",
        WRAPPER,
        "Trained on ordinary expressions, it still beats the detector on very long ones.",
        _N2,
        _above(_LONG),
        _F9,
    ),
    Claim(
        "F10",
        WRAPPER,
        "Longer texts and more candidates do it no harm; candidates that share a label do.",
        _N2,
        (Condition("long_text_gain"), Condition("many_candidates_gain"), Condition("same_label_gap", "below")),
    ),
    Claim(
        "F11",
        WRAPPER,
        "Fine-tuned, it hardly ever gives an answer that cannot be used.",
        _N2,
        (Condition("non_integer_rate", "below", 0.3, True), Condition("out_of_range_rate", "below", 0.3, True)),
        _F11,
    ),
    Claim(
        "F12",
        LOCVLM,
        "Teaching coordinates as text lifts spatial reasoning, region description and question"
        " answering, and cuts hallucination.",
        _N3,
        _above("spatial_gain", "description_gain", "question_gain", "hallucination_gain"),
    ),
    Claim(
        "F13",
        LOCVLM,
        "Integers in pixel bins are at least as good as grid anchors with offsets, and these beat decimals.",
        _N3,
        (Condition("bins_over_anchors", "above", 0.0, True), Condition("anchors_over_decimals")),
    ),
    Claim(
        "F14",
        LOCVLM,
        "Each of the objectives adds to the others; generated data are what drives description.",
        _N3,
        _above("objective_gain", "pseudo_data_gain"),
    ),
    Claim(
        "F15", LOCVLM, "A centre point teaches as much as a box.", _N3, (Condition("point_over_box", "above", -2.0),)
    ),
    Claim("F16", LOCVLM, "All this holds for video.", _N4, _above("video_gain")),
    Claim(
        "F17",
        PIXELS,
        "Adapting the vision encoder cuts the reconstruction error about threefold.",
        _N5,
        (Condition("re_ratio", "above", 2.5, nothing=1.0),),
        _F17,
    ),
    Claim(
        "F18",
        PIXELS,
        "Learning to read pixels and adapting the encoder each lift referring segmentation, and most together.",
        _N6,
        _above("gain_ciou", "pixels_gain", "adaptation_gain", "over_pixels", "over_adaptation"),
        _F18,
    ),
    Claim(
        "F19",
        PIXELS,
        "The second stage cuts the reconstruction error; the third keeps that and restores the other tasks.",
        _N5,
        (
            Condition("second_stage_drop"),
            Condition("third_stage_re_ratio", "below", 1.25),
            Condition("third_stage_restored"),
        ),
        _F19,
    ),
    Claim(
        "F20",
        PIXELS,
        "In games the pixel-trained model beats its baseline and stays below the expert.",
        _N7,
        (Condition("over_baseline"), Condition("over_expert", "below")),
    ),
    Claim(
        "F21",
        PIXELS,
        "Adaptation also improves referring boxes on average.",
        _N6,
        _above("referring_gain", "referring_over_constant"),
        _F21,
    ),
)
CLAIMS: dict[str, Claim] = {claim.number: claim for claim in _ALL}
