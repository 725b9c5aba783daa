"""What all widgets share: stepping through the images of a data set, and a text form where widgets cannot be shown."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ipywidgets
from matplotlib.figure import Figure
from PIL import Image

from seewhere.records import Expression, ImageRecord, Region

if TYPE_CHECKING:
    from seewhere.datasets import ReferringDataset

EVERY_STYLE = "every style"


def to_png(picture: Image.Image | Figure) -> bytes:
    """The PNG file of a picture, as an `ipywidgets.Image` wants it."""
    buffer = io.BytesIO()
    if isinstance(picture, Figure):
        picture.savefig(buffer, format="png", bbox_inches="tight")
    else:
        picture.save(buffer, format="PNG")
    return buffer.getvalue()


@dataclass(slots=True)
class Merged:
    """Several data sets over the same images, such as the four styles of the world, as one to look through."""

    name: str
    split: str
    images: dict[int, ImageRecord]
    by_image: dict[int, list[Region]]
    expressions: list[Expression]


def merge(datasets: ReferringDataset | Sequence[ReferringDataset]) -> ReferringDataset | Merged:
    """One data set out of several that describe the same images; a single one is returned as it is.

    Raises:
        ValueError: no data set at all, or an image id that means different files in two of them.
    """
    if not isinstance(datasets, Sequence):
        return datasets
    if not datasets:
        raise ValueError("A widget needs at least one data set; got none.")
    images: dict[int, ImageRecord] = {}
    by_image: dict[int, dict[int, Region]] = {}
    for dataset in datasets:
        for image_id, record in dataset.images.items():
            if images.setdefault(image_id, record).path != record.path:
                raise ValueError(
                    f"Image {image_id} is {images[image_id].path} in one data set and {record.path} in "
                    f"{dataset.name!r}: only data sets over the same images can be shown together."
                )
            found = by_image.setdefault(image_id, {})
            found.update({region.region_id: region for region in dataset.by_image.get(image_id, [])})
    expressions = [expression for dataset in datasets for expression in dataset.expressions]
    names = " ".join(dataset.name for dataset in datasets)
    regions = {image_id: list(found.values()) for image_id, found in by_image.items()}
    return Merged(names, datasets[0].split, images, regions, expressions)


class Panel(ipywidgets.VBox):
    """A VBox whose text form is a sentence: that is all that is left of it where widgets cannot be shown."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}: a widget; run this cell in Jupyter to use it."

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any] | None:
        bundle = super()._repr_mimebundle_(**options)
        if isinstance(bundle, dict) and "text/plain" in bundle:
            bundle["text/plain"] = repr(self)
        return bundle


class ImagePicker(Panel):
    """Previous, slider and next over the images of a data set: the part that all widgets share."""

    def __init__(self, datasets: ReferringDataset | Sequence[ReferringDataset]) -> None:
        dataset = merge(datasets)
        if not dataset.images:
            raise ValueError(f"The data set {dataset.name!r} ({dataset.split}) has no images to show.")
        self.dataset = dataset
        self.image_ids = sorted({expression.image.image_id for expression in dataset.expressions} or dataset.images)
        last = len(self.image_ids) - 1
        self.slider = ipywidgets.IntSlider(0, 0, last, description="image", continuous_update=False)
        self.previous = ipywidgets.Button(icon="arrow-left", tooltip="previous image", layout={"width": "42px"})
        self.next = ipywidgets.Button(icon="arrow-right", tooltip="next image", layout={"width": "42px"})
        self.previous.on_click(lambda _: self._step(-1))
        self.next.on_click(lambda _: self._step(1))
        self.picture = ipywidgets.Image(format="png", layout={"max_width": "460px", "object_fit": "contain"})
        self.bar = ipywidgets.HBox([self.previous, self.slider, self.next])
        self._by_image: dict[int, list[Expression]] = {}
        for expression in dataset.expressions:
            self._by_image.setdefault(expression.image.image_id, []).append(expression)
        super().__init__()

    def _step(self, change: int) -> None:
        self.slider.value = (self.slider.value + change) % len(self.image_ids)

    @property
    def image_id(self) -> int:
        """Id of the image on show."""
        return self.image_ids[self.slider.value]

    def image(self) -> Image.Image:
        """The image on show, RGB, original size."""
        return self.dataset.images[self.image_id].open()

    def expressions(self, wanted: str = EVERY_STYLE) -> list[Expression]:
        """Expressions of the image on show, in one style or in all."""
        found = self._by_image.get(self.image_id, [])
        return [item for item in found if wanted == EVERY_STYLE or item.style == wanted]
