"""What the classes of settings refuse, read off their annotations, and that they take numpy's numbers."""

import importlib
import math
import pkgutil
import types
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Annotated, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import pytest
from torch import nn

import reprolib
from reprolib import data, settings
from reprolib.attacks import DLG, LearningToInvert, Rereading
from reprolib.defenses import TopK
from reprolib.federated.client import LocalTraining
from reprolib.federated.observation import Observation

ROOMS = ("models", "optimizers", "measure", "federated", "defenses", "attacks", "experiments")
PHOTOS = data.load("photos", "train", 32)
GENERATOR = nn.Linear(2, 2)
GENERATOR.latent_dim = 2
NEEDED = {
    **{"root": PHOTOS, "partners": PHOTOS, "defenses": [TopK(0.5)], "defense": TopK(0.5), "perturbation": TopK(0.5)},
    **{"std": 0.1, "max_norm": 1.0, "noise_multiplier": 1.0, "prune_ratio": 0.5, "factor": 2.0, "dtype": "bf16"},
    **{"pruning_rate": 10.0, "observation": Observation({}), "decoder": nn.Linear(2, 2), "generator": GENERATOR},
    **{"auxiliary": PHOTOS, "attack": DLG(), "epochs": 2, "batch_size": 1, "learning_rate": 0.1},
    **{"make": TopK, "images": PHOTOS, "label": "pruned", "public": PHOTOS},
}


def _checked():
    """Every dataclass of the library that checks its settings when it is made."""
    found = set()
    for module in pkgutil.walk_packages(reprolib.__path__, "reprolib."):
        if module.name.split(".")[1] in ROOMS:
            for kind in vars(importlib.import_module(module.name)).values():
                if isinstance(kind, type) and is_dataclass(kind) and kind.__module__ == module.name:
                    own = [vars(each)["__post_init__"] for each in kind.__mro__ if "__post_init__" in vars(each)]
                    if any({"settings", "check"} <= set(function.__code__.co_names) for function in own):
                        found.add(kind)
    return sorted(found, key=lambda kind: kind.__qualname__)


KINDS = _checked()
FIELDS = [
    (kind, field.name, get_type_hints(kind, include_extras=True)[field.name])
    for kind in KINDS
    for field in fields(kind)
    if field.init
]


def made(kind, /, **given):
    """One with these settings, and with what it needs besides."""
    needed = [field.name for field in fields(kind) if field.default is field.default_factory is MISSING]
    own = {name: {} if name == "before" else NEEDED[name] for name in needed}
    if kind.__name__ == "HCGLA":
        own["generator"] = GENERATOR
    return kind(**(own | given))


def bad(hint):
    """Values that no field with this annotation takes."""
    if get_origin(hint) in (Union, types.UnionType):
        members = [each for each in get_args(hint) if each is not type(None)]
        return [value for value in bad(members[0]) if value is not None or len(members) == len(get_args(hint))]
    if get_origin(hint) is Annotated:
        words = isinstance(get_args(hint)[1], settings.OneOf)
        return ["an unknown word", 3] if words else bad(get_args(hint)[0])
    if get_origin(hint) is Literal:
        return ["an unknown word", 3, None]
    own = {int: [True, 2.5, math.nan, "3", None, -1], float: [True, math.nan, "3", None], bool: [1, "yes", None]}
    return own.get(hint, [3, None] if hint is str else ["a string"] if isinstance(hint, type) else [3])


def test_the_classes_that_check_are_all_that_are_settings():
    names = {kind.__name__ for kind in KINDS}
    assert names >= {"DLG", "IDLG", "InvertingGradients", "GradInversion", "GGL", "HCGLA", "FGLA", "PlainDLG"}
    assert names >= {"LearningToInvert", "AnalyticRecovery", "Rereading", "LBFGS", "Task", "ThreatModel"}
    assert names >= {"LocalTraining", "TopK", "DPSGD", "Soteria", "PRECODE", "Counter", "RivalReading", "OnPublic"}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_class_is_made_of_what_it_takes(kind):
    assert made(kind) is not None


@pytest.mark.parametrize(("kind", "name", "hint"), FIELDS, ids=[f"{kind.__name__}.{name}" for kind, name, _ in FIELDS])
def test_what_a_setting_cannot_be_is_refused_in_one_line_by_its_name(kind, name, hint):
    for value in bad(hint):
        with pytest.raises(ValueError, match=f"{name} must ") as refused:
            made(kind, **{name: value})
        assert "\n" not in str(refused.value) and f"got {value!r}" in str(refused.value)


def test_numpys_numbers_become_pythons():
    local = LocalTraining(np.int64(2), np.int32(4), np.float32(0.5), shuffle=np.True_, sizes=[np.int64(3)])
    assert local == LocalTraining(2, 4, 0.5, shuffle=True, sizes=(3,))
    kinds = [type(getattr(local, name)) for name in ("epochs", "batch_size", "learning_rate", "shuffle")]
    assert kinds == [int, int, float, bool] and type(local.sizes[0]) is int
    assert repr(TopK(np.float64(0.5))) == repr(TopK(0.5)) and type(DLG(iterations=np.int64(3)).iterations) is int


@dataclass(frozen=True)
class Small:
    half: Annotated[float, settings.Range(0, 0.5, note="more is not wise")] = 0.0
    bound: settings.LengthOrInfinity = 1.0
    rate: settings.Positive = 1.0
    many: settings.Whole | None = None
    either: DLG | TopK = TopK(0.5)
    table: dict[str, int] | None = None

    def __post_init__(self) -> None:
        settings.check(self)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"half": 0.6}, "half must lie in [0, 0.5], got 0.6; more is not wise"),
        ({"bound": 0}, "bound must be a number > 0, got 0; the largest is 1e+18, or infinity"),
        ({"rate": math.inf}, "rate must be a finite number > 0, got inf"),
        ({"many": 0}, "many must be a whole number >= 1, got 0"),
        ({"either": "DLG"}, "either must be a DLG or a TopK, got 'DLG'"),
        ({"table": [1]}, "table must be a dict, got [1]"),
    ],
)
def test_the_message_says_what_is_expected(given, message):
    with pytest.raises(ValueError) as refused:
        Small(**given)
    assert str(refused.value) == message


def test_what_fits_stays():
    small = Small(half=0.5, bound=math.inf, rate=1e300, many=10**30, either=DLG(), table={})
    assert (small.bound, small.rate, small.many) == (math.inf, 1e300, 10**30)


def test_several_values_are_held_one_by_one():
    assert settings.each("sizes", settings.Whole, [np.int64(2), 3]) == (2, 3)
    with pytest.raises(ValueError, match="each of sizes must be a whole number >= 1, got True"):
        settings.each("sizes", settings.Whole, (True,))
    with pytest.raises(ValueError, match="sizes must be a sequence, got 3"):
        settings.each("sizes", settings.Whole, 3)


def test_an_attack_in_two_rounds_repeats_one_that_it_can():
    with pytest.raises(ValueError, match="attack must be a DLG or an InvertingGradients, got LearningToInv"):
        Rereading(LearningToInvert(PHOTOS))
