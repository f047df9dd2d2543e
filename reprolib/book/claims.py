"""The files of claims: what a paper states, the paper's own setting, and the criterion that judges each statement.

A file of claims, `claims/<paper>.yml`::

    paper: idlg
    title: "iDLG: Improved Deep Leakage from Gradients"
    finding: "One image's label is read off its gradient in {label_accuracy} of the cases."  # in a sentence
    picture: strip                  # the chapter's figure that stands beside it
    measures:                       # every number the chapter records: a sentence, or what it is always measured on too
      label_accuracy: share of images whose label the row-sum rule infers
      undefended: {says: share of images identified without the defense, on: {model: LeNet}}
    claims:
      - id: label-accuracy
        says: the label of a single sample is recovered from the gradient of the last layer
        kind: result                # result | setting (not counted) | identity (algebra, counted apart)
        central: true               # one of the three to five that the paper stands on
        where: Table 1
        published: {value: 100.0, unit: "% of labels"}   # a unit that starts with % : the measure is a share in [0, 1]
        provenance: read            # read in the source | plot (read off a figure) | recalled (unverified) | own
        setting: {model: LeNet, data: [mnist, lfw], batch: 1}    # the paper's own, as far as it fixes one
        needs: {data: [cifar10, mnist], profile: cpu, images: 1000}
        scope: architecture         # architecture | network | none: what the clusters of the interval are
        gate: {measure: undefended, at_least: 0.5}       # the control that must hold first
        criterion: {measure: label_accuracy, at_least: 0.99}
      - ...
        parts: [{name: "trained", criterion: {...}}, {name: "untrained", criterion: {...}}]   # instead of a criterion
      - ...
        undecidable: {reason: data, says: "needs LFW"}   # instead of a criterion
        reading: {of: noise of 1e-2, how: the number is a variance, stated: true}   # where it can be read in two ways

Criteria are in the measure's own scale (shares in [0, 1]); tables tell shares, and what the paper prints so, in per
cent. How a run's intervals become verdicts: `reprolib.book.judge`.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Hashable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from reprolib.book.criteria import (
    Changed,
    Conditions,
    Criterion,
    Gate,
    Measure,
    Needs,
    Part,
    Published,
    Reading,
    Setting,
    Strict,
    Undecidable,
    ends_words,
    number_words,
)
from reprolib.measure.intervals import Interval

_PLACES = re.compile(r"\{([^{}]*)\}")

OPEN_NUMBER = "* measured, not decided."
"""What a finding's end says of the numbers in it that are marked so."""


class Claim(Strict):
    """One statement or number of a paper (or of this book), with the criterion it is judged by."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    says: str
    kind: Literal["result", "setting", "identity"] = "result"
    central: bool = False
    where: str
    published: Published
    provenance: Literal["read", "plot", "recalled", "own"]
    origin: Literal["paper", "book"] = "paper"
    setting: Setting = Setting()
    favours: str = ""
    beside: str = ""  # what must stand beside the verdict, with {measures} in their places: `Paper.filled`
    needs: Needs | None = None  # only a claim without an interval may leave it out
    scope: Literal["architecture", "network", "none"] = "architecture"
    gate: Gate | None = None
    criterion: Criterion | None = None
    parts: tuple[Part, ...] = ()
    undecidable: Undecidable | None = None
    reading: Reading | None = None
    changed: Changed | None = None

    @property
    def criteria(self) -> tuple[Criterion, ...]:
        """What is judged: the criterion, or that of each part; nothing for settings and undecidable claims."""
        return (self.criterion,) if self.criterion else tuple(part.criterion for part in self.parts)

    @field_validator("parts")
    @classmethod
    def _several_parts(cls, parts: tuple[Part, ...]) -> tuple[Part, ...]:
        names = [part.name for part in parts]
        if len(parts) < 2:
            raise ValueError(f"{len(parts)} given: a claim of one part has a criterion instead, parts are at least two")
        if len(set(names)) < len(names):
            raise ValueError(f"names used twice: {sorted({name for name in names if names.count(name) > 1})}")
        return parts

    @model_validator(mode="after")
    def _one_way_to_be_judged(self) -> Claim:
        given = [name for name in ("criterion", "parts", "undecidable") if getattr(self, name)]
        if self.kind == "setting":
            if given or self.central:
                extra = ", ".join([*given, *["central"] * self.central])
                raise ValueError(f"kind setting is not judged: remove {extra}")
        elif len(given) != 1:
            raise ValueError(
                f"expected exactly one of criterion, parts, undecidable (kind {self.kind}); "
                f"got {' and '.join(given) or 'none'}"
            )
        if self.kind == "identity" and self.parts:
            raise ValueError("an identity has one criterion, which every case satisfies or not: remove parts")
        if self.kind == "result" and self.criteria and self.needs is None:
            raise ValueError("needs is missing: {data: […], profile: …, images: …}, the least that can decide")
        return self

    @model_validator(mode="after")
    def _whose(self) -> Claim:
        if (self.origin == "book") != (self.provenance == "own"):
            raise ValueError(
                f"provenance={self.provenance!r} with origin={self.origin!r}: own goes with origin book only"
            )
        return self

    @model_validator(mode="after")
    def _numbers_from_memory_decide_nothing(self) -> Claim:
        if self.provenance != "recalled":
            return self
        published, scale = self.published.value, 0.01 if self.published.percent else 1.0
        for criterion in self.criteria:
            bounds = [criterion.at_least, criterion.at_most, criterion.above]
            copied = isinstance(published, float) and any(
                b is not None and math.isclose(b, published * scale) for b in bounds
            )
            if copied or criterion.between is not None:
                raise ValueError(
                    "a recalled number cannot decide: measure the direction, or give undecidable with reason unreadable"
                )
        return self


class Paper(Strict):
    """A file of claims."""

    paper: str
    title: str
    finding: str = ""
    picture: str = ""
    sizes: dict[str, Any] = {}
    """Of the chapter's experiments: name -> its values in PROFILES, in their order."""
    measures: dict[str, Measure]
    claims: tuple[Claim, ...]

    @field_validator("sizes")
    @classmethod
    def _fixed(cls, sizes: dict[str, Any]) -> dict[str, Any]:
        def fixed(value: Any) -> Any:
            return tuple(map(fixed, value)) if isinstance(value, list) else value

        return {name: fixed(values) for name, values in sizes.items()}

    @field_validator("measures", mode="before")
    @classmethod
    def _sentences(cls, measures: Any) -> Any:
        if not isinstance(measures, dict):
            return measures
        return {name: {"says": told} if isinstance(told, str) else told for name, told in measures.items()}

    @field_validator("claims")
    @classmethod
    def _distinct(cls, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        ids = [claim.id for claim in claims]
        if twice := sorted({name for name in ids if ids.count(name) > 1}):
            raise ValueError(f"ids used twice: {twice}")
        return claims

    @model_validator(mode="after")
    def _readings(self) -> Paper:
        statements: dict[str, list[Claim]] = {}
        for claim in self.claims:
            if claim.reading is not None:
                statements.setdefault(claim.reading.of, []).append(claim)
        for name, claims in statements.items():
            ids = [claim.id for claim in claims]
            stated = [claim.id for claim in claims if claim.reading is not None and claim.reading.stated]
            if len(ids) < 2:
                raise ValueError(f"claim {ids[0]!r}: the only reading of {name!r}; readings are at least two")
            if len(stated) > 1:
                raise ValueError(f"readings of {name!r}: {stated} are stated, at most one is what the source says")
            if len({claim.origin for claim in claims}) > 1 or any(claim.kind == "setting" for claim in claims):
                raise ValueError(f"readings of {name!r}: {ids} differ in origin, or one of them is a setting")
        return self

    @model_validator(mode="after")
    def _declared(self) -> Paper:
        texts = {"finding": self.finding} | {f"claim {claim.id!r}: beside": claim.beside for claim in self.claims}
        for where, text in texts.items():
            if unknown := [name for name in _PLACES.findall(text) if name not in self.measures]:
                raise ValueError(
                    f"{where}: {{{unknown[0]}}} is not declared in measures; declared: {', '.join(self.measures)}"
                )
        for claim in self.claims:
            named = [("criterion", criterion.measure) for criterion in claim.criteria]
            named += [("gate", claim.gate.measure)] if claim.gate else []
            for key, measure in named:
                if measure not in self.measures:
                    raise ValueError(
                        f"claim {claim.id!r}: {key}.measure={measure!r} is not declared in measures; "
                        f"declared: {', '.join(self.measures)}"
                    )
        return self

    @model_validator(mode="after")
    def _open_either_way(self) -> Paper:
        """A share lies in [0, 1]: a bound that all of it, or nothing of it, satisfies is no criterion."""
        for claim in self.claims:
            for criterion in claim.criteria:
                if not (claim.published.percent and self.measures[criterion.measure].share):
                    continue
                if (ever := criterion.holds(0.0, 1.0)) is not None:
                    raise ValueError(
                        f"claim {claim.id!r}: criterion {criterion.words()!r} cannot {'fail' if ever else 'hold'}: "
                        f"{criterion.measure} is a share in [0, 1]"
                    )
        return self

    def percent(self, claim: Claim, criterion: Criterion) -> bool:
        """Whether a claim's numbers are told in per cent: as its paper prints them, and every share."""
        return claim.published.percent or self.measures[criterion.measure].share

    def criterion_words(self, claim: Claim) -> str:
        """A claim's criterion, or every part with its own, shares in per cent; "" without any."""
        words = [criterion.words(self.percent(claim, criterion)) for criterion in claim.criteria]
        names = [f"{part.name}: " for part in claim.parts] or [""] * len(words)
        return "; ".join(name + told for name, told in zip(names, words, strict=True))

    def found(self, measured: Mapping[str, float], undecided: Collection[str] = ()) -> str:
        """The finding with the measured values in their places; "" where a run did not measure one of them.

        undecided: ids of claims. A number has a mark, which the finding's end explains, where all claims that are
        judged by it are among them.
        """
        if not _PLACES.findall(self.finding) or not measured.keys() >= set(_PLACES.findall(self.finding)):
            return ""
        judged: dict[bool, set[str]] = {True: set(), False: set()}
        for claim in self.claims:
            judged[claim.id in undecided] |= {criterion.measure for criterion in claim.criteria}
        still_open = judged[True] - judged[False]

        def marked(place: re.Match[str]) -> str:
            return place[0] + ("*" if place[1] in still_open else "")

        text = re.sub(_PLACES.pattern + r"(?! \(not decided\))", marked, self.finding)
        return self.filled(text, measured) + (f" {OPEN_NUMBER}" if text != self.finding else "")

    def filled(self, text: str, measured: Mapping[str, Interval | float]) -> str:
        """A text with what was measured in the places of its {measures}: "61 % [50, 71]"; a dash where it was not.

        measured: name -> the interval that is told, or a value alone.
        Raises ValueError for a name that is no measure of this paper.
        """

        def told(place: re.Match[str]) -> str:
            if place[1] not in self.measures:
                raise ValueError(f"{{{place[1]}}} is no measure of claims/{self.paper}.yml")
            if place[1] not in measured:
                return "—"
            one, percent = measured[place[1]], self.measures[place[1]].percent
            if isinstance(one, Interval):
                return f"{number_words(one.value, percent)} {ends_words(one.low, one.high, percent)}"
            return number_words(one, percent)

        return _PLACES.sub(told, text).replace(" %", "\N{NO-BREAK SPACE}%")

    def claim(self, name: str) -> Claim:
        for claim in self.claims:
            if claim.id == name:
                return claim
        raise ValueError(f"unknown claim {name!r}; known: {', '.join(claim.id for claim in self.claims)}")


def check_central(paper: Paper) -> None:
    """Raise ValueError unless three to five claims of the paper are central; the readings of a statement are one."""
    central = [claim.id for claim in paper.claims if claim.central]
    statements = {claim.reading.of if claim.reading else f"claim {claim.id}" for claim in paper.claims if claim.central}
    if not 3 <= len(statements) <= 5:
        raise ValueError(
            f"claims/{paper.paper}.yml has {len(statements)} claims with `central: true`, expected three to five (the "
            f"readings of one statement are one): {', '.join(central) or 'none'}; give the line to each claim that the "
            "paper stands on"
        )


def load(path: str | os.PathLike) -> Paper:
    """Read and check a file of claims.

    Raises FileNotFoundError, and ValueError naming the file, the claim and the key for malformed YAML, unknown or
    missing keys, keys given twice, measures that are not declared, and criteria that cannot decide.

    >>> from reprolib import clone
    >>> from reprolib.book import claims
    >>> paper = claims.load(clone.repository() / "claims" / "idlg.yml")
    >>> paper.title
    'iDLG: Improved Deep Leakage from Gradients'
    >>> paper.claim("i6-certain").kind
    'identity'
    """
    path = Path(path)
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (
        yaml.YAMLError,
        RecursionError,
        ValueError,
    ) as error:  # ValueError: a date that is none, bytes that are no text
        raise ValueError(f"{path.name} is not valid YAML: {error}") from error
    if not isinstance(document, dict):
        raise ValueError(f"{path.name}: expected the keys {', '.join(Paper.model_fields)} at the top")
    try:
        return Paper.model_validate(document)
    except ValidationError as error:
        faults = "\n".join(f"  {_explain(fault, document)}" for fault in error.errors())
        raise ValueError(f"{path.name} holds no valid claims:\n{faults}") from error


class _Loader(yaml.SafeLoader):
    """The safe loader with two changes.

    It refuses a key given twice: YAML keeps the last one silently, and with it another criterion. And only true and
    false are truth values, as in YAML 1.2: PyYAML follows 1.1, where the key `on` is one too.
    """

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := [key for i, key in enumerate(keys) if key in keys[:i]]:
            raise yaml.constructor.ConstructorError(None, None, f"key {twice[0]!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$", re.IGNORECASE), list("tTfF"))

_MODELS: dict[str, type[Strict]] = {
    "measures": Measure,
    "on": Conditions,
    "claims": Claim,
    "published": Published,
    "setting": Setting,
    "needs": Needs,
    "gate": Gate,
    "criterion": Criterion,
    "parts": Part,
    "undecidable": Undecidable,
    "reading": Reading,
    "changed": Changed,
}


def _explain(fault: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    """A fault found by pydantic, in the terms of the file."""
    place: list[str] = []
    for step in fault["loc"]:
        if isinstance(step, int) and place == ["claims"]:
            entry = document["claims"][step]
            name = entry.get("id", f"number {step + 1}") if isinstance(entry, dict) else f"number {step + 1}"
            place = [f"claim {name!r}"]
        else:
            place.append(f"number {step + 1}" if isinstance(step, int) else step)
    parents = [step for step in fault["loc"][:-1] if step in _MODELS]
    model = _MODELS[parents[-1]] if parents else Paper
    where = ", ".join(place) or "file"
    if fault["type"] == "extra_forbidden":
        return f"{where}: unknown key; known: {', '.join(model.model_fields)}"
    if fault["type"] == "missing":
        return f"{where}: missing"
    if fault["type"] == "model_type" and fault["loc"][-1] in _MODELS:
        keys = ", ".join(_MODELS[fault["loc"][-1]].model_fields)
        return f"{where}: expected the keys {keys} (got {str(fault['input'])[:80]!r})"
    return f"{where}: {fault['msg'].removeprefix('Value error, ')} (got {str(fault['input'])[:80]!r})"
