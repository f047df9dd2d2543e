"""Fixed numbers of metrics, intervals, pairings, optimisers and sets of images."""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
from fixed import SHAPE, SINGLE, case, classes, drawn, images_of, refused
from torch import Tensor

from reprolib import attacks, data
from reprolib.data import pictures
from reprolib.data.imageset import ImageSet
from reprolib.measure import ends, intervals, metrics, pairing, registration, samples
from reprolib.optimizers import (
    LBFGS,
    BatchedLBFGS,
    CyclicLBFGS,
    adam,
    cma_es,
    langevin_adam,
    lbfgs,
    ramp,
    rmsprop,
    signed_adam,
    warm_cosine,
)

LARGER = (3, 13, 12)

FLOAT = 1e-4
"""rtol of what metrics compute in float32 on purpose, as a screen shows it."""


def reconstruction(raw: Tensor, **others: Tensor) -> attacks.Reconstruction:
    trials, size = raw.shape[:2]
    told = {
        "labels": classes(trials, size, seed=6),
        "objective": drawn(trials, seed=7),
        "evaluations": classes(trials, below=90, seed=8),
        "starts": torch.ones(trials, dtype=torch.int64),
        "diverged": torch.arange(trials) == 1,
    }
    return attacks.Reconstruction(raw=raw, seconds=0.0, **(told | others))


def pairs(shape: tuple[int, int, int] = LARGER) -> tuple[Tensor, Tensor]:
    """Images, and reconstructions of them that are near, mixed up, far off or no numbers."""
    images = drawn(3, 3, *shape)
    raw = images.flip(1) + 0.3 * (drawn(3, 3, *shape, seed=4) - 0.5) * torch.tensor([0.0, 1, 3]).view(3, 1, 1, 1, 1)
    raw[1, 0] = torch.nan
    raw[2, 1] *= 1e3
    return raw, images


@case("metrics of single images", rtol=FLOAT)
def _() -> object:
    found = {}
    for shape in (SHAPE, LARGER):
        raw, images = pairs(shape)
        flat, true = raw.flatten(0, 1), images.flatten(0, 1)
        shown = flat.nan_to_num(0.3).clamp(0, 1)
        hows = (metrics.mse, metrics.psnr, metrics.psnr_dim0, metrics.psnr_ggl, metrics.ssim)
        found[str(shape)] = [how(shown, true) for how in hows] + [metrics.mse(flat, true), metrics.psnr(true, true)]
        found[f"{shape} raw"] = [metrics.match_batches(raw, images), metrics.psnr(flat, true), metrics.ssim(flat, true)]
        found[f"{shape} one"] = metrics.match_batches(raw[:, :1], images[:, :1])
        moved = torch.roll(true, 1, 3)
        found[f"{shape} moved"] = [metrics.registered_psnr(moved[:3], true[:3])]
        pool = torch.cat([true[:2].float(), drawn(5, *shape, seed=9).float(), true[:1].float()])
        grey = torch.full_like(true, 0.5)
        turned = lambda x: torch.stack([x, 1 - x])  # noqa: E731
        found[f"{shape} identified"] = [
            metrics.identify(shown, true.float(), pool),
            metrics.identify(grey, true.float(), pool),
            metrics.identify(1 - shown, true.float(), pool, turned),
            metrics.identify(true[:1].expand_as(true), true, torch.cat([true, true])),
        ]
    features = lambda x: torch.stack([x.mean((1, 2, 3)), x[:, 0, 0, 0], x[:, 1, 2, 3]], 1)  # noqa: E731
    gallery = images_of(20, LARGER)
    found["features"] = metrics.feature_distance(shown, true, features)
    found["in class"] = metrics.identify_in_class(shown, true, classes(9), gallery, features)
    own = gallery.images[:9]
    found["in class, own"] = metrics.identify_in_class(own, own, gallery.labels[:9], gallery, features)
    return found | {"labels": metrics.label_overlap(classes(4, 5), classes(4, 5, seed=7))}


@case("tables of scores", rtol=FLOAT)
def _() -> object:
    raw, images = pairs()
    labels, lost = classes(3, 3), torch.tensor([[True, False, False], [False, True, False], [False, False, True]])
    pool = images_of(30, LARGER)
    scores = metrics.score(reconstruction(raw, lost=lost), images.float(), labels, pool)
    plain = metrics.score(reconstruction(raw[:, :1], labels=labels[:, :1]), images[:, :1], labels[:, :1])
    found = {"score": scores, "single": plain, "units": metrics.units(scores)}
    scores["network"] = [0, 0, 0, 1, 1, 1, 1, 1, 1]
    scores["kind"] = list("aabbabbab")
    found["units of networks"] = metrics.units(scores)
    found["summarised"] = [
        metrics.summarise(scores, by, level) for by, level in (("kind", 0.02), (["kind", "network"], 1e-3))
    ]
    errors = np.array([1e-5, 2e-3, 8e-3, np.nan, np.inf, 3e-4, 1e-3, 1e-4])
    found["curve"] = [metrics.fidelity_curve(errors), metrics.fidelity_curve(errors, (0.1, 1e-4), list("aabbccdd"))]
    return found | {"baselines": metrics.baselines(images, pool, 3, 0.2)}


@case("pairings of unequal numbers", rtol=FLOAT)
def _() -> object:
    raw, images = pairs()
    found, fallback = {}, drawn(*LARGER, seed=8)
    for name, candidates in {"fewer": raw[:, :2], "more": torch.cat([raw, images[:, :2], 1 - images], 1)}.items():
        lost = drawn(*candidates.shape[:2], seed=3) < 0.3
        for some in (None, lost):
            scores = pairing.score(candidates, images, fallback, some)
            found[f"{name} {some is None}"] = [pairing.pair(candidates, images, some), scores, pairing.shares(scores)]
    broken = torch.cat([torch.full_like(raw[:, :1], torch.nan), 0.5 + 0 * raw[:, :1].nan_to_num(0.0), images[:, :2]], 1)
    found["broken"] = pairing.pair(broken, images)
    scores["kind"] = list("aabbabbab")
    return found | {"by kind": pairing.shares(scores, ["kind"])}


@case("images registered", rtol=SINGLE)
def _() -> object:
    smooth = torch.nn.functional.interpolate(drawn(4, 3, 4, 4), (18, 16), mode="bicubic", align_corners=False)
    target = torch.roll(smooth, (1, 2), (2, 3)) * 0.9
    target[3] = drawn(3, 18, 16, seed=5)
    ways = [registration.registered(smooth, target, way) for way in ("translation", "affine")]
    return ways, [(way - target).square().mean((1, 2, 3)) for way in ways]


VALUES = {
    "errors": (np.array([0.3, 1.2, 0.8, 2.5, 0.1, 0.9, 1.7, 0.4, 3.1, 0.6, 0.7, 1.9]), list("aaaabbccccdd")),
    "decibels": (np.array([21.0, 24.5, 19.2, 30.1, 27.7, 22.2, 25.0]), [1, 1, 2, 2, 2, 3, 4]),
}
HITS = {
    "mixed": (np.array([1, 0, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1]), list("aaabbbbcccdd")),
    "all": (np.ones(9), [1, 1, 1, 2, 2, 3, 3, 3, 3]),
    "rare": (np.array([0, 0, 0, 1, 0, 0, 0, 0, 0, 0]), [1, 1, 2, 2, 2, 2, 3, 3, 4, 4]),
}


@case("intervals of values")
def _() -> object:
    found = {}
    for name, (values, clusters) in VALUES.items():
        other = values[::-1] * 1.3 + 0.1
        for units in (None, clusters):
            found[f"{name} {units is None}"] = [
                intervals.mean(values, units),
                intervals.mean(values / 50, units, within=(0.0, 0.61)),
                intervals.difference(values, other, units),
                intervals.mean_difference(values, other[:5], units, None if units is None else [1, 1, 2, 3, 3]),
                intervals.median(values, units),
                intervals.log_mean(values, units),
                intervals.log_ratio(values, other, units),
                intervals.log_mean_ratio(values, other[:5], units, None if units is None else [1, 1, 2, 3, 3]),
                intervals.below(
                    np.append(values, np.nan), np.median(values), None if units is None else [*units, units[0]]
                ),
            ]
        found[f"{name} between"] = intervals.between_share(values, clusters)
    many = np.tile(VALUES["errors"][0], 5).round(1) + np.repeat([0.0, 0.1, 0.2, 0.2, 0.3], 12)
    found["many"] = [
        intervals.median(many),
        intervals.median(many, np.arange(60) // 3),
        intervals.median(many, np.arange(60) // 7),
    ]
    unequal = np.repeat([0, 1, 2, 3], [30, 20, 6, 4])
    found["unequal"] = [
        intervals.median(many, unequal),
        intervals.mean(many, unequal),
        intervals.between_share(many, unequal),
    ]
    tied, places = np.linspace(0, 6, 120), np.arange(120)
    tied[48:75] = 3.0  # of which the median is one
    groups = (places // 6, places // 6 // np.array([1, 2, 3] * 40), places % 7, places // 30)
    found["tied"] = [intervals.median(tied, own) for own in groups]
    diverged = np.append(many, [np.inf, np.nan])
    return found | {
        "diverged": intervals.median(diverged),
        "tied apart": intervals.median(np.repeat([1.0, 2, 3], [9, 30, 8])),
    }


@case("intervals of hits")
def _() -> object:
    found = {}
    for name, (hits, clusters) in HITS.items():
        other = np.roll(hits, 2) * (np.arange(len(hits)) != 4)
        for units in (None, clusters, [0] * len(hits)):
            own = [intervals.proportion(hits, units), intervals.over_chance(hits, 0.1, units)]
            if units != [0] * len(hits):
                own += [intervals.difference(hits, other, units), intervals.mean_difference(hits, other, units, units)]
            found[f"{name} {units}"] = own
        found[f"{name} chances"] = intervals.over_chance(hits, np.linspace(0, 0.5, len(hits)), clusters)
        found[f"{name} between"] = intervals.between_share(hits, clusters)
        found[f"{name} ends"] = [str(own[0]), own[0].width, own[0].ends(100)]
    found["pooled"] = [intervals.pooled([0.5, 1.0, 0.75, 0.25], 4), intervals.pooled([0.5, 1.0], 2)]
    found["needed"] = [intervals.trials_needed(b, each) for b, each in ((0.95, 1), (0.9, 4), (0.5, 3))]
    found["clusters"] = [intervals.clusters_needed(sd, margin) for sd, margin in ((1.0, 0.3), (2.0, 5.0))]
    found["shares"] = intervals.difference([0.5, 1.0, 0.0, 0.5], [0.5, 0.0, 0.0, 0.5])
    return found


@case("what intervals are made of")
def _() -> object:
    sizes, totals = np.array([4.0, 2.0, 7.0, 3.0]), np.array([[3.0, 2, 4, 0], [1.0, 0, 7, 3], [4.0, 2, 7, 3]])
    first, second = (totals, sizes), (totals[::-1] * 0.5, sizes)
    made = [samples.effective_size(totals, sizes, level) for level in (0.95, 0.99)]
    made += [
        samples.effective_size(np.array(3.0), np.array([5.0]), 0.95),
        samples.effective_size(totals, np.ones(4), 0.95),
    ]
    made += [samples.variance_of_mean(totals, sizes), samples.degrees_of_freedom(sizes), samples.t_quantile(0.9, 3.5)]
    made += [ends.clopper_pearson(np.array([0.0, 0.3, 1.0]), np.array([4.0, 7.5, 9.0]), 0.9)]
    made += [ends.recovered(first, second, 0.95, paired) for paired in (True, False)]
    made += [ends.left_out(np.array([4.0, 6.0, 20.5]), 30, 0.95), ends.student_ends(2.0, 0.3, 4.0, 0.95)]
    return made, [own[::10] for own in samples.beta_binomial(totals[0], sizes)]


# --- searches


def bowl(x: Tensor, trials: Tensor) -> tuple[Tensor, Tensor]:
    """A curved objective with another minimum for each trial."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        away = x - torch.linspace(-1, 1, x.shape[1], dtype=x.dtype) * (trials[:, None] + 1)
        value = (away.square() * torch.arange(1, x.shape[1] + 1)).sum(1) + 0.3 * away.pow(4).sum(1) + away.sin().sum(1)
        (slope,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), slope


def steep(x: Tensor, trials: Tensor) -> tuple[Tensor, Tensor]:
    """The same, but that the last trial's leaves the numbers."""
    value, slope = bowl(x, trials)
    lost = (trials == 2) & (x[:, 0] < 0.35)
    return torch.where(lost, torch.nan, value), torch.where(lost[:, None], torch.nan, slope)


def ran(steps: object) -> list:
    return [[state.last.clone(), state.objective.clone(), state.evaluations.clone()] for state in steps]


@case("searches for a minimum")
def _() -> object:
    x, found = drawn(3, 4), {}
    inside = lambda y: y.clamp(-0.5, 0.9)  # noqa: E731
    random = lambda: [torch.Generator().manual_seed(k) for k in range(3)]  # noqa: E731
    for name, objective in {"bowl": bowl, "steep": steep}.items():
        found[name] = {
            "adam": ran(adam(objective, x, 4, 0.1, (0.8, 0.9), (2, 3), inside)),
            "signed": ran(signed_adam(objective, x, 3, 0.2, milestones=(1,))),
            "langevin": ran(langevin_adam(objective, x, 3, ramp(0.3, 3), lambda: drawn(3, 4, seed=3), "pixels")),
            "on gradient": ran(
                langevin_adam(
                    objective, x, 3, warm_cosine(0.3, 3, 1), lambda: drawn(3, 4, seed=3), "gradient", signed=True
                )
            ),
            "rmsprop": ran(rmsprop(objective, x, 3, 0.02, 0.6, 0.8)),
            "cma": ran(cma_es(lambda x, t, o=objective: o(x, t)[0], x, 3, 6, 0.3, random())),
        }
        for search in ("none", "strong_wolfe"):
            for memory in (2, 100):
                how = LBFGS(0.4, 3, history_size=memory, line_search=search)
                found[name][f"lbfgs {search} {memory}"] = ran(lbfgs(objective, x, 3, how))
    blocks = [torch.tensor([0, 2]), torch.tensor([1, 3])]
    for kind in ("whole", "cyclic"):
        how = LBFGS(0.4, 2, max_eval=3)
        own = BatchedLBFGS(bowl, x, how) if kind == "whole" else CyclicLBFGS(bowl, x, blocks, how)
        own.step()
        own.stop(torch.tensor([1]))
        own.step()
        own.restart(torch.tensor([1, 0]), drawn(2, 4, seed=6))
        own.step()
        own.compact()
        found[kind] = [own.minimum, own.alive]
    rates = [warm_cosine(0.3, 20, 4), ramp(0.2, 20), ramp(0.2, 20, 0.3, 0.5)]
    return found | {"rates": [[rate(k) for k in range(20)] for rate in rates]}


# --- sets of images


@case("sets of images", rtol=1e-5)
def _() -> object:
    found = {}
    asked = {"digits": {}, "faces": {}, "mnist": {"count": 20}, "lfw": {"count": 90, "seed": 2}, "celeba": {"size": 9}}
    for name, told in asked.items():
        for split in ("train", "test"):
            own = data.choose(name, split, **told)
            found[f"{name} {split}"] = [own, own.asked, own.mean_image, own.num_classes, own.substitute]
    digits = data.load("digits", count=50, seed=3)
    found["batches"] = [digits.batches(*way) for way in ((1, 5), (3, 4, 2), (4, 3, 1, True))]
    found["after"] = [digits.after(7).images, digits.after(20, 4).labels, digits.subset(slice(3, 9)).labels]
    found["refused"] = [refused(lambda: digits.batches(30, 2)), refused(lambda: data.load("digits", count=10**5))]
    return found | {"order": [pictures.permuted(9, s) for s in (0, 5)], "drawn": pictures.drawn_order(9, 4, 1, "it")}


@case("photographs", rtol=1e-3)
def _() -> object:
    photos = data.load("photos", "train", seed=1)
    return photos.images, photos.labels, photos.classes, photos.batches(2, 3, distinct_labels=True)


@case("catalogues")
def _() -> object:
    made = ImageSet("a", "test", drawn(2, 1, 2, 2).float(), torch.tensor([0, 1]), ("x", "y"), "s", "b")
    table = data.catalogue()
    return table[["name", "present", "classes", "shape"]], made.substitute, list(product(data.NAMES, data.SPLITS))[:4]
