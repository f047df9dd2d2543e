"""A set of images that only a record knows: its pixels are opened where they are at hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from reprolib import data


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
        if name in ("images", "labels", "batches", "mean_image", "after", "subset"):
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


def with_images(inputs: Mapping[str, Any], seed: int) -> tuple[dict[str, Any], bool]:
    """The inputs with images in place of what a record knows of them, and whether they are the record's own.

    seed: of the sets that stand in where its own are not here.
    """
    same = True

    def filled(value: Any) -> Any:
        nonlocal same
        if isinstance(value, RecordedSet):
            try:
                return value.opened
            except (FileNotFoundError, ValueError):
                same = False
                return data.choose(value.asked, value.split, None, seed)
        if isinstance(value, dict):
            new = {key: filled(item) for key, item in value.items()}
            return new if any(new[key] is not item for key, item in value.items()) else value
        if type(value) in (list, tuple):
            items = [filled(item) for item in value]
            return type(value)(items) if any(a is not b for a, b in zip(items, value, strict=True)) else value
        if dataclasses.is_dataclass(value) and not isinstance(value, type | data.ImageSet):
            own = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
            new = filled(own)
            return dataclasses.replace(value, **new) if new is not own else value
        return value

    return {key: filled(item) for key, item in inputs.items()}, same
