"""The micro detector: a small object detector for the embedded world, and the black box that the wrapper repairs.

It stands where Grounding DINO or Florence-2 stand with photographs: it gives labelled, scored boxes for an image and a
phrase, sees objects well and understands relations badly. The network is the one of "Objects as Points" (Zhou et al.
2019) on a transformers ``ResNetBackbone``; `micro_detector_training` trains it from scratch on a CPU in minutes.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm
from transformers import ResNetBackbone, ResNetConfig

from seewhere import boxes as frames
from seewhere.models import few_bits
from seewhere.models.candidates import Detections, make_candidates
from seewhere.models.label_match import best_candidate, best_placed_candidate
from seewhere.models.micro_detector_heatmap import decode, suppress
from seewhere.storage import hash_file, read_json

WEIGHTS = Path(__file__).resolve().parents[1] / "weights"
NAMES = {"micro": "micro-detector", "micro-b": "micro-detector-b"}


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    """Shape of a micro detector.

    input_side: side in pixels of the letterboxed square input. widths, depths: the four backbone stages (strides 4 to
    32). fusion: channels of the stride-8 map. colour: False feeds the luminance only, so a detector cannot lean on
    colour (its mistakes then differ from those of one that can).
    """

    input_side: int = 192
    embedding: int = 32
    widths: tuple[int, int, int, int] = (32, 64, 128, 192)
    depths: tuple[int, int, int, int] = (1, 1, 1, 1)
    fusion: int = 80
    colour: bool = True


class DetectorNetwork(nn.Module):
    """Backbone, top-down fusion to stride 8, and two heads: a heatmap per category, and (dx, dy, log w, log h)."""

    def __init__(self, settings: NetworkSettings, class_count: int) -> None:
        super().__init__()
        self.settings = settings
        config = ResNetConfig(
            embedding_size=settings.embedding,
            hidden_sizes=list(settings.widths),
            depths=list(settings.depths),
            layer_type="basic",
        )
        config.out_features = ["stage2", "stage3", "stage4"]
        self.backbone = ResNetBackbone(config)
        width = settings.fusion
        self.laterals = nn.ModuleList(nn.Conv2d(c, width, 1) for c in settings.widths[1:])
        self.middle = _convolution(width, width)
        self.smooth = _convolution(width, width)
        self.heat = nn.Sequential(_convolution(width, width), nn.Conv2d(width, class_count, 1))
        self.box = nn.Sequential(_convolution(width, 48), nn.Conv2d(48, 4, 1))
        last = self.heat[-1]
        assert isinstance(last, nn.Conv2d) and last.bias is not None
        nn.init.constant_(last.bias, -4.6)  # start at a probability of 0.01 everywhere, else the first steps explode
        nn.init.normal_(last.weight, std=0.01)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return heatmap logits (B, C, G, G) and coded boxes (B, 4, G, G) for pixels (B, 3, S, S) in 0..1."""
        if not self.settings.colour:
            weights = torch.tensor([0.299, 0.587, 0.114], device=pixels.device).view(1, 3, 1, 1)
            pixels = (pixels * weights).sum(1, keepdim=True).expand(-1, 3, -1, -1)
        pixels = ((pixels - 0.5) / 0.25).contiguous(memory_format=torch.channels_last)
        fine, middle, coarse = (
            lateral(level) for lateral, level in zip(self.laterals, self.backbone(pixels).feature_maps, strict=True)
        )
        middle = self.middle(middle + functional.interpolate(coarse, scale_factor=2.0))
        fused = self.smooth(fine + functional.interpolate(middle, scale_factor=2.0))
        return self.heat(fused), self.box(fused)


def _convolution(inward: int, outward: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inward, outward, 3, padding=1, bias=False), nn.BatchNorm2d(outward), nn.ReLU(inplace=True)
    )


def resolve_folder(name_or_folder: str | Path) -> Path:
    """Return the folder of a detector: "micro", "micro-b", a name under ``seewhere/weights``, or any folder.

    Raises:
        FileNotFoundError: neither a known name nor a folder with ``config.json`` and ``model.safetensors``.
    """
    shipped = WEIGHTS / NAMES.get(str(name_or_folder), str(name_or_folder))
    for folder in (shipped, Path(name_or_folder)):
        if (folder / "config.json").is_file() and (folder / "model.safetensors").is_file():
            return folder
    raise FileNotFoundError(
        f"no detector {str(name_or_folder)!r}: expected one of {sorted(NAMES)} or a folder with config.json and "
        f"model.safetensors (make one with: seewhere train detector --name micro --output FOLDER)"
    )


class MicroDetector:
    """A trained micro detector. It answers the `Grounder` protocol; boxes are xyxy pixels of the original image.

    Args:
        network: the network, in any dtype; it runs in fp32 on its device.
        categories: (COCO id, name) per class index.
        name: written into the candidates.
        threshold: lowest score of a candidate.
        limit: most candidates per image.
        same, across: IoU limits of the suppression, see `suppress`.
        places: read place words by rule when answering a phrase, see `place_words`.
    """

    scores = True

    def __init__(
        self,
        network: DetectorNetwork,
        categories: Sequence[tuple[int, str]],
        name: str = "micro",
        threshold: float = 0.25,
        limit: int = 20,
        same: float = 0.55,
        across: float = 0.8,
        places: bool = False,
    ) -> None:
        self.network = network.float().eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.categories = [(int(i), str(n)) for i, n in categories]
        self.name = name
        self.threshold, self.limit, self.same, self.across = threshold, limit, same, across
        self.places = places
        self.weights_hash = ""

    @classmethod
    def load(cls, name_or_folder: str | Path = "micro", **overrides: Any) -> MicroDetector:
        """Load a detector by name or folder; ``overrides`` replace threshold, limit, same, across, places and name.

        Raises:
            FileNotFoundError: see `resolve_folder`.
            ValueError: the weights do not fit the configuration.
        """
        folder = resolve_folder(name_or_folder)
        config = read_json(folder / "config.json")
        shape: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in config["network"].items()}
        network = DetectorNetwork(NetworkSettings(**shape), len(config["categories"]))
        try:
            network.load_state_dict(few_bits.load_state(folder / "model.safetensors"))
        except RuntimeError as error:
            raise ValueError(f"{folder}: model.safetensors does not fit config.json: {error}") from error
        options = {"name": config["name"], "threshold": config["threshold"], **overrides}
        detector = cls(network, config["categories"], **options)
        detector.weights_hash = hash_file(folder / "model.safetensors")
        return detector

    @property
    def labels(self) -> list[str]:
        """Every label that the detector knows."""
        return [name for _, name in self.categories]

    def with_threshold(self, threshold: float, limit: int) -> MicroDetector:
        """Return the same detector with another score threshold and candidate limit (the network is shared)."""
        other = MicroDetector(
            self.network, self.categories, self.name, threshold, limit, self.same, self.across, self.places
        )
        other.weights_hash = self.weights_hash
        return other

    @torch.inference_mode()
    def detect(self, images: Sequence[Image.Image], batch_size: int = 32) -> list[Detections]:
        """Find objects: per image the candidates, scores descending; ``data["label"]``, ``data["category_id"]``."""
        found: list[Detections] = []
        starts = range(0, len(images), batch_size)
        for start in tqdm(starts, desc=f"{self.name} detects", disable=len(starts) < 8, leave=False):
            found += self._detect_batch(images[start : start + batch_size])
        return found

    def _detect_batch(self, images: Sequence[Image.Image]) -> list[Detections]:
        side = self.network.settings.input_side
        transforms = [frames.letterbox(image.size, (side, side)) for image in images]
        pixels = np.stack(
            [np.asarray(t.apply_image(image.convert("RGB"))) for t, image in zip(transforms, images, strict=True)]
        )
        device = next(self.network.parameters()).device
        batch = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float() / 255
        heat, box_map = self.network(batch)
        peaks = decode(heat.sigmoid().cpu(), box_map.cpu(), 3 * self.limit + 20, self.threshold)
        return [
            self._candidates(*peak, transform, image.size)
            for peak, transform, image in zip(peaks, transforms, images, strict=True)
        ]

    def _candidates(
        self, found: np.ndarray, classes: np.ndarray, scores: np.ndarray, transform: Any, size: tuple[int, int]
    ) -> Detections:
        original = frames.clip(transform.invert_boxes(found), size)
        real = np.flatnonzero(((original[:, 2:] - original[:, :2]) > 1).all(axis=1))
        keep = real[suppress(original[real], classes[real], self.same, self.across)][: self.limit]
        labels = [self.categories[c][1] for c in classes[keep]]
        result = make_candidates(original[keep], labels, scores[keep], self.name, 0 if len(keep) else -1)
        result.data["category_id"] = np.array([self.categories[c][0] for c in classes[keep]], dtype=np.int64)
        return result

    def ground(self, images: Sequence[Image.Image], phrases: Sequence[str]) -> list[Detections]:
        """Answer phrases: all candidates of each image (scores descending) and, in ``metadata["top"]``, the choice.

        The choice is the candidate whose label matches the phrase best by words, then the one with the highest score.
        An image object that occurs several times is looked at once.

        Raises:
            ValueError: not one phrase per image, or an empty phrase.
        """
        if len(images) != len(phrases):
            raise ValueError(f"expected one phrase per image, got {len(images)} images and {len(phrases)} phrases")
        if empty := [i for i, phrase in enumerate(phrases) if not phrase.strip()]:
            raise ValueError(f"phrase {empty[0]} is empty; expected words that describe one object")
        distinct = {id(image): image for image in images}
        seen = dict(zip(distinct, self.detect(list(distinct.values())), strict=True))
        return [self._answer(seen[id(image)], phrase) for image, phrase in zip(images, phrases, strict=True)]

    def _answer(self, candidates: Detections, phrase: str) -> Detections:
        labels, scores = [str(label) for label in candidates.data["label"]], candidates.confidence
        sure: Any = scores if scores is not None else []
        if self.places:
            top = best_placed_candidate(phrase, labels, sure, candidates.xyxy, self.labels)
        else:
            top = best_candidate(phrase, labels, sure, self.labels)
        metadata = {**candidates.metadata, "top": top}
        return replace(candidates, data=dict(candidates.data), metadata=metadata)


@dataclass(frozen=True, slots=True)
class DetectionScores:
    """COCO's detection scores in 0..1: mAP@[.5:.95], mAP@.5, and recall with at most 100 boxes."""

    mean_average_precision: float
    mean_average_precision_50: float
    recall: float
    images: int

    def as_dict(self) -> dict[str, float]:
        """Return the scores as a plain dictionary."""
        return asdict(self)


def evaluate_map(
    detector: MicroDetector, coco_json: str | Path, images_root: str | Path, limit: int | None = None
) -> DetectionScores:
    """Score a detector with pycocotools' ``COCOeval`` on a COCO instances file.

    Args:
        detector: the detector; it is asked with a threshold of 0.01 and up to 100 boxes, as COCO's protocol wants.
        coco_json: path of the instances file.
        images_root: folder of the images.
        limit: only the first so many images, or all.

    Raises:
        ValueError: the file's categories and the detector's have no id in common.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        truth = COCO(str(coco_json))
    known = {i for i, _ in detector.categories}
    if not known & set(truth.getCatIds()):
        raise ValueError(f"{coco_json}: none of its category ids is known to detector {detector.name!r}")
    ids = sorted(truth.getImgIds())[:limit]
    results = _coco_results(detector.with_threshold(0.01, 100), truth, ids, Path(images_root))
    if not results:
        return DetectionScores(0.0, 0.0, 0.0, len(ids))
    with contextlib.redirect_stdout(io.StringIO()):
        run = COCOeval(truth, truth.loadRes(results), "bbox")
        run.params.imgIds = ids
        run.evaluate()
        run.accumulate()
        run.summarize()
    return DetectionScores(float(run.stats[0]), float(run.stats[1]), float(run.stats[8]), len(ids))


def _coco_results(detector: MicroDetector, truth: Any, ids: Sequence[int], root: Path) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    for start in tqdm(range(0, len(ids), 64), desc="mAP", leave=False):
        part = list(ids[start : start + 64])
        images = [Image.open(root / truth.imgs[i]["file_name"]).convert("RGB") for i in part]
        for image_id, found in zip(part, detector.detect(images), strict=True):
            boxes = frames.from_xyxy(found.xyxy, "xywh")
            scores = found.confidence if found.confidence is not None else np.zeros(0)
            for box, category, score in zip(boxes, found.data["category_id"], scores, strict=True):
                row = {"image_id": image_id, "category_id": int(category), "bbox": box.tolist(), "score": float(score)}
                results.append(row)
    return results


def parameter_count(network: nn.Module) -> int:
    """Return the number of parameters of a network."""
    return sum(p.numel() for p in network.parameters())
