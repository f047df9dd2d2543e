"""What code a part can reach: read from the sources, against what really runs."""

import sys

import pytest
import torch

from reprolib import attacks, data, defenses, experiments
from reprolib.book import fingerprints, sources
from reprolib.experiments import utility
from reprolib.federated import client


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A library of a few files: `library({"a": text, ...})`."""

    def written(files):
        (tmp_path / "__init__.py").write_text("")
        for name, text in files.items():
            path = tmp_path / f"{name}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        monkeypatch.setattr(sources, "PACKAGE", tmp_path)
        sources.file_of.cache_clear()
        sources._text_of.cache_clear()
        sources._home.cache_clear()

        def reached(*roots, called=()):
            return {name for _, name in sources.reached([tuple(root.rsplit(":")) for root in roots], called)}

        return reached

    yield written
    sources.file_of.cache_clear()
    sources._text_of.cache_clear()
    sources._home.cache_clear()


def shape(text, name="f"):
    return [definition.shape for definition in sources._analysed(text).defined[name]]


@pytest.mark.parametrize(
    "same",
    [
        'def f(x: int, y=1) -> int:\n    """Prose."""\n    # more\n    z: int = x\n    return (z +\n        y)\n',
        "def f(x, y = 1):\n    pass\n    z: float = x\n    'prose'\n    return z + y\n",
        "from typing import Any\ndef f(x: Any, y=1) -> Any:\n    z: Any\n    z: Any = x\n    return z + y\n",
    ],
)
def test_annotations_docstrings_and_layout_are_no_code(same):
    assert shape(same) == shape("def f(x, y=1):\n    z = x\n    return z + y\n")


def test_an_annotation_leads_nowhere(library):
    reached = library(
        {
            "a": "from reprolib.b import Kind, make\ndef f(x: Kind) -> Kind:\n    y: Kind = make(x)\n    return y\n"
            "class Own:\n    field: Kind = 1\n",
            "b": "class Kind:\n    pass\ndef make(x):\n    return x\n",
        }
    )
    assert reached("reprolib.a:f") == {"f", "make"}
    assert reached("reprolib.a:Own") == {"Own", "Kind"}, "a field's annotation is code: it makes the field"


@pytest.mark.parametrize(
    "other",
    [
        "def f(x, y=2):\n    z = x\n    return z + y\n",
        "def f(x, *, y=1):\n    z = x\n    return z + y\n",
        "def f(x, y=1):\n    z = x\n    return z - y\n",
        "def f(x, y=1):\n    z = x\n    return 'z' + y\n",
        "@cache\ndef f(x, y=1):\n    z = x\n    return z + y\n",
        "async def f(x, y=1):\n    z = x\n    return z + y\n",
    ],
)
def test_what_runs_is_code(other):
    assert shape(other) != shape("def f(x, y=1):\n    z = x\n    return z + y\n")


def test_what_a_name_of_another_package_stands_for_is_code():
    one, other, unread = (
        f"{line}\ndef f():\n    return numbers.one()\n"
        for line in ("import numpy as numbers", "import torch as numbers", "import numpy as numbers, os")
    )
    assert shape(one) != shape(other) and shape(one) == shape(unread)
    inside = "def f():\n    from {} import one\n    return one()\n"
    assert shape(inside.format("numpy")) != shape(inside.format("torch"))


def test_a_field_of_a_class_is_code_with_its_annotation():
    one, other = (f"class f:\n    x: {kind} = 1\n" for kind in ("int", "ClassVar[int]"))
    assert shape(one) != shape(other)


def test_names_lead_through_packages_tables_and_functions(library):
    reached = library(
        {
            "a": "from reprolib import b\nfrom reprolib.p import thing as one\n"
            "def f():\n    return one(), b.TABLE\n\ndef unread():\n    pass\n",
            "b": "from reprolib.c import g\nTABLE = {'g': g}\nOTHER = 1\n",
            "c": "def g():\n    from reprolib.d import h\n    return h()\n",
            "d": "LEVEL = 1\nLEVEL += 1\nprint('hello')\ndef h(x=LEVEL):\n    pass\n",
            "p/__init__": "from reprolib.p.inner import thing\n",
            "p/inner": "def thing():\n    return helper()\n\ndef helper():\n    return other\n\nother = 1\n",
        }
    )
    assert reached("reprolib.a:f") == {"f", "TABLE", "g", "h", "LEVEL", "thing", "helper", "other"}
    assert reached("reprolib.c:*") == {"*", "g", "h", "LEVEL"}
    found = sources.reached([("reprolib.d", "h")])
    assert len(found["reprolib.d", "LEVEL"]) == 3, "both lines that bind it, and the call that binds nothing"


def test_methods_count_by_the_names_that_are_called(library):
    reached = library(
        {
            "a": "from reprolib.b import Base\nclass Own(Base):\n    def __init__(self):\n        self.start()\n"
            "    def start(self):\n        pass\n    def unread(self):\n        pass\n"
            "    def named(self):\n        pass\n"
            "class Other:\n    def unread(self):\n        pass\n",
            "b": "import torch\nfrom torch import nn\nclass Base:\n    def run(self):\n        return self.hook()\n"
            "    def hook(self):\n        pass\n    def unread(self):\n        pass\n"
            "class Layer(nn.Module):\n    def forward(self, x):\n        pass\n"
            "class Below(Layer):\n    def backward(self):\n        pass\n",
            "c": "from reprolib.a import Own\ndef f(name='named'):\n    return Own().run(), getattr(Own(), name)\n"
            "def g():\n    return Own.unread\n",
        }
    )
    assert reached("reprolib.c:f") == {
        *("f", "Own", "Own.__init__", "Own.start", "Own.named", "Base", "Base.run", "Base.hook")
    }
    assert "Base.unread" not in reached("reprolib.c:g") and "Own.unread" in reached("reprolib.c:g")
    assert reached("reprolib.a:Own", called={"unread"}) >= {"Own.unread", "Base.unread"}
    assert reached("reprolib.b:Below") == {"Below", "Below.backward", "Layer", "Layer.forward"}


def test_a_local_value_under_a_modules_name_is_followed_both_ways(library):
    reached = library(
        {
            "a": "from reprolib import task\nclass Task:\n    def loss(self):\n        pass\n"
            "def f(task):\n    return task.loss(), Task\n",
            "task": "def loss():\n    pass\n\ndef unread():\n    pass\n",
        }
    )
    assert reached("reprolib.a:f") == {"f", "Task", "Task.loss", "loss"}


def test_types_lead_on_but_for_those_of_the_checker_alone(library):
    reached = library(
        {
            "a": "from typing import TYPE_CHECKING\nfrom reprolib.b import B\nif TYPE_CHECKING:\n"
            "    from reprolib.c import C\ndef f(b: B, c: C):\n    return [B for B in b]\n",
            "b": "class B:\n    pass\n",
            "c": "class C:\n    pass\n",
        }
    )
    assert reached("reprolib.a:f") == {"f", "B"}


def test_a_module_that_the_library_lacks_leads_nowhere(library):
    reached = library(
        {"a": "from reprolib.gone import f\nimport reprolib.away\ndef g():\n    return f(), reprolib.away\n"}
    )
    assert reached("reprolib.a:g", "reprolib.nowhere:*") == {"g", "*"}


def _ran(function):
    """The functions of the library that a call runs, but for those that only show: (module, qualified name)."""
    seen = set()

    def note(frame, event, _):
        if event == "call" and str(frame.f_globals.get("__name__")).partition(".")[0] == "reprolib":
            seen.add((frame.f_globals["__name__"], frame.f_code.co_qualname.partition(".<locals>")[0]))

    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    made = ("<", "__create_fn__")  # a module's own run, a lambda of one, and what a dataclass writes itself
    return {place for place in seen if not sources._shows(place[0]) and not place[1].startswith(made)}


CPU = torch.device("cpu")


def _attack(attack, defense=None, **more):
    return experiments.attack_trials, {
        "attack": attack,
        "images": data.load("digits", count=8),
        "trials": [0, 1],
        "each": 1,
        "seed": 1,
        "device": CPU,
        "defense": defense,
    } | more


PARTS = {
    "noise and pruning": lambda: _attack(
        attacks.DLG(iterations=2),
        defenses.Compose([defenses.GaussianNoise(1e-3), defenses.TopK(0.3)]),
        pool=data.load("digits", count=20),
    ),
    "a mean of clients": lambda: _attack(
        attacks.InvertingGradients(iterations=2),
        threat=client.ThreatModel(observes="mean of 2", labels="known"),
        local=client.LocalTraining(epochs=2, batch_size=1, learning_rate=0.1),
        batch=2,
    ),
    "labels": lambda: _attack(attacks.IDLG(iterations=2), defenses.Soteria.gs(0.4), model="mlp"),
    "a bottleneck": lambda: _attack(
        attacks.GradInversion(iterations=2, warmup=1), defenses.PRECODE(k=8), model="resnetbn8"
    ),
    "training": lambda: (
        utility.with_defense,
        {
            "train_images": data.load("digits", count=16),
            "test_images": data.load("digits", "train", count=8),
            "defense": defenses.SignCompression(),
            "steps": 2,
            "seeds": 1,
            "learning_rates": (0.1,),
        },
    ),
}


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_all_that_a_part_runs_was_found_in_the_sources(part):
    function, inputs = part()
    _, roots, called = fingerprints._begins(function, inputs)
    found = set(sources.reached(roots, called))
    ran = _ran(lambda: function(**inputs))
    assert len(ran) > 20
    assert ran - found == set()
