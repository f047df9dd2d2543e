"""The rooms of the library: arrows between them point one way, and no two files import each other."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from reprolib.book.pages import AROUND

ROOT = Path(__file__).resolve().parent.parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "reprolib").rglob("*.py")
}
PLUMBING = {"atomic", "clone", "settings"}
BELOW = {
    "data": set(),
    "models": set(),
    "optimizers": set(),
    "measure": {"data"},
    "federated": {"models"},
    "defenses": {"data", "models", "federated"},
    "servers": {"data", "models", "federated"},
    "attacks": {"data", "models", "optimizers", "measure", "federated"},
    "book": {"data", "models", "measure", "federated"},
    "experiments": {"data", "models", "optimizers", "measure", "federated", "defenses", "servers", "attacks", "book"},
    "__main__": {"cli"},
    "cli": {"data", "models", "federated", "attacks", "book", "experiments"},
    "atomic": set(),
    "clone": set(),
    "settings": set(),
}
"""Room -> the rooms that it may import, besides PLUMBING; the developer guide says why."""

LONG = {
    "experiments.training.train": "one loop over epochs, whose steps share its state",
    "federated.client.share": "the protocol, step by step in the order in which a client takes them",
    "measure.metrics.score": "a table with a column for each measure",
    "models.adapt._last_layer": "a list of refusals, each with what to do",
}
"""Functions whose body has more than 60 lines, and why they are not cut."""


def imported(module: str) -> set[str]:
    """The modules that one imports anywhere: in a function, for types alone."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "reprolib":
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in MODULES}
    return found - {module, "reprolib"}


def room(module: str) -> str:
    return module.split(".")[1]


def test_no_file_imports_another_that_imports_it():
    try:
        order = list(TopologicalSorter({module: imported(module) for module in MODULES}).static_order())
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")
    assert set(order) == set(MODULES)


def test_no_chapter_reaches_what_runs_and_shows_it_from_outside():
    seen, ahead = set(), ["reprolib.book.chapter", "reprolib.book.figures", "reprolib.experiments"]
    while ahead:
        if (module := ahead.pop()) not in seen:
            seen.add(module)
            ahead += imported(module)
    assert not seen & {f"reprolib.book.{name}" for name in AROUND}, "a change there leaves pages as they are"


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"reprolib"}))
def test_a_file_imports_from_the_rooms_below_its_own(module):
    own = room(module)
    above = {other for other in imported(module) if room(other) not in BELOW[own] | PLUMBING | {own}}
    assert above == set()


@pytest.mark.parametrize("name", sorted(set(BELOW) - PLUMBING - {"__main__", "cli"}))
def test_a_room_says_what_it_holds_and_what_it_never_does(name):
    said = ast.get_docstring(ast.parse((ROOT / "reprolib" / name / "__init__.py").read_text(encoding="utf-8")))
    assert said and len(said) > 60


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_file_and_its_functions_can_be_held_in_mind(module):
    text = MODULES[module].read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 450
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    long = {node.name for node in functions if node.end_lineno - node.body[0].lineno + 1 > 60}
    assert {f"{module.removeprefix('reprolib.')}.{name}" for name in long} <= LONG.keys()
