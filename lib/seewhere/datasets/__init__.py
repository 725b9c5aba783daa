"""Readers of the published formats: one loader for the world and for the real thing.

``load(name, split, root)`` is all that a notebook needs; everything it returns is in the frame of ``seewhere.boxes``.
"""

from seewhere.datasets.coco import CocoAnnotations, load_captions, load_coco
from seewhere.datasets.dataset import ReferringDataset
from seewhere.datasets.hub import load_hub
from seewhere.datasets.loading import NAMES, load
from seewhere.datasets.vsr import Statement, StatementSet, load_vsr

__all__ = [
    "NAMES",
    "CocoAnnotations",
    "ReferringDataset",
    "Statement",
    "StatementSet",
    "load",
    "load_captions",
    "load_coco",
    "load_hub",
    "load_vsr",
]
