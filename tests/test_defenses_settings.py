"""Settings of defenses that are none: one line names the argument, or what is shared is finite."""

import math
from dataclasses import MISSING, fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reprolib import data, models
from reprolib.defenses import (
    DPSGD,
    Clipping,
    Compose,
    Defense,
    GaussianNoise,
    LaplaceNoise,
    MixUp,
    Rescale,
    TopK,
    precode,
)
from reprolib.defenses.graddefense import Reread
from reprolib.federated.client import share

PHOTOS = data.load("photos", "train", 8)
NET = models.build("mlp", 10, (3, 32, 32), 0)
NEEDED = {
    **{"root": PHOTOS, "partners": PHOTOS, "defenses": [TopK(0.5)], "defense": TopK(0.5), "perturbation": TopK(0.5)},
    **{"std": 0.1, "max_norm": 1.0, "noise_multiplier": 1.0, "prune_ratio": 0.5, "factor": 2.0, "dtype": "bf16"},
    **{"pruning_rate": 10.0, "before": {}, "observation": Defense().counter(NET, share(NET, *PHOTOS.batches(2, 1)))},
}


def _below(kind):
    return [kind, *(found for child in kind.__subclasses__() for found in _below(child))]


KINDS = sorted(
    {kind for kind in _below(Defense)[1:] if kind.__module__.startswith("reprolib.defenses")} | {precode.Counter},
    key=lambda kind: kind.__qualname__,
)
SETTINGS = [(kind, field.name) for kind in KINDS for field in fields(kind)]
MAY_BE = {
    "expected_batch": (None,),
    "max_norm": (math.inf,),
    "factor": (-1,),
    **{name: (True,) for name in ("augment", "clip", "signed_denominator", "penalty")},
    "before": ("x",),  # of a layer's name, which sharing looks up
    "layer": ("x",),
}


def made(kind, name, value):
    needed = [field.name for field in fields(kind) if field.default is field.default_factory is MISSING]
    return kind(**{field: NEEDED[field] for field in needed} | {name: value})


def shared_is_finite(defense):
    update = share(NET, *PHOTOS.batches(2, 1), defense=defense)
    return all(gradient.isfinite().all() for gradient in update.gradients.values())


@pytest.mark.parametrize(("kind", "name"), SETTINGS)
def test_a_setting_of_another_kind_is_refused_by_its_name(kind, name):
    for value in (10**30, 1e300, -1e300, math.nan, math.inf, -math.inf, -1, True, "x", None):
        if value not in MAY_BE.get(name, ()):
            with pytest.raises(ValueError) as refused:
                made(kind, name, value)
            assert "\n" not in str(refused.value) and (repr(value) in str(refused.value) or name == "root")
            assert name in str(refused.value) or name in ("defenses", "perturbation")  # their defense is named


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianNoise(1e300), r"std must be a finite number >= 0, got 1e.300; the largest is 1e.18"),
        (lambda: LaplaceNoise.from_variance(1e300), r"variance must be a finite number >= 0, got 1e.300; the l"),
        (lambda: Clipping(1e300), r"max_norm must be a number > 0, got 1e.300; the largest is 1e.18, or infinity"),
        (lambda: DPSGD(1e18, 10), r"max_norm times noise_multiplier must be a finite number >= 0, got 1e.19"),
        (lambda: DPSGD(1.0, 1.0, sample_rate=True), r"sample_rate must lie in \(0, 1\], got True"),
        (lambda: MixUp(PHOTOS, largest="x"), r"largest must lie in \(0, 1\], got 'x'"),
        (lambda: MixUp(PHOTOS, largest=0.25), r"largest must lie in \(1 / k, 1\] = \(0.25, 1\], got 0.25"),
        (
            lambda: Rescale(-1e300),
            r"factor must be a finite number other than 0 and of at most 1e.18 in size, got",
        ),
        (lambda: precode.Counter(penalty="no"), "penalty must be True or False, got 'no'"),
        (lambda: Reread(None), "observation must be an Observation, got None"),
    ],
)
def test_the_message_says_what_is_expected(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("defense", [GaussianNoise(1e18), LaplaceNoise(1e18), Rescale(-1e18), DPSGD(1e18, 1.0)])
def test_the_largest_settings_share_what_is_finite(defense):
    assert shared_is_finite(defense) and shared_is_finite(Compose([Clipping(1e18), TopK(0.5)]))


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from(SETTINGS),
    st.floats() | st.integers(-3, 12) | st.booleans() | st.none() | st.text(max_size=3) | st.lists(st.text(max_size=2)),
)
def test_any_setting_is_refused_in_one_line_or_shares_what_is_finite(setting, value):
    try:
        defense = made(*setting, value)
        assert not isinstance(defense, Defense) or shared_is_finite(defense)
    except ValueError as refused:
        assert str(refused) and "\n" not in str(refused)
