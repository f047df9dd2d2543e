"""Every attack is called alike: one victim or several, one trial or many, with snapshots or without."""

import inspect
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from reprolib import attacks, data, models
from reprolib.attacks import Attack
from reprolib.defenses import GradDefense
from reprolib.federated.client import SharedUpdate, ThreatModel, share
from reprolib.models import Victims
from reprolib.servers import Imprint

SHAPE, CLASSES, TRIALS = (3, 8, 8), 4, 3
HIDDEN = 6
THREAT = ThreatModel(labels="known", defense_known=True)


class Inverse(nn.Module):
    """A generator, a decoder and an inverse of the head's rows in one: a linear layer and a sigmoid."""

    features = latent_dim = HIDDEN
    image_shape, trunk = SHAPE, ""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(HIDDEN, 3 * 8 * 8)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))

    def forward(self, z: Tensor) -> Tensor:
        return self.layer(z).sigmoid().view(-1, *SHAPE)


def images(count):
    pixels = torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(5))
    names = tuple("abcd")
    return data.ImageSet("tiny", "train", pixels, torch.arange(count) % CLASSES, names, "drawn for this test", "tiny")


ATTACKS = {
    "DLG": attacks.DLG(iterations=2, max_iter=3),
    "IDLG": attacks.IDLG(iterations=2, max_iter=3),
    "InvertingGradients": attacks.InvertingGradients(iterations=3, starts=1),
    "GradInversion": attacks.GradInversion(iterations=3, warmup=1, seeds=1, batch_norm=0.0, gradient=1.0),
    "GGL": attacks.GGL(Inverse().double(), evaluations=12, population=4),
    "GRNN": attacks.GRNN(iterations=2, noise_dim=4, width=2),
    "HCGLA": attacks.HCGLA(Inverse().double(), iterations=2, max_iter=3),
    "FGLA": attacks.FGLA(Inverse().double(), impute_bias=True),
    "AnalyticRecovery": attacks.AnalyticRecovery(),
    "CocktailParty": attacks.CocktailParty(iterations=3),
    "DerivativeICA": attacks.DerivativeICA(iterations=5),
    "LearningToInvert": attacks.LearningToInvert(images(20), hidden=4, epochs=1, minibatch=4),
    "MaskGuided": attacks.MaskGuided(),
    "MasksAtOnce": attacks.MasksAtOnce(),
    "PlainDLG": attacks.PlainDLG(iterations=1),
    "Rereading": attacks.Rereading(attacks.DLG(iterations=2, max_iter=3)),
    "RobbingTheFed": attacks.RobbingTheFed(),
    "SPEAR": attacks.SPEAR(),
    "TrapRows": attacks.TrapRows(),
}
REREADABLE = GradDefense(images(4), slices=4, perturbed=2, std=1e-3)
BELONGS_TO_ONE = {"FGLA": "decoder", "HCGLA": "generator"}
KEEP_NONE = {"AnalyticRecovery", "CocktailParty", "DerivativeICA", "FGLA", "LearningToInvert", "MaskGuided", "PlainDLG"}
KEEP_NONE |= {"MasksAtOnce", "RobbingTheFed", "SPEAR", "TrapRows"}
FOUND = {"RobbingTheFed": HIDDEN, "TrapRows": HIDDEN}
"""Images that an attack returns for a batch of one, where it returns one for each row of a layer."""


def victim(seed, name=""):
    activation = "relu" if name in ("MaskGuided", "MasksAtOnce", "SPEAR") else "sigmoid"
    network = models.build("mlp", CLASSES, SHAPE, seed=seed, width=HIDDEN, activation=activation).double()
    return Imprint(num_bins=HIDDEN, cdf="gaussian").broadcast(network) if name == "RobbingTheFed" else network


def shared(network, name, trials=slice(None)):
    """Updates of one image each; those that Rereading attacks grant a defense that it can reread."""
    pixels, labels = images(TRIALS).images[:, None], torch.arange(TRIALS)[:, None]
    defense = REREADABLE if name == "Rereading" else None
    threat = replace(THREAT, server="malicious architecture") if name == "RobbingTheFed" else THREAT
    return share(network, pixels[trials].double(), labels[trials], threat=threat, defense=defense)


def called(name, model, update, seed=1, **more):
    return ATTACKS[name](model, update, seed, progress=False, **more)


def test_these_are_all_attacks():
    every = set(attacks.__all__) - {"Attack", "History", "Reconstruction", "build", "linear_inputs"}
    assert set(ATTACKS) == every, f"ATTACKS in tests/test_attack_protocol.py: a case of {set(ATTACKS) ^ every}"


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_called_as_the_protocol_says(name):
    said = inspect.signature(Attack.__call__).parameters
    own = inspect.signature(type(ATTACKS[name]).__call__).parameters
    assert list(own) == list(said)
    assert [each.default for each in own.values()] == [each.default for each in said.values()]


@pytest.mark.parametrize("name", ATTACKS)
def test_one_victim_and_trials_that_do_not_know_of_each_other(name):
    network = victim(0, name)
    update = shared(network, name)
    found = called(name, network, update)
    many = FOUND.get(name, 1)
    assert found.raw.shape == found.images.shape == (TRIALS, many, *SHAPE) and found.raw.isfinite().all()
    assert found.labels.shape == (TRIALS, many) and found.labels.dtype == torch.int64
    for column in (found.objective, found.evaluations, found.starts, found.diverged):
        assert column.shape == (TRIALS,)
    assert found.evaluations.dtype == found.starts.dtype == torch.int64 and found.diverged.dtype == torch.bool
    assert found.history is None and found.seconds > 0
    alone = called(name, network, update.select(slice(0, 1)))
    torch.testing.assert_close(alone.raw, found.raw[:1])
    assert torch.equal(alone.labels, found.labels[:1])


@pytest.mark.parametrize("name", ATTACKS)
def test_several_victims(name):
    networks = [victim(seed, name) for seed in range(TRIALS)]
    several = Victims.of(networks)
    own = [shared(network, name, slice(t, t + 1)) for t, network in enumerate(networks)]
    update = SharedUpdate.join(own, several)
    if name in BELONGS_TO_ONE:
        with pytest.raises(ValueError, match=f"a {BELONGS_TO_ONE[name]} belongs to one trunk, but these are several"):
            called(name, several, update)
        return
    found = called(name, several, update)
    many = FOUND.get(name, 1)
    assert found.raw.shape == (TRIALS, many, *SHAPE) and found.labels.shape == (TRIALS, many)
    for t, network in enumerate(networks):
        if name == "LearningToInvert" and t > 0:  # its perceptron is drawn for the call, not for the trial
            continue
        alone = called(name, network, own[t], [(1, t)])
        torch.testing.assert_close(alone.raw, found.raw[t : t + 1])


@pytest.mark.parametrize("name", ATTACKS)
def test_snapshots_are_kept_or_refused(name):
    network = victim(0, name)
    update = shared(network, name)
    if name in KEEP_NONE:
        with pytest.raises(ValueError, match=f"{name} keeps no snapshots, got 2"):
            called(name, network, update, snapshots=(0, 1))
        return
    history = called(name, network, update, snapshots=(0, 1)).history
    assert history.iterations == [0, 1]
    assert history.objective.shape == history.evaluations.shape == (2, TRIALS)
    assert history.images.shape == (2, TRIALS, 1, *SHAPE)
    assert history.soft_labels.shape == (2, TRIALS, 1, CLASSES)
    late = called(name, network, update, snapshots=(1, 10**5, 10**5 + 1)).history
    assert late.iterations == [1, 10**5, 10**5 + 1], "a search that has ended stays where it is"
    assert torch.equal(late.images[1], late.images[2]) and torch.equal(late.images[0], history.images[1])


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize(
    ("snapshots", "message"),
    [
        (3, "snapshots must be a sequence, got 3"),
        (("a",), "each of snapshots must be a whole number >= 0, got 'a'"),
        ((-1,), "each of snapshots must be a whole number >= 0, got -1"),
        ((True,), "each of snapshots must be a whole number >= 0, got True"),
        (None, "snapshots must be a sequence, got None"),
    ],
)
def test_snapshots_that_are_none_are_refused_in_one_line(name, snapshots, message):
    network = victim(0, name)
    with pytest.raises(ValueError) as refused:
        called(name, network, shared(network, name), snapshots=snapshots)
    assert str(refused.value) == message


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("update", [{}, None])
def test_what_is_no_update_is_refused_in_one_line(name, update):
    with pytest.raises(ValueError, match=f"update must be a SharedUpdate, .*, got {type(update).__name__}$"):
        called(name, victim(0, name), update)
