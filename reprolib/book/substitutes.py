"""Where a measure was taken on something else than the paper's own setting: its images, or one of the conditions."""

from __future__ import annotations

from typing import Any

from reprolib.book.claims import Claim
from reprolib.book.criteria import Measure
from reprolib.book.measured import Record
from reprolib.book.verdicts import Substitute


def substitutes_of(claim: Claim, record: Record, measure: Measure) -> list[Substitute]:
    """Where the record's images and conditions are not among the paper's own.

    A condition that neither the record nor the measure names is one too, because nothing shows that it is the paper's;
    the attacker alone is compared only where one is named.
    """
    here = measure.on.model_dump(exclude_none=True) | dict(record.conditions)
    here |= {"data": record.data} if record.data is not None else {}
    found = []
    for what, own in claim.setting:
        if own is None or (what == "attacker" and what not in here):
            continue
        if what not in here:
            found.append(Substitute(what=what, paper=_own_words(what, own), here="not recorded"))
        elif not any(_same(what, here[what], one) for one in own):
            found.append(Substitute(what=what, paper=_own_words(what, own), here=_text(here[what])))
    return found


def _same(what: str, here: Any, own: Any) -> bool:
    """Whether a condition is the paper's; a budget is with as much or more of the same unit ("300 outer steps")."""
    if what == "budget":
        (many, unit), (least, own_unit) = _amount(here), _amount(own)
        if many is not None and least is not None:
            return many >= least and own_unit in ("", unit)
    return _text(here).casefold() == _text(own).casefold()


def _amount(budget: Any) -> tuple[float | None, str]:
    """A budget's number and the words behind it; None where it begins with none."""
    first, _, unit = _text(budget).casefold().partition(" ")
    try:
        return float(first.replace(",", "")), unit
    except ValueError:
        return None, ""


def _text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return " ".join(str(value).split())


def _own_words(what: str, own: tuple[Any, ...]) -> str:
    least = what == "budget"
    return " or ".join(f"at least {_text(v)}" if least and not isinstance(v, str) else _text(v) for v in own)
