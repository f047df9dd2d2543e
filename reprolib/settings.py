"""What a settings class may hold: said once, in the annotations of its fields, and checked when one is made.

It knows nothing of attacks, defenses or models.

>>> from reprolib.attacks import DLG
>>> DLG(iterations=0)
Traceback (most recent call last):
ValueError: iterations must be a whole number >= 1, got 0; the largest is 1000000
"""

from __future__ import annotations

import math
import reprlib
import types
from dataclasses import dataclass, fields
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

LARGEST = 1e18
"""A level or a length beyond this overflows float32 when it is squared."""

MOST = 10**6
"""A count beyond this would take longer than anybody waits."""


@dataclass(frozen=True)
class Range:
    """The numbers that a field takes: from `least` on, or above it, up to `most`, or below it."""

    least: float = -math.inf
    most: float = math.inf
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        over = value > self.least if self.above else value >= self.least
        return over and (value < self.most if self.below else value <= self.most)

    def words(self, whole: bool) -> str:
        """What is expected, as a sentence goes on after "must"; whole: of whole numbers."""
        if self.below:
            return f"lie in {'(' if self.above else '['}{self.least:g}, {self.most:g})"
        number = "a whole number" if whole else "a number" if math.isinf(self.most) else "a finite number"
        return f"be {number} {'>' if self.above else '>='} {self.least:g}"

    def bound(self) -> str:
        """What is said behind the value where there is a largest one."""
        largest = self.most if isinstance(self.most, int) else f"{self.most:g}"
        return "" if self.below or math.isinf(self.most) else f"; the largest is {largest}"


@dataclass(frozen=True)
class OneOf:
    """The words that a field takes, where they are the keys of a table."""

    words: tuple[str, ...]


Count = Annotated[int, Range(1, MOST)]
CountOrNone = Annotated[int, Range(0, MOST)]
Level = Annotated[float, Range(0, LARGEST)]
Length = Annotated[float, Range(0, LARGEST, above=True)]
Share = Annotated[float, Range(0, 1, below=True)]


def check(settings: Any) -> None:
    """Hold each field of a frozen dataclass against its annotation; numpy's numbers become Python's on the way.

    It understands Literal, bool, the ranges of this module, int, float, str, classes, and each of them or None; of
    anything else it says nothing. Call it at the beginning of `__post_init__`.
    Errors: ValueError naming the field, what is expected and its value.
    """
    for name, hint in _hints(type(settings)):
        value = getattr(settings, name)
        if isinstance(value, np.generic):
            value = value.item()
            object.__setattr__(settings, name, value)
        if problem := _problem(hint, value):
            raise ValueError(f"{name} must {problem[0]}, got {reprlib.repr(value)}{problem[1]}")


@cache
def _hints(kind: type) -> list[tuple[str, Any]]:
    hints = get_type_hints(kind, include_extras=True)
    return [(field.name, hints[field.name]) for field in fields(kind)]


def _problem(hint: Any, value: Any) -> tuple[str, str] | None:
    """What is expected instead of this value, and what is said behind it; None where the value fits."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        problems = [_problem(each, value) for each in inner]
        return (
            None if None in problems else next(p for p, h in zip(problems, inner, strict=True) if h is not type(None))
        )
    if hint is type(None):
        return None if value is None else ("be None", "")
    if origin is Literal:
        known = isinstance(value, str) and value in inner
        return None if known else (f"be one of {', '.join(map(repr, inner))}", "")
    if origin is Annotated:
        limits = inner[1]
        if isinstance(limits, OneOf):
            known = isinstance(value, str) and value in limits.words
            return None if known else (f"be one of {', '.join(map(repr, limits.words))}", "")
        if isinstance(limits, Range):
            whole = inner[0] is int
            return None if _is_number(value, whole) and value in limits else (limits.words(whole), limits.bound())
        return _problem(inner[0], value)
    if hint in (int, float):
        return None if _is_number(value, hint is int) else (f"be a {'whole ' * (hint is int)}number", "")
    if hint is bool:
        return None if isinstance(value, bool) else ("be True or False", "")
    if isinstance(hint, type) and not isinstance(value, hint):
        return f"be {'an' if hint.__name__[0] in 'AEIOU' else 'a'} {hint.__name__}", ""
    return None


def _is_number(value: object, whole: bool) -> bool:
    return isinstance(value, int if whole else int | float) and not isinstance(value, bool)
