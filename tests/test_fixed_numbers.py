"""Numbers that tiny fixed problems come to, kept in `fixed_numbers.json`: a silent change of the library shows here.

They say that nothing changed, not that it is right: the other tests say that. The cases stand in `fixed_*.py`, by
subject. Each computes something in float64, under fixed seeds, for a few iterations, and is reduced to a few numbers by
which no change goes unnoticed (`fixed.small`).

`python tests/test_fixed_numbers.py` writes the file anew, with NAME behind it only what cases with NAME in theirs say.
Do that for a change of the library that is meant to change numbers, after a look at which ones it changed, and give its
reason in the commit. A case that is new, or measures something else, is written too. Never to make a test pass.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import torch
from fixed import CASES, Small, differences

from reprolib import attacks, defenses, models, servers
from reprolib.attacks import labels
from reprolib.federated import server
from reprolib.measure import intervals, metrics, pairing, registration

HERE = Path(__file__).parent
FILE = HERE / "fixed_numbers.json"
MODULES = [importlib.import_module(path.stem) for path in sorted(HERE.glob("fixed_*.py"))]

MACHINERY = {"Attack", "History", "Reconstruction", "Defense"}
"""Public names that compute nothing: protocols and results."""


@cache
def kept() -> dict[str, Small]:
    return json.loads(FILE.read_text()) if FILE.is_file() else {}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Tiny problems lose more by sharing them out than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_a_number_is_what_it_was(name: str) -> None:
    numbers = kept()
    assert name in numbers, f"{name}: no numbers are kept; write them: python tests/test_fixed_numbers.py '{name}'"
    different = list(differences(CASES[name].numbers(), numbers[name], CASES[name].rtol))
    assert not different, f"{name}: {len(different)} numbers changed:\n" + "\n".join(different[:20])


def test_no_number_is_kept_of_a_case_that_is_gone() -> None:
    assert not kept().keys() - CASES.keys()


def functions_of(module: ModuleType) -> set[str]:
    """The public functions and classes that a module itself defines."""
    members = inspect.getmembers(module, lambda member: inspect.isfunction(member) or inspect.isclass(member))
    return {name for name, member in members if member.__module__ == module.__name__ and name[0] != "_"}


PUBLIC = {
    "attacks": set(attacks.__all__),
    "defenses": set(defenses.__all__),
    "victims": set(models.ARCHITECTURES),
    "generators": set(models.GENERATORS),
    "label rules": {*labels.RULES, *labels.COUNT_RULES},
    "servers": {*servers.__all__, "Honest", *functions_of(server)} - {"Server", "Round"},
    "metrics": functions_of(metrics),
    "intervals": functions_of(intervals) - {"Interval"},
    "pairing": functions_of(pairing),
    "registration": functions_of(registration),
}


@pytest.mark.parametrize("kind", PUBLIC)
def test_every_public_name_stands_in_a_case(kind: str) -> None:
    said = set(" ".join(CASES).split())
    for module in MODULES:
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.Attribute):
                said.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                said.add(node.id)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                said.add(node.value)
    missing = PUBLIC[kind] - MACHINERY - said
    assert not missing, f"no case in tests/fixed_*.py has {sorted(missing)} ({kind}): add one"


if __name__ == "__main__":
    torch.set_num_threads(1)
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    before = kept()
    found = {
        name: own.numbers() if wanted in name or name not in before else before[name] for name, own in CASES.items()
    }
    for name, numbers in found.items():
        if name in before and (changed := list(differences(numbers, before[name], CASES[name].rtol))):
            print(f"{name}: {len(changed)} numbers changed, such as {changed[0]}")
    lines = [f"{json.dumps(name)}: {json.dumps(numbers)}" for name, numbers in found.items()]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
