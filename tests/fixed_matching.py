"""Fixed numbers of what attacks share: distances between gradients, priors, label rules, separated features."""

from __future__ import annotations

from itertools import product

import torch
from fixed import SHAPE, case, classes, drawn, refused
from fixed_attacks import FLAT, normed, shared
from torch import Tensor, nn

from reprolib import attacks
from reprolib.attacks import fgla, matching, priors
from reprolib.attacks import labels as rules
from reprolib.attacks.reconstruction import keep_better
from reprolib.federated import client
from reprolib.federated.observation import Observation
from reprolib.models.inputs import Tokens


@case("features separated, refined and their gradients")
def _() -> object:
    weight, bias = drawn(2, 6, 5) - 0.5, drawn(2, 6, seed=3) - 0.6
    given = torch.tensor([[4, 1, 2], [0, 5, 5]])
    cut, none = weight.clone(), bias.clone()
    cut[0, 1], cut[:, 2:, 3], none[0, 4] = 0, 0, 0
    found = [
        fgla.separate(w, b, given, offset, "none", impute)
        for w, b, offset, impute in product(
            (weight, cut), (bias, none, None), ("none", "official", "full"), (False, True)
        )
        if impute or b is not None
    ]
    every = torch.arange(6).expand(2, -1)
    found += [
        fgla.separate(weight, bias, every, missing_offset="none"),
        refused(lambda: fgla.separate(weight, bias, every)),
    ]
    head = drawn(6, 5, seed=4) - 0.5, drawn(6, seed=5)
    features = drawn(2, 3, 5, seed=6)
    gradient = fgla.head_gradients(features, given, *head)
    refined = [fgla.refine(features + 0.1 * drawn(2, 3, 5), gradient[0], given, *head, steps) for steps in (0, 2)]
    return found, gradient, refined


@case("distances between gradients")
def _() -> object:
    target = {"w": drawn(2, 3, 2) - 0.5, "b": drawn(2, seed=3)}
    target["w"][:, 0] = 0
    dummies, rows = {"w": drawn(3, 3, 2, seed=4) - 0.5, "b": drawn(3, seed=5)}, torch.tensor([1, 0, 1])
    readings = [
        Observation(target),
        Observation(target, weight={"w": drawn(2, 1, 2, seed=6)}),
        Observation(target, slack={"w": drawn(2, 3, 2, seed=7) * 0.3}),
        Observation(target, slack={"w": drawn(2, 3, 2, seed=7) * 0.1}, beyond={"w": drawn(2, 1, 1, seed=8) * 0.4}),
        Observation(target, law="laplace", noise_std=0.7),
    ]
    hows = (matching.distance, matching.cosine, matching.norms, matching.per_parameter)
    return [[how(dummies, reading, rows) for how in hows] for reading in readings]


@case("the objective of matching, with all that may come to it")
def _() -> object:
    model, update = normed(batch_norm="exact")
    x, soft, rows = drawn(2, 120, seed=3), update.targets(update.labels, drawn(1)), torch.tensor([1, 0])
    known_of = client.batch_statistics(model, update)

    def parts(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        return x.view(-1, 2, *FLAT), soft[rows]

    found = {}
    for mode in ("eval", "train"):
        objective = matching.Matching(
            model,
            Observation(update.gradients),
            parts,
            prior=lambda images, rows: priors.total_variation(images) * (rows + 1),
            mode=mode,
            compare=matching.cosine,
            layers=tuple(known_of),
            statistics=lambda seen, rows: priors.batch_norm_distance(seen, known_of, rows, 2.0),
        )
        found[mode] = [objective(x, rows), objective.alone(x, rows)]
    images, labels = parts(x, rows)
    halved = lambda g: {name: value / 2 for name, value in g.items()}  # noqa: E731
    found["each"] = matching.dummy_gradients_of_images(client.worker(model, "eval"), images, labels, halved)
    one = matching.dummy_gradients(client.worker(model, "eval"), images[:1], labels[:1])
    return found | {"one": one}


@case("priors of images and latents")
def _() -> object:
    images, latents = drawn(3, 2, *SHAPE) * 3 - 1, drawn(3, 2, 7) * 2 - 1
    hows = (
        priors.squared_total_variation,
        priors.total_variation,
        priors.outside_box,
        priors.mean_squared_variation,
        priors.four_direction_variation,
        priors.summed_variation,
        priors.mean_norm,
    )
    statistics = {name: (drawn(3, 4, seed=k), drawn(3, 4, seed=k + 1)) for k, name in enumerate("ab")}
    targets = {name: (drawn(2, 4, seed=k), drawn(2, 4, seed=k + 1)) for k, name in ((7, "a"), (9, "b"))}
    rows = torch.tensor([1, 0, 1])
    ways = product((1.0, 3.0), (False, True))
    found = [priors.batch_norm_distance(statistics, targets, rows, *way) for way in ways]
    agreed = [priors.consensus(images, way) for way in ("none", "translation")]
    zero = [how(torch.zeros(1, 1, *SHAPE)) for how in hows]
    return (
        [how(images) for how in hows],
        zero,
        found,
        agreed,
        priors.moment_divergence(latents),
        priors.norm_excess(latents),
    )


for _rule in (*rules.RULES, *rules.COUNT_RULES):
    case(f"label rule {_rule}")(lambda rule=_rule: _of_a_rule(rule))


def _of_a_rule(rule: str) -> object:
    weight, bias, found = drawn(4, 5, 3) - 0.6, drawn(4, 5, seed=3) - 0.5, {}
    tied = weight.round(), (2 * bias).round() / 2
    of_one = rows_of_one()
    for name, pair in {
        "drawn": (weight, bias),
        "tied": tied,
        "one": of_one,
        "two": (weight[:, :2], bias[:, :2]),
    }.items():
        if rule in rules.RULES:
            found[name] = rules.infer(*pair, rule)
            continue
        for size in (1, 2, 4, 7):
            call = lambda p=pair, s=size: rules.infer_counts(*p, s, rule)  # noqa: E731
            found[f"{name} {size}"] = refused(call) or call()
    return found


@case("labels of updates, and how many are right by chance")
def _() -> object:
    bias, found = drawn(4, 5, seed=3) - 0.5, {}
    found["ceiling"] = [rules.distinct_ceiling(k, n) for k, n in ((10, 8), (3, 5))]
    found["chance"] = [rules.chance_under_noise(bias, torch.tensor([0, 4, 2, 1]), std) for std in (0.05, 0.5)]
    model, update = shared(2, 3)
    found["given"] = [rules.given(update), rules.of_update(update, "yin"), rules.of_update(update)]
    return found | {"single": rules.from_update(shared(1, 3)[1], "bias")}


def rows_of_one() -> tuple[Tensor, Tensor]:
    """What a single image leaves in the last layer."""
    bias = (drawn(4, 5, seed=9)).softmax(1) - nn.functional.one_hot(torch.tensor([0, 3, 1, 4]), 5)
    return bias[:, :, None] * drawn(4, 1, 3, seed=8), bias


@case("Reconstruction, the better of two, as a client has it")
def _() -> object:
    def made(seed: int, starts: int) -> attacks.Reconstruction:
        objective = drawn(3, seed=seed)
        return attacks.Reconstruction(
            raw=drawn(3, 1, *FLAT, seed=seed) * 2 - 0.5,
            labels=classes(3, 1, seed=seed),
            objective=objective,
            evaluations=classes(3, below=9, seed=seed),
            starts=torch.full((3,), starts),
            diverged=objective > 0.8,
            seconds=0.0,
        )

    table = Tokens(3, drawn(6, 4, seed=3) * torch.arange(1, 7)[:, None] - 0.7)
    entered = table.enter(classes(2, 2, 3, below=6)) + 0.1 * drawn(2, 2, 3, 4)
    return [keep_better(made(1, 1), made(s, 2)) for s in (2, 3)], made(4, 1).images, table.values(entered), table.shape
