"""What the ledger is told of chapter 7: every measure that the claims declare, and what those mean that compare."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from reprolib.book import claims
from reprolib.experiments.measures import precode as measures
from reprolib.experiments.networks import Attacked
from reprolib.measure.entries import Measured

PAPER = claims.load(Path(__file__).resolve().parent.parent / "claims" / "precode.yml")
VICTIMS = ("MLP", "LeNet")


@dataclass(frozen=True)
class Search:
    iterations: int


def attacked(identified, ssim=None, objective=0.5, psnr=20.0):
    """A run of single images, each under a network of its own."""
    count = len(identified)
    columns = {"network": range(count), "trial": range(count), "identified": [bool(hit) for hit in identified]}
    columns |= {"ssim": ssim or [0.1 + 0.01 * i for i in range(count)], "objective": objective, "psnr": psnr}
    return Attacked(pd.DataFrame(columns), None, None)


def value(entry):
    return (entry.interval if isinstance(entry, Measured) else entry).value


ALL, NONE, HALF = [1] * 8, [0] * 8, [1, 0] * 4


def losses(case, loss, entropy, accuracy):
    rows = [
        {"run": run, "epochs": epochs, "test_loss": loss + 0.1 * run, "test_entropy": entropy + 0.1 * run}
        | {"test_accuracy": accuracy, "case": case}
        for run in (0, 1, 2)
        for epochs in (0, 9)
    ]
    return pd.DataFrame(rows)


def swept(part, everything):
    runs = {"whole": ALL, "partial": part, "partial, all": everything}
    return {(f"std {std}", kind): attacked(hits) for std in (0.01, 0.1) for kind, hits in runs.items()}


def plans():
    names = {name for _, name in measures.COUNTERED.values()} | {"B2+B3 upstream, no noise"}
    return {victim: {name: (Search(300), 8) for name in names} for victim in VICTIMS}


def entries():
    """All that the notebook enters, of runs made up."""
    runs, hits = {victim: attacked(ALL) for victim in VICTIMS}, {victim: attacked(NONE) for victim in VICTIMS}
    both = {(victim, kind): attacked(HALF) for victim in VICTIMS for kind in ("plain", "unchanged")}
    truth = pd.DataFrame({"trial": range(8), "tensors": "all", "image": "true", "noise": "fresh", "distance": 0.9})
    closed = pd.DataFrame({"image": [0.0] * 8, "noise": 0.0, "label": True})
    aims = ("no defense", "unchanged", "upstream, no noise", "upstream, recovered noise")
    trained = pd.concat([attacked(HALF).scores.assign(aim=aim) for aim in aims])
    grown = {(n, case): attacked(ALL) for n in (1, 8) for case in ("plain", "PRECODE, upstream, no noise")}
    table = pd.DataFrame({"accuracy": [0.4, 0.5, 0.6]})
    costs = {(victim, training): table for victim in VICTIMS for training in ("plain", "precode")}
    long = pd.concat([losses("plain", 6, 6, 0.4), losses("PRECODE", 3, 2, 0.3)])
    found = measures.unchanged(runs, hits, 300) | measures.hundred_classes(both, 300) | measures.patient(both, 1000)
    found |= measures.truth(truth, hits["MLP"]) | measures.closed_form({victim: closed for victim in VICTIMS})
    found |= measures.countered(
        {victim: dict.fromkeys(plan, runs[victim]) for victim, plan in plans().items()}, plans()
    )
    found |= measures.trained(trained) | measures.batches(grown, 8) | measures.costs(costs, 100)
    found |= measures.overfitting(long, 9, 2000, 100) | measures.perturbed(swept(NONE, ALL), (0.01, 0.1), 8, 300)
    layer = pd.DataFrame({"trial": range(8), "parameter": "hidden1.weight", "length": 1.0})
    found |= measures.lengths(layer, layer)
    return found | measures.placed(attacked(NONE), attacked(ALL), 300)


def test_every_measure_that_the_claims_declare_is_entered_and_no_other():
    assert entries().keys() == PAPER.measures.keys()


@pytest.mark.parametrize("claim", [c for c in PAPER.claims if c.criteria], ids=lambda claim: claim.id)
def test_a_claim_that_an_attack_fails_or_succeeds_has_its_undefended_control(claim):
    for criterion in claim.criteria:
        if "identified" in criterion.measure and not claim.id.startswith("b-trained"):
            assert claim.gate is not None and claim.gate.measure.startswith("plain_")


def test_a_distance_counts_as_gone_to_zero_within_the_printed_range():
    runs = {(victim, kind): attacked(HALF) for victim in VICTIMS for kind in ("plain", "unchanged")}
    runs["MLP", "plain"] = attacked(ALL, objective=[0.0, 0.0102, 0.0103, 0.5] * 2)
    runs["MLP", "unchanged"] = attacked(NONE)
    found = measures.patient(runs, 1000)
    assert value(found["plain_mlp_long_within"]) == 0.5 and value(found["naive_mlp_long_identified"]) == 0
    assert value(found["naive_lenet_long_identified"]) == value(found["plain_lenet_long_identified"]) == 0.5
    assert {entry.conditions["budget"] for entry in found.values()} == {"1000 iterations"}


def test_partial_perturbation_is_compared_at_every_level_and_under_both_attackers():
    found = measures.perturbed(swept(NONE, HALF), (0.01, 0.1), 8, 300)
    assert value(found["ppp_identified_gain"]) == 1 and value(found["ppp_all_identified_gain"]) == 0.5
    assert found["ppp_identified_gain"].interval.clusters == 8, "networks, not levels, are the clusters"


def test_gradients_upstream_are_compared_by_their_length():
    names = {"hidden1.weight": (3.0, 1.0), "hidden2.weight": (4.0, 2.0), "head.weight": (9.0, 100.0)}
    rows = [(trial, name, *both) for trial in range(6) for name, both in names.items()]
    table = pd.DataFrame(rows, columns=["trial", "parameter", "plain", "precode"])
    found = measures.lengths(*(table.rename(columns={kind: "length"}) for kind in ("plain", "precode")))
    assert value(found["upstream_length_ratio"]) == pytest.approx(5**0.5)


def test_long_training_is_told_with_the_divergence_without_it_and_by_accuracy():
    long = pd.concat([losses("plain", 6, 6, 0.4), losses("PRECODE", 3, 2, 0.3)])
    found = measures.overfitting(long, 9, 2000, 100)
    assert 1.9 < value(found["test_loss_ratio"]) < 2.1 < value(found["test_entropy_ratio"])
    assert value(found["overfit_accuracy_drop"]) == pytest.approx(0.1)
    assert found["test_loss_ratio"].conditions == {"scale": "2,000 training images", "budget": "9 epochs of Adam"}


def test_trained_networks_without_a_defense_stand_beside_those_with_it():
    tables = {"no defense": HALF, "unchanged": ALL, "upstream, no noise": NONE, "upstream, recovered noise": ALL}
    found = measures.trained(pd.concat([attacked(hits).scores.assign(aim=aim) for aim, hits in tables.items()]))
    shares = {name: value(found[f"trained_{name}_identified"]) for name in ("plain", "unchanged", "omit", "recovered")}
    assert shares == {"plain": 0.5, "unchanged": 1, "omit": 0, "recovered": 1}
