"""Error feedback: what is withheld is sent later, and what an attacker who saw the round before knows of it."""

from dataclasses import replace

import pytest
import torch

from reprolib import data, models
from reprolib.attacks.matching import distance
from reprolib.defenses import AfterFeedback, DualPruning, SignCompression, TopK, with_feedback
from reprolib.federated import client
from reprolib.federated.client import share
from reprolib.federated.threat import ThreatModel


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", "train", 40)


@pytest.fixture(scope="module")
def model(digits):
    return models.build("lenet", digits.num_classes, digits.image_shape, seed=0)


def rounds_of(model, digits, defense, count):
    """Clean gradients, shared ones and residuals of `count` rounds, an image each."""
    x, y = digits.batches(1, count, seed=0)
    rounds, withheld = [], {}
    for i in range(count):
        clean = {name: g[0] for name, g in share(model, x[i, None], y[i, None]).gradients.items()}
        random = client.generator(0, i)
        shared, withheld = with_feedback(defense, clean, withheld, model, x[i], y[i], random)
        rounds.append((clean, shared, withheld))
    return rounds


@pytest.mark.parametrize("defense", [TopK(0.8), DualPruning(), SignCompression("mean_abs")])
def test_nothing_is_lost_what_was_not_sent_is_still_withheld(model, digits, defense):
    rounds = rounds_of(model, digits, defense, 4)
    for name, left in rounds[-1][2].items():
        clean, sent = (sum(part[i][name] for part in rounds) for i in (0, 1))
        torch.testing.assert_close(sent + left, clean, rtol=1e-4, atol=1e-4)


def test_the_first_round_is_the_defense_itself(model, digits):
    ((clean, shared, _),) = rounds_of(model, digits, TopK(0.8), 1)
    alone = TopK(0.8).protect(clean, model, None, None, client.generator(0, 0))
    assert all(torch.equal(shared[name], g) for name, g in alone.items())


def test_the_true_gradient_costs_nothing_to_who_knows_the_round_before(model, digits):
    (_, before, _), (clean, shared, _) = rounds_of(model, digits, TopK(0.8), 2)
    x, y = digits.batches(1, 2, seed=0)
    update = share(model, x[1:], y[1:], threat=ThreatModel(labels="known"))
    update = replace(update, gradients={name: g[None] for name, g in shared.items()})
    true = {name: g[None] for name, g in clean.items()}
    informed = AfterFeedback(TopK(0.8), {name: g[None] for name, g in before.items()})
    first = torch.zeros(1, dtype=torch.int64)
    assert distance(true, informed.counter(model, update), first).item() <= 1e-9
    # read as if there were no residual, the truth is wrong by what earlier rounds left
    assert distance(true, TopK(0.8).counter(model, update), first).item() > 1e-3
    for name, slack in informed.counter(model, update).slack.items():
        sent_twice = (before[name] != 0) & (shared[name] != 0)
        assert (slack[0][sent_twice] == 0).all()
    assert str(informed) == "pruning 80%, with error feedback"


def test_a_round_before_of_another_model_is_refused(model, digits):
    x, y = digits.batches(1, 1, seed=0)
    update = share(model, x, y)
    first, *others = update.gradients
    for before in (
        {name: update.gradients[name] for name in others},
        update.gradients | {first: update.gradients[first][..., :1]},
        update.gradients | {"another": torch.zeros(1, 2)},
    ):
        with pytest.raises(ValueError, match="before has shape .* of '.*', this round's update"):
            AfterFeedback(TopK(0.5), before).counter(model, update)


def test_a_defense_that_bounds_nothing_is_refused(model, digits):
    x, y = digits.batches(1, 1, seed=0)
    update = share(model, x, y)
    for defense in (SignCompression(), DualPruning()):
        with pytest.raises(ValueError, match="sets no bound to what a client withholds"):
            AfterFeedback(defense, update.gradients).counter(model, update)
