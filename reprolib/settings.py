"""What a settings class may hold: said once, in the annotations of its fields, and checked when one is made.

It knows nothing of attacks, defenses or models.

>>> from reprolib.attacks import DLG
>>> try:
...     DLG(iterations=0)
... except ValueError as error:
...     print(error)
iterations must be a whole number >= 1, got 0; the largest is 1000000
"""

from __future__ import annotations

import math
import reprlib
import types
from collections.abc import Iterable
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
    """The numbers that a field takes: from `least` on, or above it, up to `most`, or below it.

    infinite: infinity too. note: what is said of the field behind its value, where that is refused.
    """

    least: float = -math.inf
    most: float = math.inf
    above: bool = False
    below: bool = False
    infinite: bool = False
    note: str = ""

    def __contains__(self, value: float) -> bool:
        over = value > self.least if self.above else value >= self.least
        return over and (value < self.most if self.below else value <= self.most) or self.infinite and value == math.inf

    def words(self, whole: bool) -> str:
        """What is expected, as a sentence goes on after "must"; whole: of whole numbers."""
        if self._narrow:
            return f"lie in {'(' if self.above else '['}{self.least:g}, {self.most:g}{')' if self.below else ']'}"
        infinite = self.infinite or math.isinf(self.most) and not self.below
        number = "a whole number" if whole else "a number" if infinite else "a finite number"
        return f"be {number} {'>' if self.above else '>='} {self.least:g}"

    def behind(self) -> str:
        """What is said behind the value: the largest one, where there is one, and the note."""
        largest = self.most if isinstance(self.most, int) else f"{self.most:g}"
        bound = f"; the largest is {largest}" if not self._narrow and not math.isinf(self.most) else ""
        return bound + ", or infinity" * self.infinite + f"; {self.note}" * bool(self.note)

    @property
    def _narrow(self) -> bool:
        """Whether it is an interval that is worth giving, and not all that a computer can hold."""
        return self.most < MOST


@dataclass(frozen=True)
class OneOf:
    """The words that a field takes, where they are the keys of a table."""

    words: tuple[str, ...]


@dataclass(frozen=True)
class Like:
    """What stands for an object of the annotated class is taken for one: it has this attribute."""

    attribute: str


Count = Annotated[int, Range(1, MOST)]
CountOrZero = Annotated[int, Range(0, MOST)]
Whole = Annotated[int, Range(1)]
WholeOrZero = Annotated[int, Range(0)]
SeedOfTorch = Annotated[int, Range(0, 2**64 - 1)]
Level = Annotated[float, Range(0, LARGEST)]
Length = Annotated[float, Range(0, LARGEST, above=True)]
LengthOrInfinity = Annotated[float, Range(0, LARGEST, above=True, infinite=True)]
Positive = Annotated[float, Range(0, above=True, below=True)]
Share = Annotated[float, Range(0, 1, below=True)]


def check(settings: Any) -> None:
    """Hold each field of a frozen dataclass against its annotation; numpy's numbers become Python's on the way.

    It understands Literal, bool, the ranges of this module, int, float (a finite one), str, classes, and each of them
    or another; of anything else it says nothing. Call it at the beginning of `__post_init__`.
    Errors: ValueError naming the field, what is expected and its value.
    """
    for name, hint in _hints(type(settings)):  # type: ignore[arg-type]  # a class can be hashed
        value = getattr(settings, name)
        if (same := held(name, hint, value)) is not value:
            object.__setattr__(settings, name, same)


def held(name: str, hint: Any, value: Any) -> Any:
    """The value, if it is what the annotation says; numpy's number as Python's.

    Errors: ValueError as `check`.
    """
    value = value.item() if isinstance(value, np.generic) else value
    if problem := _problem(hint, value):
        raise ValueError(f"{name} must {problem[0]}, got {reprlib.repr(value)}{problem[1]}")
    return value


def each(name: str, hint: Any, values: Any) -> tuple[Any, ...]:
    """Several values, each `held` against the annotation.

    Errors: ValueError as `check`.
    """
    if not isinstance(values, Iterable):
        raise ValueError(f"{name} must be a sequence, got {reprlib.repr(values)}")
    return tuple(held(f"each of {name}", hint, value) for value in values)


@cache
def _hints(kind: type) -> list[tuple[str, Any]]:
    try:
        hints = get_type_hints(kind, include_extras=True)
    except NameError:  # somebody's own class, with names that only a type checker imports
        return []
    return [(field.name, hints[field.name]) for field in fields(kind)]


def _problem(hint: Any, value: Any) -> tuple[str, str] | None:
    """What is expected instead of this value, and what is said behind it; None where the value fits."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        problems = [_problem(each, value) for each in inner if each is not type(None)]
        if None in problems:
            return None
        words = [expected.removeprefix("be ") for expected, _ in problems[1:]]  # type: ignore[misc]  # none is None
        return " or ".join([problems[0][0], *words]), problems[0][1]  # type: ignore[index]
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
            return None if _is_number(value, whole) and value in limits else (limits.words(whole), limits.behind())
        if isinstance(limits, Like) and hasattr(value, limits.attribute):
            return None
        return _problem(inner[0], value)
    if hint is int:
        return None if _is_number(value, True) else ("be a whole number", "")
    if hint is float:  # compared, because math.isfinite refuses integers beyond the largest float
        return None if _is_number(value, False) and -math.inf < value < math.inf else ("be a finite number", "")
    if hint is bool:
        return None if isinstance(value, bool) else ("be True or False", "")
    kind = origin or hint  # dict[str, Tensor] is a dict
    if isinstance(kind, type) and not isinstance(value, kind):
        word = kind.__name__.lower() if kind.__module__ == "collections.abc" else kind.__name__
        return f"be {'an' if word[0] in 'AEIOUaeiou' else 'a'} {word}", ""
    return None


def _is_number(value: object, whole: bool) -> bool:
    return isinstance(value, int if whole else int | float) and not isinstance(value, bool)
