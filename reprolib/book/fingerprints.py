"""The fingerprint of the code that a part runs: the notebook's own, and all of the library that it can reach."""

from __future__ import annotations

import dataclasses
import hashlib
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from reprolib import data
from reprolib.book import own_code, sources
from reprolib.book.recorded_set import RecordedSet


def code_fingerprint(function: Callable[..., Any], inputs: Mapping[str, Any]) -> str:
    """16 hex digits over what a part runs, without comments, docstrings and annotations.

    It is everything of reprolib that `function` and the classes of its inputs can reach, definition by definition, as
    far as it measures: what only shows what was measured does not count, nor does the file that a definition stands in
    (`sources.reached`). Of a notebook's own function or class it is its source, and what that reaches.
    """
    own, roots, called = _begins(function, inputs)
    return hashlib.sha256("\0".join(sorted(own | sources.texts(roots, called))).encode()).hexdigest()[:16]


def _begins(function: Callable[..., Any], inputs: Mapping[str, Any]) -> tuple[set[str], set[sources.Place], set[str]]:
    """Where a part begins: sources of the notebook's own, places in the library, and names that it may look up."""
    texts, roots, called, seen, ahead = set(), set(), set(), set(), [*_things(function), *_things(inputs)]
    while ahead:
        thing = ahead.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, str):
            called.add(thing)
            continue
        origin = own_code.origin(thing.__name__ if isinstance(thing, types.ModuleType) else thing.__module__)
        if origin == "library":
            roots |= set(_places(thing))
        elif origin == "own" and isinstance(thing, types.ModuleType):
            texts.add(own_code.source_of_file(thing))
        elif origin == "own" and isinstance(thing, types.FunctionType):
            texts.add(own_code.source_of_function(thing, thing.__qualname__))
            for code in own_code.codes_of(thing):
                ahead += [name for name in (*code.co_names, *code.co_consts) if isinstance(name, str)]
            for _, attribute, value in own_code.globals_of(thing):  # of a module what is taken from it, not all of it
                ahead += _things(getattr(value, attribute, value) if isinstance(value, types.ModuleType) else value)
            ahead += _things([own_code.closure_of(thing), own_code.defaults_of(thing)])
        elif origin == "own":
            ahead += _things(own_code.members(thing))
            ahead += [base for base in thing.__mro__ if own_code.origin(base.__module__) == "library"]
    return texts, roots, called


def _places(thing: Any) -> Iterator[sources.Place]:
    """Where a module, class or function of the library is defined; its whole module if that cannot be told."""
    if isinstance(thing, types.ModuleType):
        yield thing.__name__, sources.WHOLE
        return
    outer, _, inner = thing.__qualname__.partition(".<locals>")[0].partition(".")
    places = [(thing.__module__, outer)] + ([(thing.__module__, f"{outer}.{inner}")] if inner else [])
    known = [place for place in places if sources.defines(place)]
    yield from known or [(thing.__module__, sources.WHOLE)]


def _things(value: Any) -> Iterator[Any]:
    """The classes, functions and modules that a part's inputs bring with them, and their texts, which may name some."""
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _things(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _things(item)
    elif isinstance(value, types.FunctionType):
        yield own_code.unwrapped(value)
    elif isinstance(value, str | type | types.ModuleType):
        yield value
    elif isinstance(value, nn.Module):
        yield from dict.fromkeys(type(module) for module in value.modules())
        yield from _things(
            [held for one in value.modules() for held in vars(one).values() if dataclasses.is_dataclass(held)]
        )
    elif isinstance(value, RecordedSet | data.ImageSet):
        yield data.ImageSet  # which a record stands for
    elif isinstance(value, types.SimpleNamespace):
        yield from _things(vars(value))
    elif dataclasses.is_dataclass(value):
        yield type(value)
        for field in dataclasses.fields(value):
            yield from _things(getattr(value, field.name))
