"""Defenses: what a client does to its update before sharing it, and what an informed attacker makes of it.

One file each. No defense knows which attack reads its update.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from reprolib.defenses.ats import ATS
from reprolib.defenses.base import Defense
from reprolib.defenses.clipping import Clipping
from reprolib.defenses.compose import Compose
from reprolib.defenses.dpsgd import DPSGD, reconstruction_bound
from reprolib.defenses.dual_pruning import DualPruning
from reprolib.defenses.estimated import KeptEntries, NormOfUpdate, RateOfUpdate
from reprolib.defenses.feedback import AfterFeedback, with_feedback
from reprolib.defenses.graddefense import GradDefense
from reprolib.defenses.inspection import Inspection
from reprolib.defenses.mixing import IntraInstaHide, MixUp
from reprolib.defenses.noise import GaussianNoise, LaplaceNoise
from reprolib.defenses.outpost import Outpost
from reprolib.defenses.precision import CastPrecision
from reprolib.defenses.precode import PRECODE, ConvolutionalBottleneckSketch, Counter, PartialPerturbation
from reprolib.defenses.pruning import TopK
from reprolib.defenses.rescale import Rescale
from reprolib.defenses.sign import SignCompression
from reprolib.defenses.soteria import KeptColumns, Soteria, pruned_features

__all__ = [
    "ATS",
    "DPSGD",
    "PRECODE",
    "AfterFeedback",
    "CastPrecision",
    "Clipping",
    "Compose",
    "ConvolutionalBottleneckSketch",
    "Counter",
    "Defense",
    "DualPruning",
    "GaussianNoise",
    "GradDefense",
    "Inspection",
    "IntraInstaHide",
    "KeptColumns",
    "KeptEntries",
    "LaplaceNoise",
    "MixUp",
    "NormOfUpdate",
    "Outpost",
    "PartialPerturbation",
    "RateOfUpdate",
    "Rescale",
    "SignCompression",
    "Soteria",
    "TopK",
    "build",
    "describe",
    "pruned_features",
    "reconstruction_bound",
    "statistics",
    "with_feedback",
]

_KNOWN: dict[str, type[Defense]] = {
    defense.__name__: defense
    for defense in (
        GaussianNoise,
        LaplaceNoise,
        CastPrecision,
        TopK,
        KeptEntries,
        RateOfUpdate,
        Rescale,
        Clipping,
        NormOfUpdate,
        SignCompression,
        DualPruning,
        DPSGD,
        GradDefense,
        Outpost,
        ATS,
        MixUp,
        IntraInstaHide,
        Inspection,
        Soteria,
        KeptColumns,
        PRECODE,
        ConvolutionalBottleneckSketch,
        PartialPerturbation,
        Compose,
    )
}


def build(name: str, **settings: Any) -> Defense:
    """The defense of this class name, for names that come from a file or a command line.

    Errors: ValueError for an unknown name or setting, listing the known ones, besides the defense's own.
    """
    if name not in _KNOWN:
        raise ValueError(f"unknown defense {name!r}: known defenses are {', '.join(_KNOWN)}")
    known = [field.name for field in fields(_KNOWN[name])]
    if unknown := [setting for setting in settings if setting not in known]:
        raise ValueError(f"unknown settings {unknown} of {name}: known settings are {', '.join(known)}")
    try:
        return _KNOWN[name](**settings)
    except TypeError as error:  # a setting without default is missing
        raise ValueError(f"{name} needs more settings: {error}") from error


def describe(defense: Defense | None) -> str:
    """A short label for tables: "Gaussian noise, std 0.01", or "no defense" for None."""
    return "no defense" if defense is None else str(defense)


def statistics(clean: dict[str, Tensor], shared: dict[str, Tensor]) -> pd.DataFrame:
    """How much a defense changed, a row a parameter and a last row "all": an absolute noise level says nothing alone.

    clean, shared: name -> tensors of equal shape, before and after the defense.
    Columns: parameter, entries, rms (of the clean gradient), relative_error (RMS of the change / rms: rho = std / rms
    for noise), zeroed (share of all entries that the defense turned from nonzero into exact zero).
    Errors: ValueError for other names or shapes. Source: this book.
    """
    if {name: g.shape for name, g in clean.items()} != {name: g.shape for name, g in shared.items()}:
        raise ValueError("clean and shared must hold the same parameters in the same shapes")
    pairs = [(name, clean[name].flatten().double(), shared[name].flatten().double()) for name in clean]
    pairs.append(("all", torch.cat([g for _, g, _ in pairs]), torch.cat([s for _, _, s in pairs])))
    rows = [
        {
            "parameter": name,
            "entries": g.numel(),
            "rms": float(g.square().mean().sqrt()),
            "relative_error": float(((s - g).square().mean() / g.square().mean()).sqrt()),
            "zeroed": float(((g != 0) & (s == 0)).double().mean()),
        }
        for name, g, s in pairs
    ]
    return pd.DataFrame(rows)
