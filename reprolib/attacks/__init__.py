"""The attacks, one file each, with what they share: `matching`, `labels` and `priors`.

No attack asks which defense it faces: it compares with what the defense's `counter` says of the update.

An attack is called with the victim and the update, and returns a `Reconstruction`. Here an image is read off the first
layer, exactly; an attack that searches is called in the same way:

>>> from reprolib import attacks, data, models
>>> from reprolib.federated import client
>>> from reprolib.measure import metrics
>>> photos = data.load("photos", count=3)
>>> images, labels = photos.batches(size=1, count=3)
>>> victim = models.build("mlp", num_classes=10, image_shape=(3, 32, 32), seed=0)
>>> update = client.share(victim, images, labels)
>>> found = attacks.AnalyticRecovery()(victim, update)
>>> scores = metrics.score(found, images, labels, pool=photos)
>>> scores[["label_correct", "identified"]].all().tolist(), scores.psnr.tolist()  # 60 dB is the most that counts
([True, True], [60.0, 60.0, 60.0])
>>> searched = attacks.DLG(iterations=2)(victim, update, seed=1, progress=False)
>>> searched.images.shape, searched.labels.shape
(torch.Size([3, 1, 3, 32, 32]), torch.Size([3, 1]))
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from reprolib.attacks.analytic import AnalyticRecovery
from reprolib.attacks.cocktail_party import CocktailParty, DerivativeICA
from reprolib.attacks.dlg import DLG
from reprolib.attacks.fgla import FGLA
from reprolib.attacks.ggl import GGL
from reprolib.attacks.gradinversion import GradInversion
from reprolib.attacks.grnn import GRNN
from reprolib.attacks.hcgla import HCGLA
from reprolib.attacks.idlg import IDLG
from reprolib.attacks.ig import InvertingGradients
from reprolib.attacks.lti import LearningToInvert
from reprolib.attacks.mask_guided import MaskGuided
from reprolib.attacks.masks_at_once import MasksAtOnce
from reprolib.attacks.plain import PlainDLG
from reprolib.attacks.reconstruction import Attack, History, Reconstruction
from reprolib.attacks.rereading import Rereading
from reprolib.attacks.rtf import RobbingTheFed, TrapRows
from reprolib.attacks.spear import SPEAR
from reprolib.federated.closed_form import linear_inputs

__all__ = [
    "DLG",
    "FGLA",
    "HCGLA",
    "GGL",
    "GRNN",
    "IDLG",
    "AnalyticRecovery",
    "Attack",
    "CocktailParty",
    "DerivativeICA",
    "GradInversion",
    "History",
    "InvertingGradients",
    "LearningToInvert",
    "MaskGuided",
    "MasksAtOnce",
    "PlainDLG",
    "Reconstruction",
    "Rereading",
    "RobbingTheFed",
    "TrapRows",
    "SPEAR",
    "build",
    "linear_inputs",
]

_PRESETS = {
    "DLG": (DLG, ("official", "paper", "stable", "first_release")),
    "IDLG": (IDLG, ("official", "paper", "stable")),
    "InvertingGradients": (InvertingGradients, ("official", "paper", "local_steps", "baseline")),
    "GradInversion": (GradInversion, ("paper", "balanced", "breaching", "fgla_stg", "strong")),
}


def build(name: str, preset: str, **settings: Any) -> DLG | IDLG | InvertingGradients | GradInversion:
    """The attack of this class name with a preset's settings, some of them changed, for names that come from a table.

    name: DLG, IDLG, InvertingGradients or GradInversion; the other attacks are made by their class.
    Errors: ValueError for an unknown name, preset or setting, listing the known ones, besides the attack's own.
    """
    if name not in _PRESETS:
        raise ValueError(f"unknown attack {name!r}: known attacks are {', '.join(_PRESETS)}")
    attack, presets = _PRESETS[name]
    if preset not in presets:
        raise ValueError(f"unknown preset {preset!r} of {name}: known presets are {', '.join(presets)}")
    known = [field.name for field in fields(attack) if field.init]
    if unknown := [setting for setting in settings if setting not in known]:
        raise ValueError(f"unknown settings {unknown} of {name}: known settings are {', '.join(known)}")
    return replace(getattr(attack, preset)(), **settings)
