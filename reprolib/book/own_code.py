"""The code that a notebook defines itself: its functions and classes, their sources, and what they read."""

from __future__ import annotations

import contextlib
import dis
import inspect
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reprolib.book import sources


def origin(module: str | None) -> str:
    """Whose code a module is: "library" (reprolib), "package" (installed) or "own" (a notebook, a file beside it)."""
    top = (module or "").partition(".")[0]
    if top == "reprolib":
        return "library"
    file = Path(getattr(sys.modules.get(top), "__file__", None) or "")
    installed = top in sys.stdlib_module_names or {"site-packages", "dist-packages"} & set(file.parts)
    return "package" if installed or not top else "own"


def unwrapped(function: types.FunctionType) -> types.FunctionType:
    """The function below the decorators of installed packages, such as `torch.no_grad`."""
    while hasattr(function, "__wrapped__") and origin(function.__globals__.get("__name__")) == "package":
        function = function.__wrapped__
    return function


def source_of_function(function: types.FunctionType, where: str) -> str:
    try:
        return sources.without_prose(inspect.getsource(function))
    except (OSError, TypeError) as error:
        raise ValueError(f"{where} is a function without source: define it in a cell or in a file") from error


def source_of_file(module: types.ModuleType) -> str:
    file = getattr(module, "__file__", None)
    return sources.without_prose(Path(file).read_text(encoding="utf-8")) if file else ""


def codes_of(function: types.FunctionType) -> Iterator[types.CodeType]:
    """The code of a function and of those that it defines inside."""
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
        yield code


def globals_of(function: types.FunctionType) -> Iterator[tuple[str, str, Any]]:
    """The values of earlier cells that a function reads: name, the attribute that is taken of it or "", value."""
    for code in codes_of(function):
        steps = [step for step in dis.get_instructions(code) if step.opname != "EXTENDED_ARG"]
        for step, after in zip(steps, [*steps[1:], None], strict=True):
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME") and step.argval in function.__globals__:
                taken = after.argval if after and after.opname in ("LOAD_ATTR", "LOAD_METHOD") else ""
                yield step.argval, taken, function.__globals__[step.argval]


def closure_of(function: types.FunctionType) -> dict[str, Any]:
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # an empty cell: the name is not bound yet
            found[name] = cell.cell_contents
    return found


def defaults_of(function: types.FunctionType) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {f"{one.name}=": one.default for one in parameters if one.default is not one.empty}


def members(kind: type) -> dict[str, Any]:
    """What a notebook's class and the notebook's classes below it define: functions, and values with public names."""
    found: dict[str, Any] = {"bases": [base.__name__ for base in kind.__mro__[1:]]}
    for base in reversed([base for base in kind.__mro__ if origin(base.__module__) == "own"]):
        for name, item in vars(base).items():
            for inner in ("__func__", "fget", "func"):  # of static and class methods, properties, cached properties
                item = getattr(item, inner, None) or item
            if isinstance(item, types.FunctionType):
                if not unwrapped(item).__code__.co_filename.startswith("<string>"):  # what a dataclass generates
                    found[name] = item
            elif not name.startswith("_") and not isinstance(item, types.MemberDescriptorType):
                found[name] = item
    return found
