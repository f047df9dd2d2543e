"""Records of parts: what tells inputs and code apart, what a file gives back, and what a comparison finds."""

import ast
import dataclasses
import functools
import hashlib
import importlib.util
import json
import math
import re
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import pandas as frames
from torch import nn

from reprolib import attacks, data, defenses, experiments, models
from reprolib.book import comparison, description, fingerprints, packing, recorded_set, records, results, sources
from reprolib.experiments import utility
from reprolib.federated import client
from reprolib.federated.threat import ThreatModel

LEVEL, CPU = 2, torch.device("cpu")


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", count=40)


def describe(value):
    return description.describe(value, "inputs['x']")


# --- what a part was given


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float
    device: torch.device = CPU


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner
    names: tuple[str, ...] = ()


class Doubles:
    """Not a dataclass: only its class can be identified."""

    factor = 2

    def __call__(self, x):
        return self.factor * x


SAME = {
    "a list and a tuple": ([1, 2, 3], (1, 2, 3)),
    "a range": (range(3), [0, 1, 2]),
    "a number of NumPy": (np.float64(0.5), 0.5),
    "a whole number of NumPy": (np.int32(3), 3),
    "a truth of NumPy": (np.bool_(True), True),
    "a narrow float": (np.float32(0.5), 0.5),
    "keys in another order": ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    "a tensor and its copy": (torch.arange(4.0), torch.arange(4.0).clone()),
    "a tensor and an array": (torch.arange(4.0), np.arange(4, dtype=np.float32)),
    "a view": (torch.arange(12.0).view(3, 4).T, torch.arange(12.0).view(3, 4).T.contiguous()),
    "gradients": (torch.ones(2, requires_grad=True), torch.ones(2)),
    "nested dataclasses on two devices": (Outer(Inner(0.1)), Outer(Inner(0.1, torch.device("cuda")))),
    "an attack built twice": (attacks.DLG.stable(), attacks.DLG.stable()),
    "a defense of defenses": (
        defenses.Compose([defenses.TopK(0.9), defenses.GaussianNoise(0.1)]),
        defenses.Compose([defenses.TopK(0.9), defenses.GaussianNoise(0.1)]),
    ),
    "settings": (types.SimpleNamespace(a=1), {"a": 1}),
    "a table": (pd.DataFrame({"a": [1.5]}), pd.DataFrame({"a": [1.5]})),
    "an array of objects": (np.array([1, "a", None], dtype=object), [1, "a", None]),
}


@pytest.mark.parametrize("pair", SAME.values(), ids=SAME)
def test_equal_content_gives_equal_text(pair):
    one, other = map(describe, pair)
    assert json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert "reprolib" not in json.dumps(one) and "torch." not in json.dumps(one), "names, and no modules' paths"


OTHER = {
    "numbers": (1, 2),
    "a whole number and a fraction": (1, 1.0),
    "a truth and a number": (True, 1),
    "a text and a number": ("1", 1),
    "none and nothing": (None, ""),
    "infinite and not a number": (math.inf, math.nan),
    "the sign of an infinite number": (math.inf, -math.inf),
    "tensors": (torch.zeros(3), torch.tensor([0.0, 0.0, 1e-30])),
    "shapes": (torch.zeros(2, 3), torch.zeros(3, 2)),
    "types": (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
    "half precisions": (torch.ones(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.float16)),
    "arrays of objects": (np.array([1, "a"], dtype=object), np.array([1, "b"], dtype=object)),
    "tables' numbers": (pd.DataFrame({"a": [1]}), pd.DataFrame({"a": [2]})),
    "tables' types": (pd.DataFrame({"a": [1]}), pd.DataFrame({"a": ["1"]})),
    "tables' missing values": (pd.DataFrame({"a": [None, "b"]}), pd.DataFrame({"a": ["", "b"]})),
    "tables' index": (pd.DataFrame({"a": [1]}), pd.DataFrame({"a": [1]}, index=[7])),
    "tables' columns": (pd.DataFrame({"a": [1]}), pd.DataFrame({"b": [1]})),
    "a field of a dataclass in a dataclass": (Outer(Inner(0.1)), Outer(Inner(0.2))),
    "a preset": (attacks.DLG.stable(), attacks.DLG.official()),
    "the order of defenses": (
        defenses.Compose([defenses.TopK(0.9), defenses.GaussianNoise(0.1)]),
        defenses.Compose([defenses.GaussianNoise(0.1), defenses.TopK(0.9)]),
    ),
    "two classes": (defenses.MixUp, defenses.IntraInstaHide),
    "a class and its name": (defenses.MixUp, "MixUp"),
    "functions of the library": (experiments.read_labels, experiments.count_labels),
    "weights": (models.build("lenet", 10, (1, 8, 8), 0), models.build("lenet", 10, (1, 8, 8), 1)),
    "activations over equal weights": tuple(
        models.build("lenet", 10, (1, 8, 8), 0, activation=name, init="default") for name in ("relu", "sigmoid")
    ),
    "strides over equal weights": tuple(models.drawn(lambda s=s: nn.Conv2d(1, 1, 3, stride=s), 0) for s in (1, 2)),
}


@pytest.mark.parametrize("pair", OTHER.values(), ids=OTHER)
def test_other_content_gives_another_text(pair):
    one, other = map(describe, pair)
    assert json.dumps(one, sort_keys=True) != json.dumps(other, sort_keys=True)


def test_a_description_is_json_that_reads_back_as_it_is(digits):
    value = {"x": math.inf, "n": np.int64(3), "model": models.build("lenet", 10, (1, 8, 8), 0), "images": digits}
    found = describe(value)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["x"] == {"$number": "inf"} and found["n"] == 3
    assert found["model"].keys() == {"$model", "fingerprint", "layers"} and found["model"]["$model"] == "LeNet"
    assert found["images"] == {
        "$images": "digits",
        "split": "test",
        "count": 40,
        "fingerprint": digits.fingerprint,
    }


CHANGES = {
    "by its data": lambda layer: layer.weight.data.sub_(1.0),
    "by another name of its memory": lambda layer: layer.weight.detach().numpy().__setitem__(0, 0.5),
    "by a step": lambda layer: layer.weight.data.copy_(layer.weight + 1),
    "by a new parameter": lambda layer: setattr(layer, "weight", nn.Parameter(torch.ones(3, 4))),
    "by its state": lambda layer: layer.load_state_dict({"weight": torch.ones(3, 4), "bias": torch.ones(3)}),
    "in a buffer": lambda layer: layer.register_buffer("seen", torch.tensor(3)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_weights_that_were_changed_in_place_are_other_weights(change):
    layer = nn.Linear(4, 3)
    before = describe(layer)
    assert describe(layer) == before
    change(layer)
    assert describe(layer) != before and describe(layer)["fingerprint"] == models.fingerprint(layer)


def test_the_mode_of_a_model_does_not_count():
    model = models.build("lenet", 10, (1, 8, 8), 0)
    assert describe(model) == describe(model.train())


def test_image_sets_of_other_pixels_differ(digits):
    other = dataclasses.replace(digits, images=digits.images.flip(0))
    assert describe(digits) != describe(other) and describe(digits) == describe(data.load("digits", count=40))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (object(), r"inputs\['x'\] is a object, whose content cannot be identified"),
        ([1, {"a": {2}}], r"inputs\['x'\]\[1\]\['a'\] is a set"),
        (Outer(Inner(b"x")), r"inputs\['x'\]\['inner'\]\['rate'\] is a bytes"),
        (Path("."), r"inputs\['x'\] is a \w*Path"),
        (np.datetime64("2026-01-01"), r"inputs\['x'\] is a datetime64"),
        (1j, r"inputs\['x'\] is a complex"),
        (functools.partial(print), r"inputs\['x'\] is a partial"),
        (torch.Generator(), r"inputs\['x'\] is a Generator"),
        (pd.DataFrame({"a": [pd.Timestamp(0)]}), r"inputs\['x'\] is a table whose content cannot be identified"),
        ({1: "a", "1": "b"}, r"inputs\['x'\] has keys that are equal as text among \[1, '1'\]: name them apart"),
    ],
)
def test_what_cannot_be_identified_is_named(value, message):
    with pytest.raises(ValueError, match=message):
        describe(value)


def test_a_function_without_source_is_named():
    scope = {}
    exec("def made(): return 1", scope)
    scope["made"].__module__ = __name__
    with pytest.raises(ValueError, match=r"inputs\['x'\] is a function without source: define it in a cell"):
        describe(scope["made"])


# a notebook's functions and classes: these tests' own module stands for the notebook


def written(folder, text, name="toy_cells"):
    """A module of these lines, as if they were a notebook's cells."""
    path = folder / f"{name}{hashlib.sha256(text.encode()).hexdigest()[:8]}.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


CELLS = '''
import torch
from reprolib import attacks, defenses

LEVEL = 0.5
TABLE = {"a": [1, 2]}


def helper(x):
    return LEVEL * x


def run(images, count=LEVEL, *, attack=None):
    """Not read."""
    # nor this
    for image in images:
        total = helper(image)
        print(total)
    return defenses.TopK(TABLE["a"][0])


class Attack:
    """Of the notebook."""

    steps = 3

    def step(self, x):
        return x + 1

    @property
    def twice(self):
        return helper(2)


class Better(Attack):
    pass
'''

PROSE = {
    "a docstring": ('"""Not read."""', '"""Read\n    by nobody."""'),
    "a comment": ("# nor this", "# nor this either"),
    "blank lines": ("    for image", "\n\n    for image"),
    "a class's docstring": ('"""Of the notebook."""', '"""Of a book."""'),
    "line breaks in brackets": ("helper(image)", "helper(\n            image\n        )"),
    "a function that nothing reads": ("class Attack", "def other():\n    pass\n\n\nclass Attack"),
}
CONTENT = {
    "a value that it reads": ("LEVEL = 0.5", "LEVEL = 0.6"),
    "a value inside a value": ("[1, 2]", "[3, 2]"),
    "a line of it": ("total = helper(image)", "total = helper(image) + 1"),
    "a line that leaves a loop": ("        print(total)", "    print(total)"),
    "a function that it calls": ("return LEVEL * x", "return LEVEL + x"),
    "blanks in a text": ('TABLE["a"]', 'TABLE["a" ""]'),
}


@pytest.mark.parametrize("edit", PROSE.values(), ids=PROSE)
def test_an_edit_of_prose_leaves_a_notebooks_function_equal(tmp_path, edit):
    one, other = (written(tmp_path, text) for text in (CELLS, CELLS.replace(*edit)))
    assert describe(one.run) == describe(other.run) and describe(one.Better) == describe(other.Better)
    assert fingerprints.code_fingerprint(one.run, {}) == fingerprints.code_fingerprint(other.run, {})


@pytest.mark.parametrize("edit", CONTENT.values(), ids=CONTENT)
def test_an_edit_of_what_a_notebooks_function_does_or_reads_is_seen(tmp_path, edit):
    assert edit[0] in CELLS
    one, other = (written(tmp_path, text) for text in (CELLS, CELLS.replace(*edit)))
    assert describe(one.run) != describe(other.run)


@pytest.mark.parametrize(
    "edit", [("steps = 3", "steps = 4"), ("return x + 1", "return x + 2"), ("helper(2)", "helper(3)"), ("0.5", "0.6")]
)
def test_an_edit_of_a_notebooks_class_is_seen(tmp_path, edit):
    one, other = (written(tmp_path, text) for text in (CELLS, CELLS.replace(*edit)))
    assert describe(one.Better) != describe(other.Better)
    if "return" in edit[0]:
        assert fingerprints.code_fingerprint(one.Better, {}) != fingerprints.code_fingerprint(other.Better, {})


def test_a_default_counts_by_its_value(tmp_path):
    text = "N = {}\n\n\ndef run(count=N):\n    return count\n"
    one, other = (written(tmp_path, text.format(n)) for n in (1, 2))
    assert one.run.__code__.co_code == other.run.__code__.co_code and describe(one.run) != describe(other.run)


def test_the_functions_of_a_dataclass_and_of_a_layer_of_the_notebook_count(tmp_path):
    text = """
import dataclasses
from torch import nn


@dataclasses.dataclass(frozen=True)
class Attack:
    rate: float

    def __call__(self, x):
        return self.rate * x


class Layer(nn.Module):
    def forward(self, x):
        return x * 1
"""
    one, other = (written(tmp_path, t) for t in (text, text.replace("rate * x", "rate + x").replace("x * 1", "x * 2")))
    assert describe(one.Attack(0.5)) == describe(one.Attack(0.5)) != describe(one.Attack(0.6))
    assert describe(one.Attack(0.5)) != describe(other.Attack(0.5))
    assert describe(one.Layer()) != describe(other.Layer())
    for name, made in (("Attack", lambda m: m.Attack(0.5)), ("Layer", lambda m: m.Layer())):
        prints = [fingerprints.code_fingerprint(print_nothing, {"x": made(module)}) for module in (one, other)]
        assert prints[0] != prints[1], name


def print_nothing(x):
    return x


def test_a_file_beside_the_notebook_counts_by_its_source(tmp_path):
    one, other = (written(tmp_path, f"def f():\n    return {n}\n", "toy_file") for n in (1, 2))
    readers = [
        written(tmp_path, f"import {module.__name__} as mine\ndef run():\n    return mine.f()\n")
        for module in (one, other)
    ]
    found = [describe(reader.run)["reads"]["mine"] for reader in readers]
    assert found[0]["source"] != found[1]["source"]
    assert len({fingerprints.code_fingerprint(reader.run, {}) for reader in readers}) == 2


def test_lambdas_and_decorated_functions_can_be_described():
    table = {
        "one": lambda x: x + LEVEL,
        "two": lambda x: x - LEVEL,
    }
    one, two = (describe(function) for function in table.values())
    assert one != two and one["reads"] == {"LEVEL": 2}
    assert "lambda x: x + LEVEL" in one["source"], "a line that is no whole statement"

    @torch.no_grad()
    def quiet(x):
        return x * LEVEL

    assert describe(quiet)["reads"] == {"LEVEL": 2}


def test_an_installed_function_counts_by_its_name_and_a_recursive_one_ends():
    def recursive(n):
        return recursive(n - 1) if n else F.relu(torch.zeros(1))

    assert describe(F.relu) == {"$function": "relu"}
    assert describe(recursive)["reads"]["recursive"] == {"$function": describe(recursive)["$function"]}


def test_a_closure_of_the_library_counts_by_what_it_holds():
    def made(value):
        def inner():
            return value

        inner.__module__ = "reprolib.toy"
        return inner

    assert describe(made(1)) != describe(made(2)) and "source" not in describe(made(1))


def test_the_function_of_an_object_is_not_taken_for_its_class():
    with pytest.raises(ValueError, match="is a Doubles, whose content cannot be identified"):
        describe(Doubles())


# --- what code a part ran


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the library whose sources may be edited: `edit(file, old, new)`."""
    copy = tmp_path / "reprolib"
    shutil.copytree(sources.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__", "templates"))

    def forget():
        for cached in (sources.file_of, sources._text_of, sources._home):
            cached.cache_clear()

    def edit(name, old, new):
        path = copy / name
        text = path.read_text()
        assert old in text, name
        path.write_text(text.replace(old, new, 1))
        forget()

    monkeypatch.setattr(sources, "PACKAGE", copy)
    forget()
    yield edit
    forget()


def _code(**inputs):
    return fingerprints.code_fingerprint(experiments.attack_trials, {"attack": attacks.DLG.stable()} | inputs)


ADDED = "\n\ndef _added():\n    return 1\n\n\n_ANOTHER = 1\n"


def _appended(edit, name):
    whole = (sources.PACKAGE / name).read_text()
    edit(name, whole, whole + ADDED)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("attacks.search", "SearchAttack.__call__"),
        ("attacks.search", "Search.matching"),
        ("attacks.dlg", "_Search.lowest"),
        ("optimizers.lbfgs", "BatchedLBFGS.step"),
        ("federated.client", "share"),
        ("experiments.networks", "attack_trials"),
        ("measure.metrics", "score"),
        ("federated.gradients", "worker"),
        ("models.lenet", "LeNet.forward"),
        ("data.imageset", "ImageSet.batches"),
    ],
)
def test_a_changed_line_in_a_function_that_a_part_reaches_changes_its_code(package, digits, module, name):
    def code():
        network = models.build("lenet", 10, (1, 8, 8), seed=0)
        return _code(images=digits, model=network)

    before, file = code(), f"{module.replace('.', '/')}.py"
    text = (sources.PACKAGE / file).read_text()
    kind, _, method = name.rpartition(".")
    nodes = [one for one in ast.walk(ast.parse(text)) if getattr(one, "name", "") == (kind or method)]
    inside = [one for one in nodes[0].body if getattr(one, "name", "") == method] if kind else nodes
    lines = text.splitlines(keepends=True)
    line = lines[inside[0].body[-1].lineno - 1]
    indent = line[: len(line) - len(line.lstrip())]
    lines.insert(inside[0].body[-1].lineno - 1, f"{indent}assert True\n")
    package(file, text, "".join(lines))
    assert code() != before
    package(file, "".join(lines), text)
    assert code() == before


@pytest.mark.parametrize(
    "name", ["attacks/dlg.py", "federated/client.py", "measure/metrics.py", "data/imageset.py", "book/chapter.py"]
)
def test_a_function_that_nothing_of_the_part_calls_leaves_the_code_equal(package, name):
    before = _code()
    _appended(package, name)
    assert _code() == before


@pytest.mark.parametrize(
    "name", ["book.chapter", "book.report", "book.ledger", "book.records", "measure.intervals", "cli"]
)
def test_what_only_shows_leads_nowhere(name):
    assert not any(module == f"reprolib.{name}" for module, _ in sources.reached([(f"reprolib.{name}", "*")]))


def test_a_change_in_a_module_that_nothing_of_the_part_imports_leaves_the_code_equal(package):
    before = fingerprints.code_fingerprint(utility.with_defense, {"defense": defenses.TopK(0.9)})
    (sources.PACKAGE / "attacks/ggl.py").write_text("")
    (sources.PACKAGE / "new_module.py").write_text("import torch\n")
    assert fingerprints.code_fingerprint(utility.with_defense, {"defense": defenses.TopK(0.9)}) == before


def test_prose_annotations_and_places_leave_the_code_equal(package):
    before = _code()
    package("attacks/dlg.py", '"""', '"""An edited sentence. ')
    package("optimizers/lbfgs.py", "import torch\n", "\n# a comment\nimport torch\n\n\n\n")
    package("measure/metrics.py", "images: Tensor", "images: Tensor | None")
    text = (sources.PACKAGE / "attacks/matching.py").read_text()
    (sources.PACKAGE / "moved.py").write_text(text)
    names = [node.name for node in ast.parse(text).body if hasattr(node, "name")]
    (sources.PACKAGE / "attacks/matching.py").write_text(f"from reprolib.moved import {', '.join(names)}\n")
    package("attacks/matching.py", "from", "from")
    assert _code() == before


def test_the_classes_of_inputs_bring_what_they_reach(package):
    def code():
        return _code(defense=defenses.Compose([defenses.SignCompression()]))

    before = code()
    package("defenses/soteria.py", "class Soteria", "class Soteria2")
    assert code() == before
    package("defenses/sign.py", ".sign()", ".sign() * 1")
    assert code() != before


def _reads_the_library(x):
    return attacks.DLG.stable()


def _reads_a_class(x, threat=ThreatModel):
    return client


def test_a_notebooks_function_brings_what_it_reads(package):
    def codes():
        return fingerprints.code_fingerprint(_reads_the_library, {}), fingerprints.code_fingerprint(_reads_a_class, {})

    before = codes()
    package("attacks/ggl.py", "class GGL", "class GGL2")
    package("attacks/dlg.py", "    def first_release(cls", "    def first_released(cls")
    assert codes() == before, "of a module what is taken from it, of a class what is called"
    package("attacks/dlg.py", "    def stable(cls) -> DLG:", "    def stable(cls, more=1) -> DLG:")
    changed = codes()
    assert changed[0] != before[0] and changed[1] == before[1]
    _appended(package, "federated/client.py")
    assert codes()[1] != before[1], "a module as a value is all that it defines"


def test_the_code_is_the_same_where_a_record_stands_for_the_images(digits):
    known = recorded_set.RecordedSet(recorded_set.known_of(digits), lambda: digits)
    assert fingerprints.code_fingerprint(print_nothing, {"x": [digits]}) == fingerprints.code_fingerprint(
        print_nothing, {"x": [known]}
    )


ODD = {
    "a function of nothing but its docstring": ('def f():\n    """doc"""\n', "def f ( ) :\n pass"),
    "on one line": ('def f(): "doc"\n', "def f ( ) : pass"),
    "and more on that line": ('def f(): "doc"; return 1\n', "def f ( ) : ; return 1"),
    "a function on one line": ("def f(): return 1  # so", "def f ( ) : return 1"),
    "a sign in a text": ('x = "# no comment"  # one', 'x = "# no comment"'),
    "a formatted text": ("x = f\"{a!r:>{b}} # {{}}\" f'{c}'", "x = f\"{a!r:>{b}} # {{}}\" f'{c}'"),
    "formatted over lines": ('x = f"""a\n  {b}\n"""', 'x = f"""a\n  {b}\n"""'),
    "decorators": ("@deco(1)\n@other\ndef f(): pass", "@ deco ( 1 )\n@ other\ndef f ( ) : pass"),
    "functions in functions": (
        'def f():\n    "a"\n    def g():\n        "b"\n        return 2\n    return g',
        "def f ( ) :\n def g ( ) :\n  return 2\n return g",
    ),
    "a class and its method": (
        'class A:\n    "doc"\n    x = 1\n    "of x"\n\n    def m(self):\n        "doc"\n',
        "class A :\n x = 1\n def m ( self ) :\n  pass",
    ),
    "beyond ASCII": ('"é"; x = "ü # ö"  # ä\n"""ß"""', 'x = "ü # ö"'),
    "beyond ASCII, later": ('x = "ü"; "é"; y = 1', 'x = "ü" ; ; y = 1'),
    "a method alone": (
        '    @deco\n    def m(self):\n        """doc\n    less"""\n        return """\n0"""',
        '@ deco\ndef m ( self ) :\n return """\n0"""',
    ),
    "brackets": ("x = (  # why\n    1 +\n    2\n)\n", "x = ( 1 + 2 )"),
    "a continued line": ("x = 1 \\\n    + 2", "x = 1 + 2"),
    "a text in brackets": ('("doc"\n "more")\nx = 1', "x = 1"),
    "blocks of a text": ('if a:\n  "x"\nelse:\n  b()', "if a :\n pass\nelse :\n b ( )"),
    "a text that is used": ('f("doc")\nx = "y"', 'f ( "doc" )\nx = "y"'),
    "no whole statement": ('    "a": lambda x:  x,  \n', '"a": lambda x:  x,'),
    "nothing": ("\n\n", ""),
}


@pytest.mark.parametrize(("source", "told"), ODD.values(), ids=ODD)
def test_prose_goes_out_of_odd_sources_and_nothing_else(source, told):
    assert sources.without_prose(source) == told


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("for x in y:\n    a()\n    b()\n", "for x in y:\n    a()\nb()\n"),
        ('x = "a  b"', 'x = "a b"'),
        ('x = """a\nb"""', 'x = """a\n\nb"""'),
        ("def f(): 'd'; return 1", "def f(): 'd'; return 2"),
        ("x = f'{a}'", "x = f'{b}'"),
        ("x = '#1'", "x = '#2'"),
        ("return_ = 1", "return_ = 1.0"),
    ],
)
def test_no_change_of_code_is_taken_for_prose(one, other):
    assert sources.without_prose(one) != sources.without_prose(other)


def test_every_source_of_the_library_stays_the_program_that_it_was():
    for path in sorted(sources.PACKAGE.rglob("*.py"))[::4]:
        told = sources.without_prose(path.read_text(encoding="utf-8"))
        assert sources.without_prose(told) == told, path.name
        compile(told, path.name, "exec")


# --- files


def record(value, **other):
    fields = {
        "paper": "toy",
        "name": "part",
        "function": {"$function": "f"},
        "inputs": {"trials": [0, 1], "rate": math.inf and 0.1},
        "seed": 1,
        "code": "0" * 16,
        "made": records.made(CPU, 1.25),
    }
    return records.Record(**fields | other, value=value)


def kept(tmp_path, value, pictures=None):
    records.save(tmp_path / "part.json", record(value), pictures)
    return records.load(tmp_path / "part.json").value


TABLES = {
    "fractions that are exact in 64 bits alone": {"x": [0.1, 1 / 3, 1e300, 5e-324, -0.0, 2.0**-200]},
    "fractions that 32 bits hold": {"x": np.array([0.5, 0.25, 1e10, 3.0])},
    "fractions of 32 bits": {"x": np.array([0.1, np.nan, np.inf, -np.inf], dtype=np.float32)},
    "fractions of 16 bits": {"x": np.array([0.1, np.nan], dtype=np.float16)},
    "what is not finite": {"x": [math.nan, math.inf, -math.inf, 0.0]},
    "whole numbers": {
        "a": [1, -(2**62)],
        "b": np.array([0, 255], dtype=np.uint8),
        "c": np.array([1, 2], dtype=np.int16),
    },
    "large positive numbers": {"a": np.array([2**64 - 1, 0], dtype=np.uint64), "b": np.array([7, 8], dtype=np.uint32)},
    "truths": {"x": [True, False, True]},
    "repeated values": {"x": [0.1] * 40, "n": [3] * 40, "b": [True] * 40, "z": [0.0, -0.0] * 20, "m": [math.nan] * 40},
    "texts": {"x": ["a", "é", ""] * 3},
    "texts with nothing among them": {"x": ["a", None, "b"]},
    "objects": {"x": pd.Series([None, 1, 2.5, "a", True, 1.0, False, 0], dtype=object)},
    "numbers and nothing": {"x": pd.Series([None, 1, 2], dtype=object)},
    "lists": {"x": [[1, 2], [], [0.5, math.inf]]},
    "numbers of NumPy among objects": {"x": pd.Series([np.int64(3), "a"], dtype=object)},
    "more than 255 texts": {"x": [f"text {i}" for i in range(300)]},
    "more than 255 numbers": {"x": np.arange(300), "y": np.arange(300) / 7},
    "columns in another order": {"z": [1], "a": [2], "m": [3]},
    "no rows": {
        "x": np.array([], dtype=np.float64),
        "s": pd.Series([], dtype=object),
        "n": np.array([], dtype=np.int64),
    },
    "no columns": {},
}


@pytest.mark.parametrize("columns", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("inside", [False, True], ids=["alone", "in a dictionary"])
def test_tables_come_back_with_their_types(tmp_path, columns, inside):
    table = pd.DataFrame(columns)
    found = kept(tmp_path, {"t": table} if inside else table)
    found = found["t"] if inside else found
    pd.testing.assert_frame_equal(found, table, check_exact=True)
    for column in table:
        if table[column].dtype == object:
            plain = [item.item() if isinstance(item, np.generic) else item for item in table[column]]
            assert [*map(type, found[column])] == [*map(type, plain)]
        elif table[column].dtype.kind == "f":
            assert np.array_equal(np.signbit(found[column]), np.signbit(table[column]))


def test_a_table_without_columns_keeps_its_rows(tmp_path):
    assert len(kept(tmp_path, pd.DataFrame(index=range(3)))) == 3


def test_an_index_is_not_kept(tmp_path):
    found = kept(tmp_path, pd.DataFrame({"x": [1, 2]}, index=[5, 7]))
    assert found.index.tolist() == [0, 1] and found["x"].tolist() == [1, 2]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    frames.data_frames(
        [
            frames.column("f", elements=st.floats(allow_nan=True, allow_infinity=True), dtype=np.float64),
            frames.column("g", elements=st.floats(width=32), dtype=np.float32),
            frames.column("i", elements=st.integers(-(2**63), 2**63 - 1), dtype=np.int64),
            frames.column("u", elements=st.integers(0, 255), dtype=np.uint8),
            frames.column("b", elements=st.booleans(), dtype=bool),
            frames.column(
                "o",
                elements=st.one_of(
                    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=3)
                ),
                dtype=object,
            ),
        ],
        index=frames.range_indexes(max_size=12),
    )
)
def test_any_table_comes_back(tmp_path, table):
    table = pd.concat([table] * 3, ignore_index=True)
    found = kept(tmp_path, table)
    assert found.dtypes.tolist() == table.dtypes.tolist() and list(found) == list(table)
    for column in table:
        assert [*map(repr, found[column].tolist())] == [*map(repr, table[column].tolist())]
    assert comparison.differences(found, table) == []


def test_tensors_come_back_exactly(tmp_path):
    value = {
        "half": torch.randn(3).half(),
        "brain": torch.randn(3).bfloat16(),
        "double": torch.randn(3, dtype=torch.float64),
        "whole": torch.arange(4),
        "truth": torch.tensor([True, False]),
        "none": torch.zeros(0, 3),
        "one": torch.tensor(3.0),
        "nan": torch.tensor([math.nan, math.inf]),
        "turned": torch.arange(6.0).view(2, 3).T,
        "__metadata__": torch.ones(1),
        "a/b": torch.ones(2),
    }
    found = kept(tmp_path, value)
    assert list(found) == list(value)
    for name, tensor in value.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name].nan_to_num(), tensor.nan_to_num()), name


def test_tensors_that_share_their_memory_can_be_kept(tmp_path):
    whole = torch.arange(10.0)
    found = kept(tmp_path, {"all": whole, "first": whole[:3], "again": whole})
    assert torch.equal(found["all"], whole) and torch.equal(found["first"], whole[:3]) and len(found["again"]) == 10
    assert (tmp_path / "part.safetensors").stat().st_size < 1000, "a part of a tensor takes its own bytes alone"


def test_names_that_would_meet_in_one_file_do_not(tmp_path):
    value = {
        "a": pd.DataFrame({"b/c": [1.5]}),
        "a/b": pd.DataFrame({"c": [2.5]}),
        "a/b/c": torch.tensor([3.5]),
        "d": {"e": torch.tensor([4.5])},
        "d/e": torch.tensor([5.5]),
    }
    found = kept(tmp_path, value)
    assert found["a"]["b/c"][0] == 1.5 and found["a/b"]["c"][0] == 2.5 and found["a/b/c"].item() == 3.5
    assert found["d"]["e"].item() == 4.5 and found["d/e"].item() == 5.5


def test_pictures_are_kept_in_8_bits_and_other_tensors_as_they_are(tmp_path):
    pictures = torch.rand(2, 5, 3, 4, 4)
    value = {
        "pictures": pictures,
        "grey": torch.rand(1, 4, 4, dtype=torch.float64),
        "beyond": pictures + 0.5,
        "channels": torch.rand(2, 2, 4, 4),
        "flat": torch.rand(3, 4),
    }
    found = kept(tmp_path, value)
    assert (found["pictures"] - pictures).abs().max() <= 0.5 / 255 + 1e-6 and found["grey"].dtype == torch.float64
    levels = found["pictures"] * 255
    assert torch.allclose(levels, levels.round(), atol=1e-4)
    for name in ("beyond", "channels", "flat"):
        assert torch.equal(found[name], value[name])
    assert comparison.differences(found, value) == []


@pytest.mark.parametrize(("pictures", "count"), [(None, 6), (4, 4), (0, 0), (9, 6)])
def test_only_so_many_pictures_are_kept(tmp_path, pictures, count):
    value = {
        "shown": torch.rand(6, 3, 4, 4),
        "raw": torch.randn(6, 3, 4, 4),
        "one": torch.rand(3, 4, 4),
        "x": torch.rand(6),
    }
    found = kept(tmp_path, value, pictures)
    assert (len(found["shown"]), len(found["raw"]), len(found["one"]), len(found["x"])) == (count, count, 3, 6)
    assert comparison.differences(found, value) == []


def test_json_values_dictionaries_and_lists_keep_their_order(tmp_path):
    value = {
        "z": {"b": [1, {"a": None}], "a": math.nan, "$columns": 1, "$tensor": "x"},
        "a": (1, "x", True, 2.5, math.inf),
        "tensors": [torch.ones(1), {"t": pd.DataFrame({"x": [1]})}],
        "m": np.float32(0.5),
        "array": np.arange(3),
        "is": Inner(0.5, None),
    }
    found = kept(tmp_path, value)
    assert list(found) == list(value) and list(found["z"]) == ["b", "a", "$columns", "$tensor"]
    assert found["z"]["b"] == [1, {"a": None}] and math.isnan(found["z"]["a"]) and found["z"]["$columns"] == 1
    assert found["a"] == [1, "x", True, 2.5, math.inf] and found["m"] == 0.5 and found["array"] == [0, 1, 2]
    assert found["is"] == {"rate": 0.5, "device": None}
    assert torch.equal(found["tensors"][0], torch.ones(1)) and found["tensors"][1]["t"]["x"].tolist() == [1]


def test_everything_else_of_a_record_comes_back(tmp_path):
    first = record(pd.DataFrame({"x": [1]}), inputs={"x": {"$number": "inf"}, "deep": [{"a": [1.5, None]}]})
    records.save(tmp_path / "part.json", first)
    found = records.load(tmp_path / "part.json")
    for field in ("paper", "name", "function", "inputs", "seed", "code", "made"):
        assert getattr(found, field) == getattr(first, field)
    assert found.sha256 == records.checksum(tmp_path / "part.json")
    assert found.answers(first.function, first.inputs, 1) == []
    assert found.answers({"$function": "g"}, {"x": 1, "new": 2}, 2) == [
        "function",
        "inputs.deep",
        "inputs.new",
        "inputs.x",
        "seed",
    ]
    assert set(found.made) == {"python", "versions", "commit", "device", "threads", "platform", "time", "seconds"}


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (3, ValueError, "part 'part' returned a int: expected a DataFrame or a dictionary"),
        (pd.Series([1]), ValueError, "returned a Series"),
        ({"x": {1, 2}}, TypeError, "a record cannot hold a set"),
        ({1: "x"}, TypeError, r"keys of what a part returns must be text, got \[1\]"),
        ({"x": {2: "x"}}, TypeError, r"keys of what a part returns must be text, got \[2\]"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), ValueError, r"several columns of one name among \['a', 'a'\]"),
        (pd.DataFrame([[1, 2]], columns=[1, "1"]), ValueError, r"several columns of one name among \['1', '1'\]"),
        (pd.DataFrame({"t": [pd.Timestamp(0)]}), TypeError, "cannot hold column /t, whose values are datetime64"),
        (pd.DataFrame({"t": [1j]}), TypeError, "cannot hold column /t, whose values are complex128"),
        (
            pd.DataFrame({"t": pd.array([1, None], dtype="Int64")}),
            TypeError,
            "column /t, whose values are Int64: give it",
        ),
    ],
)
def test_what_no_record_can_hold_leaves_no_file(tmp_path, value, error, message):
    with pytest.raises(error, match=message):
        kept(tmp_path, value if not isinstance(value, dict) else value | {"t": torch.ones(1)})
    assert list(tmp_path.iterdir()) == []


def test_inputs_that_json_does_not_know_leave_no_file(tmp_path):
    with pytest.raises(TypeError, match="a record cannot hold a set"):
        records.save(tmp_path / "part.json", record({"t": torch.ones(1)}, inputs={"x": {1}}))
    assert list(tmp_path.iterdir()) == []


def test_tensors_of_an_earlier_record_do_not_stay(tmp_path):
    kept(tmp_path, {"t": torch.ones(1)})
    assert kept(tmp_path, {"n": 1}) == {"n": 1} and not (tmp_path / "part.safetensors").exists()


# --- damaged files


@pytest.fixture
def good(tmp_path):
    """The path of a good record with a table, pictures and a number."""
    table = pd.DataFrame({"trial": range(40), "mse": np.arange(40) / 7, "hit": [True] * 40, "name": ["a"] * 40})
    records.save(tmp_path / "part.json", record({"scores": table, "shown": torch.rand(2, 3, 4, 4), "n": 3}))
    return tmp_path / "part.json"


def rewrite(path, change):
    """Change a record's payload and compute its checksum again, as one who wants to deceive."""
    payload = json.loads(path.read_text())["payload"]
    payload = change(payload) or payload
    if isinstance(payload, dict):
        results.save(path, payload)
    else:
        plain = json.dumps(payload, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        mark = hashlib.sha256(plain.encode()).hexdigest()
        path.write_text(f'{{"schema": {results.SCHEMA}, "sha256": "{mark}", "payload": {plain}}}')


def change_tensors(path, change):
    """Change a record's tensors and compute all of its checksums again."""
    content = path.with_suffix(".safetensors")
    arrays = packing.inflated(safetensors.torch.load(content.read_bytes()))
    content.write_bytes(safetensors.torch.save(packing.deflated(change(arrays) or arrays)))
    _mark(path)


def change_packed(path, change):
    """The same, of the tensors as the file holds them."""
    content = path.with_suffix(".safetensors")
    arrays = safetensors.torch.load(content.read_bytes())
    content.write_bytes(safetensors.torch.save(dict(change(name, item) for name, item in arrays.items())))
    _mark(path)


def _mark(path):
    content = path.with_suffix(".safetensors")
    mark = hashlib.sha256(content.read_bytes()).hexdigest()
    rewrite(path, lambda payload: payload.update(tensors=mark))


def _drop(*names):
    return lambda payload: [payload.pop(name) for name in names] and None


def _set(**fields):
    return lambda payload: payload.update(fields)


def _item(payload, name):
    return next(item for key, item in payload["value"]["$items"] if key == name)


DAMAGE = {
    "cut in half": (lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]), "is not complete JSON"),
    "empty": (lambda p: p.write_bytes(b""), "is not complete JSON"),
    "a byte of the JSON": (
        lambda p: p.write_text(p.read_text().replace('"seed": 1', '"seed": 2')),
        "checksum does not fit",
    ),
    "not UTF-8": (lambda p: p.write_bytes(b"\xff\xfe"), "is not complete JSON"),
    "no object": (lambda p: p.write_text("[1, 2]"), "is no record of reprolib"),
    "nested without end": (lambda p: p.write_text("[" * 100_000), "nested too deeply|not complete JSON"),
    "a list": (lambda p: rewrite(p, lambda payload: [1]), "is no record of a part: it holds a list"),
    "no record": (lambda p: rewrite(p, lambda payload: {"a": 1}), "is no record of a part: it lacks code, function"),
    "without tensors' mark": (lambda p: rewrite(p, _drop("tensors")), "it lacks tensors"),
    "another schema": (lambda p: rewrite(p, _set(schema=1)), "is a record of schema 1, this reprolib reads schema 2"),
    "no name": (lambda p: rewrite(p, _set(name=3)), "its name cannot be read"),
    "no inputs": (lambda p: rewrite(p, _set(inputs=[1], made=None)), "its inputs, made cannot be read"),
    "made by nothing": (
        lambda p: rewrite(p, _set(made={"commit": "a"})),
        "does not say what made it: python, versions",
    ),
    "made by a number": (
        lambda p: rewrite(p, lambda q: q["made"].update(commit=3)),
        "does not say what made it: commit",
    ),
    "endless": (lambda p: rewrite(p, lambda q: q["made"].update(seconds=math.inf)), "says that it took inf seconds"),
    "no value": (lambda p: rewrite(p, _set(value=None)), "its value cannot be read"),
    "another value": (lambda p: rewrite(p, _set(value={})), "its values and its tensors do not fit"),
    "other rows": (
        lambda p: rewrite(p, lambda q: _item(q, "scores").update(rows=3)),
        "has other rows than the 3 of its",
    ),
    "an unknown type": (
        lambda p: rewrite(p, lambda q: _item(q, "scores")["$columns"][1][1].update(dtype="nonsense")),
        "its values and its tensors do not fit",
    ),
    "an unknown kind of picture": (
        lambda p: rewrite(p, lambda q: _item(q, "shown").update({"$pictures": "load"})),
        "its values and its tensors do not fit",
    ),
    "a value too few": (
        lambda p: rewrite(p, lambda q: _item(q, "scores")["$columns"][2][1].update(of=[])),
        "its values and its tensors do not fit",
    ),
    "a byte of the tensors": (
        lambda p: p.with_suffix(".safetensors").write_bytes(p.with_suffix(".safetensors").read_bytes()[:-1] + b"\xff"),
        "part.safetensors does not fit its checksum: it was cut or changed",
    ),
    "cut tensors": (
        lambda p: p.with_suffix(".safetensors").write_bytes(p.with_suffix(".safetensors").read_bytes()[:50]),
        "part.safetensors does not fit its checksum",
    ),
    "no tensors asked for": (lambda p: rewrite(p, _set(tensors=None)), "its values and its tensors do not fit"),
    "a tensor too few": (
        lambda p: change_tensors(p, lambda arrays: arrays.pop("/shown") is None),
        "its values and its tensors do not fit",
    ),
    "bytes that are not deflated": (
        lambda p: change_packed(p, lambda name, item: (name, torch.zeros_like(item))),
        "its values and its tensors do not fit",
    ),
    "deflated bytes that are cut": (
        lambda p: change_packed(p, lambda name, item: (name, item[:-6].clone())),
        "its values and its tensors do not fit",
    ),
    "another shape": (
        lambda p: change_packed(p, lambda name, item: (name.rsplit(" ", 1)[0] + " 99999999999x9", item)),
        "its values and its tensors do not fit",
    ),
    "a type that is none": (
        lambda p: change_packed(p, lambda name, item: (name.replace("uint8", "load").replace("int64", "load"), item)),
        "its values and its tensors do not fit",
    ),
    "a name without a shape": (
        lambda p: change_packed(p, lambda name, item: (name.replace(" ", "_"), item)),
        "its values and its tensors do not fit",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_record_is_refused_and_named(good, damage, message):
    damage(good)
    with pytest.raises(ValueError, match=message) as caught:
        records.load(good)
    assert str(caught.value).startswith("part."), "the file"
    found, problems = records.read_all(good.parent)
    assert found == {} and len(problems) == 1


def test_tensors_that_are_none_are_refused(good):
    content = b"\x08\x00\x00\x00\x00\x00\x00\x00no json!"
    good.with_suffix(".safetensors").write_bytes(content)
    rewrite(good, _set(tensors=hashlib.sha256(content).hexdigest()))
    with pytest.raises(ValueError, match="part.json is damaged: its values and its tensors do not fit"):
        records.load(good)


def test_a_missing_file_is_missing(good):
    good.with_suffix(".safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"part\.safetensors"):
        records.load(good)
    with pytest.raises(FileNotFoundError):
        records.load(good.with_name("none.json"))


def test_a_record_under_the_name_of_another_is_no_record_of_that_part(good):
    for suffix in (".json", ".safetensors"):
        shutil.copy(good.with_suffix(suffix), good.with_name(f"other{suffix}"))
    found, problems = records.read_all(good.parent)
    assert list(found) == ["part"] and problems == ["other.json is the record of part 'part'"]


# --- two records of one part


def table(**columns):
    return pd.DataFrame({"trial": [0, 1, 2], "mse": [0.5, 1e-7, math.inf], "hit": [True, True, False]} | columns)


def test_a_part_that_ran_again_with_equal_numbers_does_not_differ():
    again = table(mse=[0.5 * (1 + 1e-8), 1e-7, math.inf], seconds=[1, 2, 3], cpu=[0.1, 0.2, 0.3])
    assert comparison.differences(table(seconds=[4, 5, 6], cpu=[0.4, 0.5, 0.6]), again) == []
    assert comparison.differences({"scores": table(), "n": 3}, {"scores": table(), "n": 3}) == []
    assert comparison.differences(table(), table().iloc[::-1].reset_index(drop=True)) == [], "in another order"


CHANGED = {
    "a digit": (
        table(mse=[0.50001, 1e-7, math.inf]),
        "table, mse: 1 of 3 rows differ, first at trial 0: 0.50001 here, 0.5",
    ),
    "a small digit": (table(mse=[0.5, 2e-7, math.inf]), "first at trial 1: 2e-07 here, 1e-07 recorded"),
    "a finite number for an infinite one": (table(mse=[0.5, 1e-7, 3.0]), "first at trial 2: 3.0 here, inf recorded"),
    "the other infinite number": (table(mse=[0.5, 1e-7, -math.inf]), "-inf here, inf recorded"),
    "no number": (table(mse=[math.nan, 1e-7, math.inf]), "nan here, 0.5 recorded"),
    "a truth": (table(hit=[False, True, False]), "table, hit: 1 of 3 rows differ, first at trial 0: False here, True"),
    "a text for numbers": (
        table(mse=["a", "b", "c"]),
        "table, mse: 3 of 3 rows differ, first at trial 0: 'a' here, 0.5",
    ),
    "a row too few": (table().iloc[:2], "table: 1 of 3 recorded rows are not here"),
    "a row too many": (pd.concat([table(), table(trial=[3, 4, 5])]), "table: 3 of 6 rows have no counterpart"),
    "another trial": (table(trial=[0, 1, 7]), "table: 1 of 3 rows have no counterpart in the record"),
    "no rows at all": (table().iloc[:0], "table: 3 of 3 recorded rows are not here"),
    "a column too few": (table().drop(columns="hit"), "table: column hit is not here"),
    "a column too many": (table(new=1), "table: column new is not recorded"),
    "text trials": (table(trial=["0", "1", "2"]), "table: 3 of 3 rows have no counterpart"),
    "no table": ({"table": table()}, "the part is a dict here, a DataFrame recorded"),
}


@pytest.mark.parametrize(("fresh", "message"), CHANGED.values(), ids=CHANGED)
def test_what_differs_is_found_and_named(fresh, message):
    found = comparison.differences(table(), fresh)
    assert len(found) >= 1 and any(message in line for line in found), found


def test_every_entry_of_a_dictionary_is_compared():
    value = {
        "scores": table(),
        "n": 3,
        "rate": 0.25,
        "names": ["a", "b"],
        "curve": torch.tensor([1.0, 2.0]),
        "index": torch.tensor([1, 2]),
        "shown": torch.rand(4, 3, 5, 5),
        "deep": {"a": [torch.ones(2), {"b": 1.5}]},
    }
    assert comparison.differences(value, value) == []
    changes = {
        "n": (4, "n: 4 here, 3 recorded"),
        "rate": (0.26, "rate: 0.26 here, 0.25 recorded"),
        "names": (["a", "c"], r"names: \['a', 'c'\] here"),
        "curve": (torch.tensor([1.0, 2.1]), "curve: 1 of 2 numbers differ, by up to 0.1"),
        "index": (torch.tensor([1, 3]), "index: 1 of 2 numbers differ"),
        "shown": (1 - value["shown"], "shown: .* of 300 numbers differ"),
        "deep": ({"a": [torch.ones(2), {"b": 2.5}]}, "deep/a/1/b: 2.5 here, 1.5 recorded"),
    }
    for name, (other, message) in changes.items():
        (line,) = comparison.differences(value, value | {name: other})
        assert re.match(message, line), line
    assert comparison.differences(value, {k: v for k, v in value.items() if k != "n"}) == ["n: not here"]
    assert comparison.differences(value, value | {"more": 1}) == ["more: not recorded"]
    assert comparison.differences(value, value | {"curve": torch.ones(3)}) == [
        "curve is float32[3] here, float32[2] recorded"
    ]
    assert comparison.differences(value, value | {"scores": 3}) == ["scores is a int here, a DataFrame recorded"]
    assert comparison.differences({"seconds": 1.0, "a": {"seconds": 2}}, {"seconds": 3.0, "a": {"seconds": 5}}) == []


def test_what_went_through_a_file_equals_what_was_returned(tmp_path):
    value = {
        "t": pd.DataFrame({"s": ["a", None], "x": [0.1, math.inf]}),
        "shown": torch.rand(3, 3, 4, 4),
        "n": (1, np.int8(2)),
    }
    value |= {"is": Inner(0.5, None), "mean": np.float64(0.1)}
    assert comparison.differences(kept(tmp_path, value, pictures=2), value) == []
    darker = value | {"shown": (value["shown"] - 2 / 255).clamp(0, 1)}
    assert len(comparison.differences(kept(tmp_path, value), darker)) == 1, "by more than a level of 8 bits"


def test_a_few_trials_are_compared_in_their_rows():
    recorded = {
        "scores": pd.concat([table(), table(trial=[3, 4, 5])], ignore_index=True),
        "shown": torch.rand(2, 1, 4, 4),
    }
    fresh = {"scores": table(trial=[1, 4, 5]), "shown": torch.rand(3, 1, 4, 4)}
    fresh["scores"]["mse"] = [1e-7, 1e-7, math.inf]
    assert comparison.differences(recorded, fresh, True, [1, 4, 5]) == []
    assert len(comparison.differences(recorded, fresh)) == 2, "not all of it, and other pictures"
    (line,) = comparison.differences(recorded, {"scores": fresh["scores"].iloc[:2]}, True, [1, 4, 5])
    assert line == "scores: 1 of 3 recorded rows are not here"
    fresh["scores"].loc[0, "hit"] = False
    assert "trial 1: False here, True recorded" in comparison.differences(recorded, fresh, True, [1, 4, 5])[0]


def test_a_part_that_does_not_know_its_trials_cannot_be_compared_on_a_few():
    for value in ({"n": 1}, pd.DataFrame({"x": [1]}), {"a": table(), "b": pd.DataFrame({"x": [1]})}):
        assert not comparison.by_trial(value)
        assert comparison.differences(value, value, True, [0]) == [
            "nothing of it can be compared on a few trials: run all of it"
        ]
    assert comparison.by_trial(table()) and comparison.by_trial({"a": table(), "n": 3})


def test_on_another_machine_outcomes_are_compared_and_digits_are_not():
    recorded = table(mse=[0.5, 1e-7, math.inf], evaluations=[10, 20, 30], rank=[1, 1, 9], label=[3, 4, 5])
    chaotic = table(mse=[0.6, 5e-9, math.inf], evaluations=[11, 25, 30], rank=[1, 1, 4], label=[3, 4, 5])
    assert comparison.differences(recorded, chaotic, exact=False) == []
    assert len(comparison.differences(recorded, chaotic)) == 3
    for change in (
        {"hit": [True, True, True]},
        {"label": [3, 4, 6]},
        {"mse": [0.5, 1e-7, 5.0]},
        {"mse": [0.5, 0.01, math.inf]},
    ):
        assert len(comparison.differences(recorded, chaotic.assign(**change), exact=False)) == 1, change
    lost = table(mse=[3.0, 1e-7, 0.2], objective=[5.0, 1e-9, 7.0], label=[3, 4, 5], identified=[False, True, False])
    elsewhere = lost.assign(mse=[1e9, 1e-7, 0.2], objective=[5.5, 1e-9, 7.0], label=[8, 4, 5])
    assert comparison.differences(lost, elsewhere, exact=False) == [], "chaos decides where a search ends that got lost"
    assert len(comparison.differences(lost, elsewhere)) == 3
    for change in ({"label": [8, 4, 6]}, {"mse": [1e-3, 1e-7, 0.2]}, {"identified": [False] * 3}):
        assert comparison.differences(lost, elsewhere.assign(**change), exact=False) != [], change
    many = pd.DataFrame({"trial": range(8), "mse": 0.2, "objective": 5.0, "identified": [False] * 6 + [True] * 2})
    astray = many.assign(objective=[5.0 + 0.01 * k for k in range(1, 9)])
    for identified, lines in (([True] * 2 + [False] * 6, 0), ([True] * 8, 1)):
        found = comparison.differences({"s": many}, {"s": astray.assign(identified=identified)}, False)
        assert len(found) == lines, "of lost searches some may name another image, but not all of them a better one"
    pixels = {"shown": torch.rand(2, 1, 4, 4), "index": torch.tensor([1])}
    assert comparison.differences(pixels, {"shown": torch.rand(2, 1, 4, 4), "index": torch.tensor([1])}, False) == []
    assert comparison.differences(pixels, pixels | {"index": torch.tensor([2])}, False) != []
    assert comparison.differences(pixels, pixels | {"shown": torch.rand(2, 1, 5, 4)}, False) != []


@pytest.mark.parametrize(
    ("x", "y", "equal"),
    [(20.0, 35.0, True), (20.0, 41.0, False), (1e-8, 1e-5, True), (1e-8, 1e-3, False), (0.3, -0.3, False)]
    + [(0.0, 0.0, True), (math.inf, 1e9, False), (math.nan, math.nan, True), (0.0, 0.01, False), (-2.0, -3.0, True)],
)
def test_fractions_are_near_by_their_size(x, y, equal):
    found = comparison.differences({"x": x}, {"x": y}, exact=False)
    assert (found == []) is equal


# the tables of the library's experiments: their keys identify rows, or their order does


def _victim(digits):
    return models.build("lenet", digits.num_classes, digits.image_shape, 3)


def _tables(digits):
    quick = dataclasses.replace(attacks.DLG.stable(), iterations=1, starts=1)
    victim = _victim(digits)
    cases = [(10, 2), (10, 3)]
    options = {"images": digits, "seed": 1}
    return {
        "attack_trials": lambda: experiments.attack_trials(
            quick, trials=[0, 1, 2], each=2, batch=2, device=CPU, **options
        )["scores"],
        "read_labels": lambda: experiments.read_labels(networks=2, each=3, **options),
        "count_labels": lambda: experiments.count_labels(sizes=[2, 3], batches=3, **options),
        "predict_labels": lambda: experiments.predict_labels(networks=1, each=2, levels=(0.1, 1.0), **options),
        "follow": lambda: experiments.follow({"a": quick, "b": quick}, trials=2, steps=[0, 1], device=CPU, **options)[
            "layers"
        ],
        "separation_errors": lambda: experiments.separation_errors(
            victim, cases=cases, draws=2, refine_steps=1, **options
        ),
        "restored_labels": lambda: experiments.restored_labels(victim, cases=cases, draws=2, **options),
        "heads_in_training": lambda: experiments.heads_in_training(
            victim, digits, steps=(0, 1), size=3, batches=2, refine_steps=1, **options
        ),
        "with_defense": lambda: utility.with_defense(
            digits, digits, None, steps=1, seeds=3, learning_rates=(0.01,), seed=1
        ),
        "baselines": lambda: experiments.baselines(digits, digits, 4, 1, 0.1),
    }


IDENTIFIED = {
    "attack_trials": ["network", "trial", "image", "defense"],
    "read_labels": None,  # a network's images stand in their order
    "count_labels": None,  # and a size's batches
    "predict_labels": None,  # a level is a fraction: rows stand in their order
    "follow": ["trial", "attack", "outer"],
    "separation_errors": ["draw", "batch", "offset", "classes"],
    "restored_labels": ["draw", "batch", "rule", "classes"],
    "heads_in_training": ["batch", "offset", "steps"],
    "with_defense": ["defense", "seed"],
    "baselines": ["baseline"],
}


@pytest.mark.parametrize("name", IDENTIFIED)
def test_rows_of_the_librarys_tables_find_their_counterparts(digits, name):
    made = _tables(digits)[name]()
    keys, left, right, more, fewer = comparison._paired(made, made.copy())
    assert left == right and (more, fewer) == (0, 0) and sorted(left) == list(range(len(made)))
    if IDENTIFIED[name] is not None:
        assert set(keys) == set(IDENTIFIED[name]) and not made.duplicated(keys).any()
    else:
        assert not keys or made.duplicated(keys).any()
    assert not any(made[key].dtype.kind == "f" for key in keys)
    assert comparison.differences(made, made.copy()) == []
    column = next(
        c for c in reversed(made.columns) if c not in (*keys, *comparison.TIMES) and made[c].dtype.kind in "bf"
    )
    changed = made.copy()
    place = len(made) - 1
    changed.loc[place, column] = not made[column][place] if made[column].dtype == bool else made[column][place] + 1.0
    (line,) = comparison.differences(made, changed)
    assert f"table, {column}: 1 of {len(made)} rows differ" in line
    assert comparison.differences(made, made.iloc[:-1]) == [f"table: 1 of {len(made)} recorded rows are not here"]


def test_compared_attacks_are_told_apart_by_their_names(digits):
    rows = [{"trial": t, "image": i, "psnr": 1.0, "attack": name} for name in "ab" for t in (0, 1) for i in (0, 1)]
    made = pd.DataFrame(rows)
    keys = comparison._paired(made, made)[0]
    assert set(keys) == {"trial", "image", "attack"} and not made.duplicated(keys).any()


def test_numbers_beside_the_recorded_ones_are_means_of_the_same_rows():
    recorded = pd.concat([table(), table(trial=[3, 4, 5], mse=[9.0, 9.0, 9.0])], ignore_index=True)
    fresh = table(trial=[0, 1, 5], mse=[0.5, 1e-7, 8.0], name=["a", "b", "c"], seconds=[1, 2, 3])
    assert comparison.beside(recorded, fresh) == [
        "table, mse: 2.83333 here, 3.16667 recorded",
        "table, hit: 0.666667 here, 0.666667 recorded",
    ]
    repeated = pd.DataFrame({"network": [0, 0, 1, 1], "x": [1.0, 2.0, 3.0, 4.0]})
    assert comparison.beside({"t": repeated, "n": 1}, {"t": repeated, "n": 1}) == ["t, x: 2.5 here, 2.5 recorded"]
    assert comparison.beside({"t": repeated}, {}) == [] == comparison.beside(repeated, repeated.iloc[:0])


# --- sets that only a record knows


def test_a_recorded_set_tells_all_but_pixels(digits):
    known = recorded_set.known_of(digits)
    assert json.loads(json.dumps(known)) == known

    def absent():
        raise FileNotFoundError("get it there")

    images = recorded_set.RecordedSet(known, absent)
    for name in (
        "name",
        "split",
        "source",
        "asked",
        "classes",
        "image_shape",
        "num_classes",
        "substitute",
        "fingerprint",
    ):
        assert getattr(images, name) == getattr(digits, name)
    assert len(images) == 40 and describe(images) == describe(digits)
    for name in ("images", "labels", "batches", "mean_image", "after"):
        with pytest.raises(
            FileNotFoundError, match=r"that it has 40 images of \(1, 8, 8\), and its pixels are not here"
        ):
            getattr(images, name)
    with pytest.raises(AttributeError, match="an image set has no attribute 'nonsense'"):
        _ = images.nonsense


def test_a_recorded_set_gives_the_pixels_of_the_same_copy_alone(digits):
    assert recorded_set.RecordedSet(recorded_set.known_of(digits), lambda: digits).batches(2, 3)[0].shape == (
        3,
        2,
        1,
        8,
        8,
    )
    stand_in = dataclasses.replace(digits, name="photos")
    with pytest.raises(
        FileNotFoundError, match="its pixels are not here, only 'photos' in its place: let data_root or"
    ):
        _ = recorded_set.RecordedSet(recorded_set.known_of(digits), lambda: stand_in).images
    other = dataclasses.replace(digits, images=digits.images.flip(0))
    with pytest.raises(
        ValueError, match=f"but the copy here .* fingerprint {other.fingerprint}: these are other images"
    ):
        _ = recorded_set.RecordedSet(recorded_set.known_of(digits), lambda: other).images


def test_a_models_fingerprint_follows_its_weights():
    model = models.build("mlp", 10, (1, 8, 8), seed=0, width=4)
    first = description.describe(model)
    assert description.describe(model) == first
    with torch.no_grad():
        next(model.parameters()).mul_(2)
    assert description.describe(model) != first


def test_an_option_that_came_after_a_record_was_made_is_at_its_default_in_it():
    attack = attacks.GradInversion()
    asked = {"attack": description.describe(attack), "several": description.describe([attack, attack])}
    older = json.loads(json.dumps(asked))
    for described in (older["attack"], *older["several"]):
        del described["signed"]
    made = {"commit": "abc"}
    record = records.Record("toy", "part", {"$function": "f"}, older, 1, "code", made, {})
    assert record.answers({"$function": "f"}, asked, 1) == []
    other = asked | {"attack": description.describe(dataclasses.replace(attack, signed=True))}
    assert record.answers({"$function": "f"}, other, 1) == ["inputs.attack"]
    older["attack"]["seeds"] = 99
    assert record.answers({"$function": "f"}, asked, 1) == ["inputs.attack"], "an option that it does hold counts"


def test_a_pixel_met_to_its_last_digit_is_no_outcome_on_another_machine():
    old = pd.DataFrame({"trial": [0, 1], "psnr_dim0": [math.inf, 14.0], "psnr": [12.5, 12.5]})
    here = old.assign(psnr_dim0=[16.7, 14.0])
    assert "psnr_dim0: 1 of 2 rows differ" in comparison.differences(old, here)[0], "on the same kind of machine"
    assert comparison.differences(old, here, exact=False) == []
    assert comparison.differences(old, here.assign(psnr_dim0=[16.7, 40.0]), exact=False) != []
    assert comparison.differences(old, here.assign(psnr=[16.7, math.inf]), exact=False) != []


def searches(flipped, worse=None, count=40):
    """A table of searches, and another run of it in which some ended elsewhere: half of them worse, or as many."""
    found = pd.DataFrame({"trial": range(count), "mse": 1e-6, "objective": 1e-9, "identified": True})
    found.loc[::2, ["mse", "objective", "identified"]] = 0.2, 0.5, False
    again = found.copy()
    lost, kept = again.index[::2], again.index[1::2]
    worse = flipped // 2 if worse is None else worse
    again.loc[kept[:worse], ["mse", "objective", "identified"]] = 0.3, 0.7, False
    again.loc[lost[: flipped - worse], ["mse", "objective", "identified"]] = 2e-6, 1e-9, True
    return {"scores": found}, {"scores": again}


def test_a_few_searches_may_end_elsewhere_on_another_machine_but_not_many_and_not_all_one_way():
    assert comparison.ended_elsewhere(*searches(4)) == "4 of 40 searches ended elsewhere"
    assert comparison.ended_elsewhere(*searches(1, 1)) == "1 of 40 searches ended elsewhere"
    assert comparison.ended_elsewhere(*searches(5)) == "", "more than one in ten"
    assert comparison.ended_elsewhere(*searches(20, 20, count=400)) == "", "all of them worse"
    assert comparison.ended_elsewhere(*searches(1, 1, count=8)) == "1 of 8 searches ended elsewhere"
    assert comparison.ended_elsewhere(*searches(2, 1, count=8)) == "", "two of eight"
    assert comparison.ended_elsewhere(*searches(1, 1, count=4)) == "", "one of four"
    old, new = searches(1, 1)
    sample = {"scores": new["scores"].iloc[:6]}
    assert comparison.ended_elsewhere(old, sample, [*range(6)]) == "1 of 6 searches ended elsewhere"
    assert comparison.ended_elsewhere(old, {"scores": new["scores"].iloc[:3]}, [0, 1, 2]) == "", "one of three"
    for step in comparison.WAYS:
        way = pd.DataFrame({"trial": np.repeat(range(8), 5), step: [*range(5)] * 8, "error": 1.0, "spent": 3})
        turned = way.assign(error=np.where((way.trial == 3) & (way[step] > 2), 50.0, 1.0), spent=4)
        assert comparison.ended_elsewhere({"layers": way}, {"layers": turned}) == "1 of 8 searches ended elsewhere"
        turned.loc[turned.trial == 4, "error"] = 50.0
        assert comparison.ended_elsewhere({"layers": way}, {"layers": turned}) == ""
    old, new = searches(2)
    assert comparison.ended_elsewhere(old | {"law": "gaussian"}, new | {"law": "laplace"}) == "", (
        "something else differs"
    )
    assert comparison.ended_elsewhere(old, old) == "", "nothing does"
    for one, other in ((old, {"scores": new["scores"].iloc[:20]}), ({"scores": old["scores"].iloc[:20]}, new)):
        assert comparison.ended_elsewhere(one, other) == "", "searches are missing, or too many"
    assert len(comparison.differences(old, new, False)) > 0, "on the machine that made it, it is a difference"


def test_searches_that_were_stopped_are_compared_together_on_another_machine():
    rows = pd.MultiIndex.from_product([range(10), range(4)], names=["trial", "image"]).to_frame(index=False)
    old = rows.assign(mse=0.1, identified=False, exact=False, converged=False)
    better, worse = old.trial.isin([0, 1, 2]), old.trial.isin([3, 4])
    moved = old.assign(mse=0.1 - 0.095 * better + 0.2 * worse, identified=better & (old.image == 2))
    back = old.assign(identified=worse & (old.image == 1))
    assert comparison.differences({"s": back}, {"s": moved}, False) == []
    assert len(comparison.differences({"s": back}, {"s": moved}, True)) == 2, "on the machine that made it"
    done = [{"s": table.assign(converged=old.trial == 0)} for table in (back, moved)]
    assert len(comparison.differences(*done, False)) == 2, "one search of them converged"
    upward = old.assign(identified=old.trial < 6)
    assert "s, identified: 24 of 40 rows differ" in comparison.differences({"s": old}, {"s": upward}, False)[0]
    errors = old.assign(mse=0.1 - 0.095 * (old.trial < 6))
    assert len(comparison.differences({"s": old}, {"s": errors}, False)) == 1, "all of them better"


def counted(*moved, rows=50):
    """Batches of 32 images of which some were read to the last digits, and another run that counts them otherwise."""
    old = pd.DataFrame({"trial": range(rows), "images": 32, "strict": 20, "same": True, "psnr": 80.0})
    new = old.copy()
    new["strict"] += [*moved, *[0] * (rows - len(moved))]
    new["same"] = new.strict == 20
    return {"batches": old}, {"batches": new}


def test_a_few_images_may_fall_on_the_other_side_of_a_threshold_on_another_machine():
    told = "{} of 1600 images fell on the other side of a threshold"
    assert comparison.fell_otherwise(*counted(1, -1, 1)) == told.format(3)
    assert comparison.fell_otherwise(*counted(2, -1, 1)) == told.format(4)
    assert comparison.fell_otherwise(*counted(*[1, -1] * 8)) == told.format(16), "one in a hundred"
    assert comparison.fell_otherwise(*counted(*[1, -1] * 8, 1)) == "", "more than that"
    assert comparison.fell_otherwise(*counted(*[-1] * 6)) == "", "all of them fewer"
    assert comparison.fell_otherwise(*counted(1, rows=2)) == "1 of 64 images fell on the other side of a threshold"
    old, new = counted(1, -1)
    sample = {"batches": new["batches"].iloc[:5]}
    assert comparison.fell_otherwise(old, sample, [*range(5)]) == "", "two of 160"
    assert comparison.fell_otherwise(*counted(0, 0)) == "", "nothing differs"
    for change in ({"psnr": 20.0}, {"images": 31}, {"trial": range(1, 51)}):
        assert comparison.fell_otherwise(old, {"batches": new["batches"].assign(**change)}) == "", change
    draws = pd.DataFrame({"draw": range(200), "alone": True, "bins": 8})
    other = draws.assign(alone=draws.draw != 3)
    assert comparison.fell_otherwise({"table": draws}, {"table": other}).startswith("1 of 200 images")
    bins = {"table": other.assign(bins=9)}
    assert comparison.fell_otherwise({"table": draws}, bins) == "", "whole numbers that count no images"
    near = old["batches"].assign(share19=0.25)
    fewer = near.assign(share19=near.share19 - 0.125 * (near.trial == 7))
    assert comparison.fell_otherwise({"batches": near}, {"batches": fewer}) == told.format(4), "an eighth of 32"
    partly = fewer.assign(share19=fewer.share19 + 0.01)
    assert comparison.fell_otherwise({"batches": near}, {"batches": partly}) == "", "no share of 32 images"
    searches = {"table": draws.assign(mse=1.0)}, {"table": other.assign(mse=1.0)}
    assert comparison.fell_otherwise(*searches) == "", "where a search ends, another rule says"
    assert len(comparison.differences(*counted(1, -1, 1))) > 0, "on the machine that made it, it is a difference"


def test_what_rounding_leaves_open_is_no_difference_on_another_machine():
    old, new = (
        {"scores": pd.DataFrame({"trial": [0, 1], "objective": values})} for values in ([-1e-7, 1.0], [2e-7, 1.0])
    )
    assert comparison.differences(old, new, False) == []
    assert len(comparison.differences(old, new)) == 1, "on the machine that made it, it is one"


def test_a_ratio_over_rounding_has_no_size_on_another_machine():
    old, new, less = ({"table": pd.DataFrame({"trial": [0], "gap": [gap]})} for gap in (9.7e14, 1.2e13, 9e11))
    assert comparison.differences(old, new, False) == []
    assert len(comparison.differences(old, less, False)) == len(comparison.differences(old, new)) == 1


def test_a_similarity_around_zero_has_no_size_on_another_machine():
    old, new = ({"scores": pd.DataFrame({"trial": [0, 1], "ssim": [low, 0.9]})} for low in (-0.003, 0.004))
    assert comparison.differences(old, new, False) == []
    assert len(comparison.differences(old, {"scores": new["scores"].assign(ssim=[0.004, 0.4])}, False)) == 1
