"""GradDefense: noise in random slices of equal sensitivity, and the cleaning after. Wang et al., INFOCOM 2022."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import gcd, sqrt
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from reprolib import models, settings
from reprolib.data import ImageSet
from reprolib.defenses.base import Defense, flattened, require_each_image, unflattened
from reprolib.defenses.clipping import clipped
from reprolib.federated import client
from reprolib.federated.observation import Observation, by_trial
from reprolib.federated.update import SharedUpdate
from reprolib.models import Victims

Variant = Literal["fixed", "official"]
Estimator = Literal["vjp_ones", "hutchinson"]

PROBES = 8
"""Random vectors of the Hutchinson estimate; its error falls with their square root."""

FLOOR = 1e-3
"""Variance that an attacker allows a slice without noise, as a share of the noise's."""


@dataclass(frozen=True)
class GradDefense(Defense):
    """Cut the update into slices of about equal sensitivity and add N(0, std^2) to some of them, drawn at random.

    root: public images on which the sensitivity of each parameter's gradient is measured (`sensitivity`).
    slices, perturbed: S and P. std: of the noise. clip: within each noisy slice, clip the part of each image's gradient
    to the norm `std` first, which bounds that part only: there is no epsilon for the whole update.
    estimator: of the sensitivity. variant: "fixed" cuts by `equal_mass_cuts`, "official" as the released code does,
    where neighbouring slices share an entry and most slices can be all but empty (`official_cuts`).
    Errors: ValueError for settings outside their range; when sharing, for more slices than the parameters' sizes can be
    cut into. Source: the released code of Wang et al. 2022 (the paper's text was not available).
    """

    root: ImageSet = field(repr=False)
    slices: settings.Count = 10
    perturbed: settings.CountOrZero = 5
    std: settings.Level = 5e-4
    clip: bool = False
    estimator: Estimator = "vjp_ones"
    variant: Variant = "fixed"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.perturbed > self.slices:
            raise ValueError(f"perturbed={self.perturbed} slices cannot be drawn from slices={self.slices}")

    @property
    def per_image(self) -> bool:  # type: ignore[override]  # of its settings
        return self.clip

    def __str__(self) -> str:
        extras = (", clipped" if self.clip else "") + (", as released" if self.variant == "official" else "")
        return f"GradDefense, std {self.std:.3g} in {self.perturbed} of {self.slices} slices{extras}"

    def protect(
        self, gradients: dict[str, Tensor], model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        if self.std == 0 or self.perturbed == 0:
            return gradients
        flat, cuts = flattened(gradients), self.cuts(model)
        chosen = torch.randperm(self.slices, generator=generator)[: self.perturbed].sort().values.tolist()
        if self.clip:
            each = client.image_gradients(model, images, labels)
            require_each_image(self, gradients, each)
            rows = torch.cat([by_trial(g) for g in each.values()], 1)
            for k in chosen:
                part = self._of(cuts, k)
                flat[part] = clipped({"slice": rows[:, part]}, self.std)["slice"].mean(0)
        for k in chosen:
            part = self._of(cuts, k)
            noise = torch.randn(part.stop - part.start, generator=generator, dtype=flat.dtype)
            flat[part] += self.std * noise.to(flat.device)
        return unflattened(flat, gradients)

    def cuts(self, model: nn.Module) -> list[int]:
        """The bounds of the slices of this model's flattened update, slices + 1 numbers, as the variant has them."""
        sizes = [parameter.numel() for parameter in model.parameters()]
        return (equal_mass_cuts if self.variant == "fixed" else official_cuts)(
            sizes, _sensitivity_of(model, self.root, self.estimator), self.slices
        )

    def counter(self, model: nn.Module, update: SharedUpdate) -> Observation:
        """Every entry may be noisy: Gaussian with the mean variance, (P / S) std^2, as weight of the image prior.

        Which slices are, only a first reconstruction tells: see `reread`.
        """
        variance = self.perturbed / self.slices * self.std**2 / update.threat.clients
        return Observation(target=update.as_gradients(), noise_std=sqrt(variance) * abs(update.scale))

    def reread(self, model: nn.Module | Victims, update: SharedUpdate, dummies: dict[str, Tensor]) -> Reread:
        """What a second attack compares with, after a first one's dummy gradients, name -> [T, *param], were seen.

        The residual of each slice tells how likely it is noisy, m: a residual of variance e against the noise's and
        against a tenth of it. Its entries then weigh 1 / (m + FLOOR) times those of a slice that is surely noisy.
        One step of expectation and maximisation; the cuts follow from the root set. Source: this book.
        """
        target, variance = update.as_gradients(), (self.std * update.scale) ** 2 / update.threat.clients
        residuals = torch.cat([by_trial(dummies[name] - g) for name, g in target.items()], 1)
        weights = torch.ones_like(residuals)
        share = self.perturbed / self.slices
        for trial, network in enumerate(_networks(model, update.trials)):
            cuts = self.cuts(network)
            for k in range(self.slices):
                part = self._of(cuts, k)
                count = part.stop - part.start
                if count == 0:
                    continue
                excess = residuals[trial, part].square().sum() / variance
                # log-odds of N(0, s^2) against N(0, s^2 / 10), which leaves room for what the first attack missed
                odds = count / 2 * torch.tensor(0.1).log() + excess * (10 - 1) / 2
                odds = odds + torch.logit(torch.tensor(share), eps=1e-6).to(odds)
                weights[trial, part] = (1 + FLOOR) / (odds.sigmoid() + FLOOR)
        return Reread(Observation(target, weight=_like(weights, target), noise_std=sqrt(variance)))

    def without_noise(self, update: SharedUpdate, model: nn.Module, seed: int) -> dict[str, Tensor]:
        """The update of one client a trial, the noise subtracted by somebody who knows the seed of its generator.

        The released code seeds Python's generator with 0 at import, so that everybody does. Errors: ValueError for
        `clip`, which loses more than noise, and for a mean of several clients. Source: this book.
        """
        if self.clip or update.threat.clients > 1:
            raise ValueError("without_noise needs clip=False and the update of one client")
        silent = {name: torch.zeros_like(g[0]) for name, g in update.gradients.items()}
        clean = []
        for trial, network in enumerate(_networks(model, update.trials)):
            generator = client.generator(seed, trial, client.DEFENSE_STREAM, 0)
            noise = self.protect(silent, network, torch.empty(0), torch.empty(0), generator)
            clean.append({name: g[trial] - noise[name] for name, g in update.gradients.items()})
        return {name: torch.stack([trial[name] for trial in clean]) for name in silent}

    def noise_variance(self, weights: Sequence[float]) -> float:
        """The mean variance of an entry of the weighted sum over clients: (P / S) std^2 sum of squared weights."""
        return self.perturbed / self.slices * self.std**2 * sum(weight**2 for weight in weights)

    def _of(self, cuts: list[int], k: int) -> slice:
        """The entries of slice k; the released code takes both ends in."""
        return slice(cuts[k], cuts[k + 1] + (self.variant == "official"))


@dataclass(frozen=True, eq=False)
class Reread(Defense):
    """Stands in an update for a defense whose reading was worked out beforehand; it protects nothing itself."""

    observation: Observation

    def counter(self, model: nn.Module, update: SharedUpdate) -> Observation:
        return self.observation


def sensitivity(model: nn.Module, root: ImageSet, estimator: Estimator = "vjp_ones") -> list[float]:
    """How strongly each parameter's gradient depends on the input, over a root set: a number a parameter.

    The mean loss of the root set as one batch is differentiated. "vjp_ones", the released code's: the mean over images
    of |d (sum of the gradient's entries) / d image|, in which the entries' shares can cancel. "hutchinson", this
    book's: the mean of |d <u, gradient> / d image|^2 over images and PROBES vectors u of random signs, which expects
    the squared Frobenius norm of the Jacobian. Not divided by the parameter's size.
    Errors: ValueError for a root set of another shape, or with labels that the model does not have.
    Source: the released code, sensitivity.py.
    """
    network = client.worker(model, "eval")
    parameter = next(network.parameters())
    device = parameter.device
    images = root.images.detach().to(device, parameter.dtype).requires_grad_()
    network.inputs.check(images[None], parameter)
    if int(root.labels.max()) >= network.num_classes:
        raise ValueError(
            f"the root set has a label {int(root.labels.max())}, the model {network.num_classes} classes: take images "
            "of the classes that the model tells apart"
        )
    parameters = dict(network.named_parameters())
    loss = F.cross_entropy(functional_call(network, parameters, (images,)), root.labels.to(device))
    gradients = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
    random, found = client.generator(0, 0), []

    def per_image(gradient: Tensor, vector: Tensor) -> Tensor:
        (slope,) = torch.autograd.grad(gradient, images, vector, retain_graph=True)
        return slope.flatten(1).norm(dim=1)

    for gradient in gradients:
        if estimator == "vjp_ones":
            found.append(per_image(gradient, torch.ones_like(gradient)).mean().item())
        else:
            signs = [torch.randint(2, gradient.shape, generator=random) * 2 - 1 for _ in range(PROBES)]
            squares = [per_image(gradient, s.to(gradient)).square().mean() for s in signs]
            found.append(torch.stack(squares).mean().item())
    return found


def root_set(images: ImageSet, per_class: int = 5) -> ImageSet:
    """The first images of each class in their order: the released code takes 5. Errors: ValueError for too few."""
    counts = torch.bincount(images.labels, minlength=images.num_classes)
    if per_class < 1 or counts.min() < per_class:
        raise ValueError(
            f"per_class={per_class}: the classes of {images.name!r} hold at least {int(counts.min())} images"
        )
    index = torch.cat([(images.labels == k).nonzero()[:per_class, 0] for k in range(images.num_classes)]).sort().values
    return images.subset(index)


def equal_mass_cuts(sizes: Sequence[int], sensitivities: Sequence[float], slices: int) -> list[int]:
    """slices + 1 increasing bounds of half-open slices of [0, sum(sizes)) with about the same sensitivity each.

    They lie at multiples of the sizes' common divisor, the atom. Cut k comes after the atoms whose summed sensitivity
    is at most k / slices of the whole; then every slice is given one atom at least.
    Errors: ValueError for more slices than atoms, and for sensitivities that are negative or all zero.
    Source: the released code, perturb.py, whose bounds are corrected here.
    """
    atom, counts, each = _atoms(sizes, sensitivities)
    atoms, mass = sum(counts), sum(n * m for n, m in zip(counts, each, strict=True))
    if slices > atoms:
        raise ValueError(f"slices={slices}: sizes {list(sizes)} can be cut into {atoms} pieces of {atom} at most")
    cuts = [0]
    for k in range(1, slices):
        before = _atoms_within(counts, each, mass * Fraction(k, slices) + mass * Fraction(1, 10**9))
        cuts.append(min(max(before, cuts[-1] + 1), atoms - (slices - k)))
    return [atom * cut for cut in [*cuts, atoms]]


def official_cuts(sizes: Sequence[int], sensitivities: Sequence[float], slices: int) -> list[int]:
    """The bounds of the released code, both ends of a slice inclusive: neighbouring slices share an entry.

    A slice ends before the atom that would bring it to the target. One atom above the target, typically of the last
    bias, ends every slice but the last. The sums are rounded as the code rounds them, which decides some bounds.
    Source: the released code, perturb.py.
    """
    atom, counts, _ = _atoms(sizes, sensitivities)
    each = [a / n for a, n in zip(sensitivities, counts, strict=True) for _ in range(n)]
    target, bounds, held = sum(sensitivities) / slices, [0], 0.0
    for place, mass in enumerate(each):
        while held + mass >= target and len(bounds) < slices:
            bounds.append(place * atom - 1)
            held = 0.0
        held += mass
    return [*bounds, len(each) * atom - 1]


def over_rounds(rounds: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """What several rounds on the same data and weights give away: noise never repeats, a clean entry does.

    rounds: name -> tensors of one shape. Each entry is the value that occurs most often, or the mean where none occurs
    twice. Errors: ValueError for no round. Source: this book.
    """
    if not rounds:
        raise ValueError("over_rounds needs at least one round, got none")
    found = {}
    for name in rounds[0]:
        seen = torch.stack([gradients[name] for gradients in rounds])
        times = torch.stack([(seen == one).sum(0) for one in seen])
        often, where = times.max(0)
        value = seen.gather(0, where[None])[0]
        found[name] = value.where((often > 1) | (len(rounds) == 1), seen.mean(0))
    return found


def compensate(gradients: dict[str, Tensor], variance: float, aspect: float = 6.0) -> dict[str, Tensor]:
    """The server's removal of noise from an aggregate by random-matrix theory: name -> shape to the same.

    gradients: one aggregate's. variance: of the noise in an entry of it, `GradDefense.noise_variance`. aspect: Q; the
    update is laid out in rows of w entries, v of them, v being the least divisor of its length from sqrt(Q length) on.
    Eigenvectors of the columns' covariance with eigenvalues strictly between the Marchenko-Pastur edges are dropped.
    Errors: ValueError for a negative variance or an aspect that is not positive.
    Source: the released code, compensate.py.
    """
    settings.held("variance", settings.Level, variance)
    settings.held("aspect", settings.Positive, aspect)
    if variance == 0:
        return gradients
    flat = flattened(gradients)
    v, w = layout(len(flat), aspect)
    matrix = flat.double().view(v, w)
    eigenvalues, vectors = torch.linalg.eigh(torch.atleast_2d(matrix.T.cov()))
    low, high = edges(variance, v / w)
    kept = vectors[:, (eigenvalues <= low) | (eigenvalues >= high)]
    return unflattened((matrix @ kept @ kept.T).flatten().to(flat.dtype), gradients)


def layout(entries: int, aspect: float) -> tuple[int, int]:
    """Rows and columns (v, w), v w = entries, of the matrix that `compensate` looks at."""
    least = sqrt(aspect * entries)
    divisors = {d for i in range(1, int(sqrt(entries)) + 1) if entries % i == 0 for d in (i, entries // i)}
    v = min((d for d in divisors if d >= least), default=entries)
    return v, entries // v


def edges(variance: float, aspect: float) -> tuple[float, float]:
    """The Marchenko-Pastur edges of noise of this variance: variance (1 -+ 1 / sqrt(aspect))^2."""
    return variance * (1 - 1 / sqrt(aspect)) ** 2, variance * (1 + 1 / sqrt(aspect)) ** 2


def _atoms(sizes: Sequence[int], sensitivities: Sequence[float]) -> tuple[int, list[int], list[Fraction]]:
    """The atom's size, and each parameter's number of atoms and the sensitivity of one of them, exactly."""
    if len(sizes) != len(sensitivities) or min(sensitivities) < 0 or sum(sensitivities) <= 0:
        raise ValueError(
            f"sensitivities must be a number >= 0 for each of {len(sizes)} parameters, not all 0, "
            f"got {list(sensitivities)}"
        )
    atom = gcd(*sizes)
    counts = [size // atom for size in sizes]
    largest = max(sensitivities)
    exact = [Fraction(a / largest).limit_denominator(10**9) for a in sensitivities]
    return atom, counts, [a / n for a, n in zip(exact, counts, strict=True)]


def _atoms_within(counts: Sequence[int], each: Sequence[Fraction], mass: Fraction) -> int:
    """How many atoms from the start have a summed sensitivity of at most `mass`."""
    position = 0
    for count, one in zip(counts, each, strict=True):
        fit = min(count, int(mass // one)) if one else count
        mass, position = mass - fit * one, position + fit
        if fit < count:
            break
    return position


_MEASURED: dict[tuple[str, int, str], tuple[ImageSet, list[float]]] = {}
"""Sensitivities by (model fingerprint, root, estimator): every trial of an experiment asks for the same."""


def _sensitivity_of(model: nn.Module, root: ImageSet, estimator: Estimator) -> list[float]:
    key = (models.fingerprint(model), id(root), estimator)
    if key not in _MEASURED:
        if len(_MEASURED) >= 256:  # a training asks for other weights at every step
            _MEASURED.clear()
        _MEASURED[key] = (
            root,
            sensitivity(model, root, estimator),
        )  # the root stays alive, so that its id stays its own
    return _MEASURED[key][1]


def _networks(model: nn.Module | Victims, trials: int) -> Iterator[nn.Module]:
    """The network that each trial meets."""
    for trial in range(trials):
        yield Victims.of(model).network(trial)


def _like(rows: Tensor, like: dict[str, Tensor]) -> dict[str, Tensor]:
    """[T, N] -> name -> [T, *param]."""
    parts = rows.split([g[0].numel() for g in like.values()], 1)
    return {name: part.view(g.shape) for (name, g), part in zip(like.items(), parts, strict=True)}
