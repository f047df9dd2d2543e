"""What a claim is made of: the published value, the paper's own setting, what a run needs, and the criterion.

The file that holds them is described in `reprolib.book.claims`.
"""

from __future__ import annotations

import math
import re
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from reprolib.book.numbers import digits

Profile = Literal["smoke", "cpu", "gpu", "paper"]
PROFILES: tuple[Profile, ...] = get_args(Profile)
"""From the smallest to the paper's own sizes; a claim names the least one at which it can be decided."""


def _finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond all fractions
        return False


def _bound(value: Any) -> Any:
    if not _finite(value):
        raise ValueError("bounds are finite numbers")
    return value


def _single(value: Any) -> Any:
    if not (isinstance(value, str) and value) and not _finite(value):
        raise ValueError("expected one value, text or a finite number")
    return value


def _several(value: Any) -> tuple[Any, ...]:
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not values:
        raise ValueError("no value is listed: leave out what the paper does not fix")
    return tuple(_single(one) for one in values)


Bound = Annotated[float, BeforeValidator(_bound)]

Value = Annotated[str | int | float, BeforeValidator(_single)]

Values = Annotated[tuple[str | int | float, ...], BeforeValidator(_several)]

Sentence = Annotated[str, Field(min_length=1)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Form = TypeVar("Form", bound=Strict)


def read_yaml(path: Path, form: type[Form]) -> Form:
    """The whole of a YAML file. Raises ValueError saying what is wrong with it, OSError where it cannot be read."""
    try:
        return form.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise ValueError(f"{path.name} is not valid YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        fault = error.errors()[0]
        where = ", ".join(map(str, fault["loc"])) or "the whole"
        raise ValueError(f"{path.name}: {where}: {fault['msg']}") from error


class Conditions(Strict):
    """What a measure is taken on: network, image size, budget, batch size, attacker, mode, defense. None: not said."""

    model: Value | None = None
    scale: Value | None = None
    budget: Value | None = None
    batch: Value | None = None
    attacker: Value | None = None
    mode: Value | None = None
    defense: Value | None = None


CONDITIONS = tuple(Conditions.model_fields)
"""What a measure is taken on besides its images."""


class Measure(Strict):
    """A number that the chapter records. on: what this book always measures it on."""

    says: Sentence
    on: Conditions = Conditions()

    @property
    def share(self) -> bool:
        """Whether the sentence says that it is a share, so in [0, 1]; a difference of shares is none."""
        return self.says.lower().startswith("share of") and not re.search(r"\b(minus|difference)\b", self.says)

    @property
    def percent(self) -> bool:
        """Whether a caption tells it in per cent: a share, an accuracy, or a difference of such."""
        return re.match(r"share of|(test )?accuracy\b", self.says.lower()) is not None

    @property
    def success(self) -> bool:
        """Whether the sentence says that it is the share of images that an attack identifies, or gets below an MSE."""
        images = re.match(r"share of ([\w-]+ )*images\b", self.says.lower())
        return self.share and images is not None and bool(re.search(r"\bidentif|\bMSE <", self.says))


class Published(Strict):
    """What the paper prints: a number with its unit, or a short statement such as "no protection"."""

    value: FiniteFloat | str | None
    unit: str = ""

    @property
    def percent(self) -> bool:
        return self.unit.startswith("%")

    def __str__(self) -> str:
        if self.value is None:
            return "—"
        return self.value if isinstance(self.value, str) else f"{self.value:g} {self.unit}".strip()


class Setting(Strict):
    """The paper's own setting: for each key the values that count as the paper's. None: the paper does not fix it.

    data: names of image sets. budget: a number means at least as many.
    """

    model: Values | None = None
    data: Values | None = None
    attacker: Values | None = None
    batch: Values | None = None
    scale: Values | None = None
    budget: Values | None = None
    mode: Values | None = None
    defense: Values | None = None


class Needs(Strict):
    """What a run must have for the claim to be decided by it."""

    data: tuple[str, ...] = ()  # any one of these; empty: any images will do
    profile: Literal["smoke", "cpu", "gpu", "paper"]
    images: int = Field(ge=1)


class Gate(Strict):
    """The control of a claim: its 95 % lower bound must reach `at_least` before the claim is decided."""

    measure: str
    at_least: Bound


class Criterion(Strict):
    """A measure and one bound on it."""

    measure: str
    at_least: Bound | None = None
    at_most: Bound | None = None
    between: tuple[Bound, Bound] | None = None
    above: Bound | None = None

    @model_validator(mode="after")
    def _one_bound(self) -> Criterion:
        given = [name for name in ("at_least", "at_most", "between", "above") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"expected exactly one of at_least, at_most, between, above; got {given or 'none'}")
        if self.between is not None and not self.between[0] < self.between[1]:
            raise ValueError(f"between={list(self.between)}: expected [smaller, larger]")
        return self

    def holds(self, low: float, high: float) -> bool | None:
        """True if all of [low, high] satisfies the bound, False if none of it does, None if only a part does."""
        if self.between is not None:
            every = self.between[0] <= low and high <= self.between[1]
            none = high < self.between[0] or low > self.between[1]
        elif self.at_least is not None:
            every, none = low >= self.at_least, high < self.at_least
        elif self.at_most is not None:
            every, none = high <= self.at_most, low > self.at_most
        elif self.above is not None:
            every, none = low > self.above, high <= self.above
        else:
            raise ValueError(f"a criterion on {self.measure!r} without a bound")
        return True if every else False if none else None

    def words(self, percent: bool = False) -> str:
        """The bound in words; percent: in per cent of the measure's own scale."""
        if self.between is not None:
            return f"between {number_words(self.between[0], percent)} and {number_words(self.between[1], percent)}"
        bound = next(name for name in ("at_least", "at_most", "above") if getattr(self, name) is not None)
        return f"{bound.replace('_', ' ')} {number_words(getattr(self, bound), percent)}"


class Part(Strict):
    """One of several things that a claim states; each is judged."""

    name: Sentence
    criterion: Criterion


class Undecidable(Strict):
    """Why no run of this book decides a claim. missing: the measurement is planned and has not been made yet."""

    reason: Literal["data", "weights", "compute", "budget", "unreadable", "out of scope", "missing"]
    says: Sentence


class Changed(Strict):
    """When and why a criterion was written or changed after runs with the seeds `seen` had measured something of it.

    images: what makes the images of a later run no new ones, such as a test set that every run uses whole.
    """

    date: date
    why: Sentence
    seen: tuple[int, ...] = ()
    images: str = ""


class Reading(Strict):
    """One of the ways to read a statement that the source leaves open. The readings of one statement count once.

    of: the statement, by which its readings find each other. stated: the source's own words say this one.
    """

    of: Sentence
    how: Sentence
    stated: bool = False


def number_words(value: float, percent: bool = False) -> str:
    """Three digits; percent: of a share, in per cent."""
    return f"{digits(100 * value)} %" if percent else digits(value)


def ends_words(low: float | None, high: float | None, percent: bool) -> str:
    """The ends of an interval: "[50, 71]", without a unit."""
    if low is None or high is None:
        return "[—]"
    scale = 100 if percent else 1
    return f"[{digits(scale * low)}, {digits(scale * high)}]"
