"""Which way the world's pictures look: needed by statements such as "the dog is facing the car".

Every Twemoji picture drawn from the side looks to the left, so a heading is the name of a side view and whether the
object is mirrored. Pictures from the front, and those on which two people would disagree, have no heading.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from seewhere.world.scenes import SceneObject

# File names (code points) of the side views in the default cast. A skin tone or gender only lengthens the name.
_WALKERS = ("1f6b6", "1f3c3")
_VEHICLES = ("1f697", "1f699", "1f695", "1f693", "1f6f5", "1f682", "1f684", "1f685", "1f69a", "1f69b", "1f6fb", "1f69c")
_ANIMALS = (
    "1f426", "1f54a", "1f986", "1f9a2", "1f99c", "1f9a9", "1f408", "1f415", "1f429", "1f9ae", "1f40e", "1f434",
    "1f411", "1f40f", "1f404", "1f402", "1f418", "1f993", "1f992", "1f422", "1f40c", "1f405", "1f412", "1f998",
    "1f42a", "1f42b", "1f416", "1f407", "1f41f", "1f420",
)  # fmt: skip
_KINDS = {
    **dict.fromkeys(_WALKERS, "walker"),
    **dict.fromkeys(_VEHICLES, "vehicle"),
    **dict.fromkeys(_ANIMALS, "animal"),
}


def kind_of(item: SceneObject) -> str | None:
    """Return "walker", "vehicle" or "animal" for an object seen from the side, None for any other."""
    return _KINDS.get(item.sprite.split("-")[0].removesuffix(".png"))


def heading_of(item: SceneObject) -> int | None:
    """Return -1 for an object that looks to the left of the picture, 1 for one that looks right, None for the others.

    The table is of the default cast; objects of a cast of one's own have no heading.
    """
    if kind_of(item) is None:
        return None
    return 1 if item.mirrored else -1
