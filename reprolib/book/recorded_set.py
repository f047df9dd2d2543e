"""A set of images that only a record knows: its pixels are opened where they are at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


class RecordedSet:
    """An image set as a record knows it: name, shape, classes, size and fingerprint; pixels only where it is at hand.

    It stands wherever an `ImageSet` does. Whoever asks for pixels gets those of `open`, a function that opens the set,
    if it has the record's fingerprint.
    """

    def __init__(self, known: Mapping[str, Any], open: Callable[[], Any]) -> None:
        self._known, self._open, self._opened = dict(known), open, None
        self.name, self.split, self.source = known["name"], known["split"], known["source"]
        self.asked, self.fingerprint = known["asked"], known["fingerprint"]
        self.classes, self.image_shape = tuple(known["classes"]), tuple(known["image_shape"])

    def __len__(self) -> int:
        return self._known["count"]

    @property
    def substitute(self) -> bool:
        return self.name != self.asked

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def opened(self) -> Any:
        """The set itself. Raises FileNotFoundError where it is not at hand, ValueError where it is another."""
        if self._opened is None:
            here = (
                f"The record knows of {self.name!r} ({self.split}) that it has {len(self)} images of {self.image_shape}"
            )
            try:
                found = self._open()
            except FileNotFoundError as error:
                raise FileNotFoundError(f"{here}, and its pixels are not here. {error}") from error
            if found.name != self.name:
                raise FileNotFoundError(
                    f"{here}, and its pixels are not here, only {found.name!r} in its place: let data_root or "
                    f"REPROLIB_DATA name the folder that holds it"
                )
            if found.fingerprint != self.fingerprint:
                raise ValueError(
                    f"{here} and fingerprint {self.fingerprint}, but the copy here is {found.name!r} with {len(found)} "
                    f"images and fingerprint {found.fingerprint}: these are other images"
                )
            self._opened = found
        return self._opened

    def __getattr__(self, name: str) -> Any:
        if name in ("images", "labels", "batches", "mean_image", "after"):
            return getattr(self.opened, name)
        raise AttributeError(f"an image set has no attribute {name!r}")


def known_of(images: Any) -> dict[str, Any]:
    """What a record keeps of an image set."""
    return {
        "name": images.name,
        "split": images.split,
        "asked": images.asked,
        "source": images.source,
        "count": len(images),
        "image_shape": list(images.image_shape),
        "classes": list(images.classes),
        "fingerprint": images.fingerprint,
    }
