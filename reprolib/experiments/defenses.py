"""Experiments of the page on all defenses."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.fft import dctn, idctn
from torch import Tensor

from reprolib import models, settings
from reprolib.data import ImageSet
from reprolib.defenses import (
    AfterFeedback,
    Compose,
    Defense,
    GaussianNoise,
    GradDefense,
    IntraInstaHide,
    MixUp,
    ats,
    with_feedback,
)
from reprolib.defenses.graddefense import compensate, official_cuts, root_set, sensitivity
from reprolib.defenses.mixing import decode, decode_magnitudes
from reprolib.experiments import utility
from reprolib.experiments.networks import CPU, TRAINED_AT, attack_together, attack_trials, network_seed, shared
from reprolib.federated import client
from reprolib.federated.observation import Observation
from reprolib.federated.streams import generator
from reprolib.federated.threat import ThreatModel
from reprolib.federated.update import SharedUpdate
from reprolib.measure import metrics
from reprolib.models import Victims


@dataclass(frozen=True, eq=False)
class OnPublic(Defense):
    """A defense that needs public images and opens them only when it runs: a record names them and has no pixels.

    make: images -> the defense, such as `MixUp` or `graddefense`. label: what tables call it. options: further
    arguments of `make`. It does all that the defense does.
    """

    make: Callable[..., Defense]
    images: Annotated[ImageSet, settings.Like("fingerprint")] = field(repr=False)
    label: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def made(self) -> Defense:
        return self.make(self.images, **self.options)

    @property
    def mixes(self) -> bool:  # type: ignore[override]  # of the defense in it
        return getattr(self.make, "mixes", False)

    def __str__(self) -> str:
        return self.label

    def extend(self, model: torch.nn.Module) -> torch.nn.Module:
        return self.made.extend(model)

    def encode(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return self.made.encode(images, targets, generator)

    def protect(
        self,
        gradients: dict[str, Tensor],
        model: torch.nn.Module,
        images: Tensor,
        labels: Tensor,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        return self.made.protect(gradients, model, images, labels, generator)

    def counter(self, model: torch.nn.Module, update: SharedUpdate) -> Observation:
        return self.made.counter(model, update)

    def reread(self, model: torch.nn.Module, update: SharedUpdate, dummies: dict[str, Tensor]) -> Defense:
        """`GradDefense.reread`. Errors: ValueError for a defense without one."""
        if not hasattr(self.made, "reread"):
            raise ValueError(f"{self} has no `reread`: only a defense whose random choices show later has one")
        return self.made.reread(model, update, dummies)


def graddefense(images: ImageSet, **options: Any) -> GradDefense:
    """GradDefense whose root set is two images of each class of these: `make` of `OnPublic`."""
    return GradDefense(root_set(images, 2), **options)


def graddefense_slices(network: torch.nn.Module, images: ImageSet) -> pd.DataFrame:
    """Entries in each of GradDefense's ten slices of a network: a row a slice, cut as here ("fixed") and as released.

    images: public ones, of which the root set is taken. Source: GradDefense's code, perturb.py.
    """
    defense = graddefense(images)
    measured = sensitivity(network, defense.root)
    theirs = official_cuts([p.numel() for p in network.parameters()], measured, defense.slices)
    rows = {"fixed": np.diff(defense.cuts(network)), "released": np.diff(theirs) + 1}
    return pd.DataFrame({"slice": range(defense.slices)} | rows)


Distance = Literal["squared", "absolute", "cosine"]


@dataclass(frozen=True)
class RivalReading(GaussianNoise):
    """The same client, met by an attacker who fits its update by a distance of its own, beside the same image prior.

    distance: "squared" or "absolute" error, or the "cosine", as the squared distance of vectors of length one. trust:
    the standard deviation that it allows for, which sets the weight of its prior as the noise's own sets that of the
    maximum a posteriori; it is to be tuned. The squared error with the noise's own is that attacker's.
    Errors: ValueError for another distance and for a trust that is not positive. Source: Balunovic et al. 2022, the
    rivals of the Bayes optimal adversary.
    """

    distance: Distance = "squared"
    trust: settings.Positive = 0.1

    def counter(self, model: torch.nn.Module, update: SharedUpdate) -> Observation:
        target = update.as_gradients()
        if self.distance != "cosine":
            law = "laplace" if self.distance == "absolute" else "gaussian"
            return Observation(target=target, law=law, noise_std=self.trust)
        return Observation(target=_of_length_one(target), of_the_mean=_directions, noise_std=self.trust)


def _of_length_one(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """name -> [R, *param], each of the R over its length over all parameters."""
    square = sum(g.flatten(1).square().sum(1) for g in gradients.values())
    length = square.clamp(min=torch.finfo(square.dtype).tiny).sqrt()
    return {name: g / length.view(-1, *[1] * (g.ndim - 1)) for name, g in gradients.items()}


def _directions(gradients: dict[str, Tensor], target: dict[str, Tensor]) -> dict[str, Tensor]:
    return _of_length_one(gradients)


def denoised(
    model: torch.nn.Module, images: ImageSet, defense: OnPublic, clients: int, size: int, seed: int
) -> pd.DataFrame:
    """What the server's denoising makes of GradDefense's noise in the mean of clients' updates: a row a tensor.

    defense: `OnPublic` of a GradDefense.
    Columns: tensor; before, and after, the denoising, the Euclidean distance to the mean of the clean updates; after
    with the noise's variance in a mean ("fixed"), and with the one that the released demo computes ("official"),
    clients^2 times as large. Each client has `size` images. Source: GradDefense's demo.
    """
    x, y = images.batches(size, clients, seed=seed)
    clean, noisy = (client.share(model, x, y, defense=d, seed=seed).gradients for d in (None, defense))
    clean, noisy = ({name: g.mean(0) for name, g in gradients.items()} for gradients in (clean, noisy))
    variance = defense.made.noise_variance([1 / clients] * clients)  # type: ignore[attr-defined]  # GradDefense, which adds noise
    cleaned = {"fixed": compensate(noisy, variance), "official": compensate(noisy, clients**2 * variance)}
    rows = []
    for name, g in clean.items():
        row = {"tensor": name, "before": (noisy[name] - g).norm().item()}
        rows.append(row | {way: (found[name] - g).norm().item() for way, found in cleaned.items()})
    return pd.DataFrame(rows)


def without_noise(images: ImageSet, defense: OnPublic, networks: int, seed: int, **options: Any) -> pd.DataFrame:
    """What GradDefense's noise is, and what is left of it for somebody who knows its seed: a row a drawn network.

    defense: `OnPublic` of a GradDefense. options: LeNet's. Columns: network; entries, how many carry noise; error, the
    largest difference between the update less the noise drawn again and the clean gradient, in units of the noise's
    standard deviation.
    """
    rows, threat = [], ThreatModel(labels="known")
    for k in range(networks):
        victim, update = shared(images, [k], k, seed, CPU, defense, threat, "lenet", options)
        _, clean = shared(images, [k], k, seed, CPU, None, threat, "lenet", options)
        again = defense.made.without_noise(update, victim, network_seed(seed, k))  # type: ignore[attr-defined]  # GradDefense
        noisy = sum(int((update.gradients[name] != g).sum()) for name, g in clean.gradients.items())
        error = max(float((again[name] - g).abs().max()) for name, g in clean.gradients.items())
        rows.append({"network": k, "entries": noisy, "error": error / defense.made.std})  # type: ignore[attr-defined]  # GradDefense
    return pd.DataFrame(rows)


def attack_encoded(
    attack: Any,
    images: ImageSet,
    defense: Defense | None,
    networks: int,
    seed: int,
    pool: ImageSet,
    threat: ThreatModel,
    *,
    views: int = 0,
    victim: torch.nn.Module | None = None,
    **options: Any,
) -> pd.DataFrame:
    """The scores of an attack on clients that alter their data, against what they trained on: a network an image.

    Behind the scores: `original_identified`, whether the reconstruction identifies the image that was altered; and with
    `views`, `altered_identified`, the same where the attacker alters each candidate so many times as the client would
    and takes the nearest form, and `transformed_identified`, whether it is nearer to what the client trained on than to
    every candidate as a client of its own would alter it. victim: the network of all images, in place of drawn ones.
    options: LeNet's, for `models.build`.
    """
    x, y = images.batches(1, networks, seed=seed)
    victims, updates, encoded = [], [], []
    for k in range(networks):
        own = network_seed(seed, k)
        if victim is None:
            drawn, update = shared(images, [k], k, seed, CPU, defense, threat, "lenet", options)
        else:
            drawn = victim
            update = client.share(victim, x[k, None], y[k, None], threat=threat, defense=defense, seed=own)
        victims.append(drawn)
        updates.append(update)
        encoded.append(x[k] if defense is None else _encoded(defense, x[k], y[k], images.num_classes, own))
    reconstruction = attack_together(attack, victims, updates, seed)
    scores = metrics.score(reconstruction, torch.stack(encoded), y, pool)
    scores["original_identified"] = metrics.score(reconstruction, x, y, pool).identified
    if views:

        def altered(candidates: Tensor) -> Tensor:
            nobodys = torch.zeros(len(candidates), dtype=torch.int64)
            forms = (_encoded(defense, candidates, nobodys, images.num_classes, seed, k) for k in range(1, views + 1))
            return torch.stack(list(forms))

        found = reconstruction.images[:, 0]
        ranks, _ = metrics.identify(found, x[:, 0], pool.images, altered)
        scores["altered_identified"] = (ranks == 1).numpy()
        others = altered(pool.images)[0]
        scores["transformed_identified"] = (metrics.identify(found, torch.cat(encoded), others)[0] == 1).numpy()
    return scores


def encoded_mean_guess(
    images: ImageSet, auxiliary: ImageSet, defense: Defense | None, networks: int, seed: int
) -> pd.DataFrame:
    """The PSNR of `auxiliary`'s mean image for what the clients of `attack_encoded` trained on: a row a trial.

    Images that a defense alters are nearer to the mean or further off than others, whatever an attack finds.
    """
    x, y = images.batches(1, networks, seed=seed)
    if defense is not None:
        seeds = (network_seed(seed, k) for k in range(networks))
        x = torch.stack([_encoded(defense, x[k], y[k], images.num_classes, own) for k, own in enumerate(seeds)])
    psnr = metrics.psnr(auxiliary.mean_image.expand_as(x[:, 0]), x[:, 0]).double()
    return pd.DataFrame({"trial": range(networks), "psnr": psnr.numpy()})


def _encoded(defense: Defense, images: Tensor, labels: Tensor, classes: int, seed: int, number: int = 0) -> Tensor:
    """What a client trains on in place of images [B, C, H, W]; number 0: as the first trial of `share` does."""
    random = generator(seed, 0, client.DEFENSE_STREAM, number)
    return defense.encode(images, F.one_hot(labels, classes).float(), random)[0]


KEPT = 0.75
"""Of a client's reconstructed encodings, those with the smallest distance, which are decoded; the attacker sees it."""


def decode_client(
    attack: Any,
    images: ImageSet,
    client_number: int,
    private: int,
    rounds: int,
    defense: type[MixUp],
    seed: int,
    pool: ImageSet,
    then: Defense | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Collect the encodings of a client's images over the rounds of training, and decode them together.

    The client has `private` images and shares a mixture of each in every round, one an update, under a network of its
    own (a global model moves between rounds). Each update is attacked for its encoding by an attacker without labels;
    then the images come out of all encodings, whose pairings and weights are given: an oracle. Behind InstaHide's signs
    a set comes out up to its negative, so both count as forms of a candidate.
    defense: MixUp or IntraInstaHide. then: what the client does to its update besides, such as pruning, which the
    attacker knows. attack: DLG or one like it, with labels optimised. options: LeNet's.
    Returns "scores", a row an image: client; encoding_psnr, mean over its encodings; single_identified, whether its
    first encoding alone identifies it; psnr and identified of the decoded image; and "truth", "encodings" (the first
    reconstructed ones) and "decoded" [private, C, H, W], the better of the two readings of the set.
    Source: Huang et al. 2021 and their code, examples/attack_decode.py.
    """
    x, y = images.batches(private, client_number + 1, seed=seed)
    x, y = x[client_number], y[client_number]
    own = replace(images, images=x, labels=y)
    mixing = defense(own)
    whole = mixing if then is None else Compose([mixing, then])
    threat = ThreatModel(defense_known=then is not None)
    victims, updates, encodings, pairings = [], [], [], []
    for number in range(private * rounds):
        place = torch.tensor([number % private])
        drawn = network_seed(seed, client_number * private * rounds + number)
        victim = models.build("lenet", images.num_classes, images.image_shape, seed=drawn, **options)
        updates.append(client.share(victim, x[place][None], y[place][None], threat=threat, defense=whole, seed=drawn))
        victims.append(victim)
        encodings.append(_encoded(mixing, x[place], y[place], images.num_classes, drawn))
        pairings.append(mixing.pairings(place, generator(drawn, 0, client.DEFENSE_STREAM, 0)))
    reconstruction = attack_together(attack, victims, updates, network_seed(seed, client_number))
    found, weights = reconstruction.images[:, 0].cpu(), torch.cat(pairings)
    kept = reconstruction.objective.cpu().argsort()[: max(private, round(KEPT * len(found)))]
    if torch.linalg.matrix_rank(weights[kept]) < private:
        kept = torch.arange(len(found))
    forms: dict[str, Any] = {}
    if defense is IntraInstaHide:
        decoded = decode_magnitudes(found[kept], weights[kept], generator(seed, client_number))
        if metrics.mse(decoded, x).mean() > metrics.mse(1 - decoded, x).mean():
            decoded = 1 - decoded
        forms = {"seen_as": lambda candidates: torch.stack([candidates, 1 - candidates])}
    else:
        decoded = decode(found[kept], weights[kept])
    psnr = metrics.psnr(found, torch.cat(encodings)).view(rounds, private).mean(0)
    columns = {"encoding_psnr": psnr, "psnr": metrics.psnr(decoded, x)}
    for name, guess in (("single_identified", found[:private]), ("identified", decoded)):
        columns[name] = metrics.identify(guess, x, pool.images, **forms)[0] == 1
    scores = pd.DataFrame({"client": client_number} | {name: values.numpy() for name, values in columns.items()})
    return {"scores": scores, "truth": x, "encodings": found[:private], "decoded": decoded.clamp(0, 1)}


MOVES = 0.01
"""Learning rate with which a server moves its model by a client's shared updates."""


def attack_after_feedback(
    attack: Any,
    images: ImageSet,
    earlier: ImageSet,
    defense: Defense,
    rounds: int,
    networks: int,
    seed: int,
    pool: ImageSet,
    knows: Literal["nothing", "defense", "feedback"],
    **options: Any,
) -> pd.DataFrame:
    """The scores of an attack on a client's update that carries what `rounds` earlier rounds withheld: a row an image.

    Every image has a client and a drawn network of its own. In each earlier round the client has another image of
    `earlier`, and the server moves the weights by what it shares; the attacked round has the same image whatever the
    number of rounds. knows: "nothing" of the defense; the "defense", read as in a first round; or the "feedback" too,
    whose bound the attacker reads off the round before (`defenses.AfterFeedback`). options: LeNet's.
    Source: this book.
    """
    x, y = images.batches(1, networks, seed=seed)
    past, past_labels = earlier.batches(1, networks * max(1, rounds), seed=seed)
    victims, updates, befores = [], [], []
    for k in range(networks):
        own, mine = network_seed(seed, k), slice(k * rounds, (k + 1) * rounds)
        victim = models.build("lenet", images.num_classes, images.image_shape, seed=own, **options)
        queue = [*zip(past[mine, None], past_labels[mine, None], strict=True), (x[k, None], y[k, None])]
        withheld: dict[str, Tensor]
        values: dict[str, Tensor]
        withheld, values, before = {}, {}, {}
        for number, (pixels, truth) in enumerate(queue):
            for name, parameter in victim.named_parameters():
                parameter.data -= MOVES * values.get(name, torch.zeros(()))
            update, before = client.share(victim, pixels, truth, threat=ThreatModel(labels="known")), values
            gradients = {name: g[0] for name, g in update.gradients.items()}
            random = generator(own, number, client.DEFENSE_STREAM)
            values, withheld = with_feedback(defense, gradients, withheld, victim, pixels[0], truth[0], random)
        victims.append(victim)
        updates.append(replace(update, gradients={name: g[None] for name, g in values.items()}))
        befores.append(before)
    together = Victims.of(victims, 1)
    reading: Defense | None
    joined, reading = SharedUpdate.join(updates, together), None
    if knows == "feedback" and rounds:
        reading = AfterFeedback(defense, {name: torch.stack([b[name] for b in befores]) for name in befores[0]})
    elif knows != "nothing":
        reading = defense
    streams = [(network_seed(seed, k), 0) for k in range(networks)]
    return metrics.score(attack(together, replace(joined, defense=reading), seed=streams), x, y, pool)


def search_policies(
    train_images: ImageSet, candidates: Sequence[str], steps: int, seed: int, scored: int = 100
) -> dict[str, Any]:
    """ATS's search: a network is trained briefly, and every candidate gets its two scores there.

    scored: images for the accuracy score; the privacy score takes the first five. Returns "table", a row a policy, most
    private first: policy, privacy (low is private), accuracy (high is good) and kept, whether its accuracy score is in
    the better half (the released limit belongs to another network and number of images); and, for attacks on it, the
    weights of the trained network (a ReLU LeNet with torch's initialisation), a tensor a parameter.
    Source: Gao et al. 2021; ATSPrivacy, searchalg/search_best.py.
    """
    untrained, trained = (policy_victim(train_images, seed) for _ in range(2))
    utility.train(trained, train_images, steps, TRAINED_AT, seed=seed)
    x, y = train_images.images[:scored], train_images.labels[:scored]
    rows = ats.search(trained, untrained, x, y, candidates, seed, least=-math.inf)
    table = pd.DataFrame(rows, columns=["policy", "privacy", "accuracy"])
    table["kept"] = table.accuracy >= table.accuracy.median()
    return {"table": table} | {name: p.detach() for name, p in trained.named_parameters()}


def policy_victim(images: ImageSet, seed: int) -> torch.nn.Module:
    """The untrained network of `search_policies`."""
    own = network_seed(seed, 0)
    return models.build("lenet", images.num_classes, images.image_shape, seed=own, activation="relu", init="default")


def mean_guess(images: ImageSet, auxiliary: ImageSet, count: int, seed: int) -> pd.DataFrame:
    """The PSNR of `auxiliary`'s mean image for each of the first `count` single victims: a row a trial."""
    x = images.batches(1, count, seed=seed)[0][:, 0]
    psnr = metrics.psnr(auxiliary.mean_image.expand_as(x), x).double()
    return pd.DataFrame({"trial": range(count), "psnr": psnr.numpy()})


def learned_from_other_classes(attack: Any, images: ImageSet, seed: int, **settings: Any) -> dict[str, Any]:
    """`attack_trials` of Learning to Invert on victims of the first half of the classes, trained on the others.

    attack: `LearningToInvert` with auxiliary images of all classes. Those of the second half are taken, and as many
    images with random DCT coefficients, each frequency normal with their mean and deviation, and random labels. The
    pool is a hundred images of the victims' classes. settings: the other arguments of `attack_trials`.
    Source: Wu et al. 2023, Table 2.
    """
    half = images.num_classes // 2
    theirs = images.labels < half
    private = images.subset(theirs)
    pool = private.subset(slice(None, 100))
    own = attack.auxiliary.labels >= half
    real = attack.auxiliary.images[own]
    made, random = random_spectra(real, generator(seed, 0, 3)), generator(seed, 0, 4)
    drawn = torch.randint(images.num_classes, (len(made),), generator=random)
    labels = torch.cat([attack.auxiliary.labels[own], drawn])
    known = replace(attack.auxiliary, images=torch.cat([real, made]), labels=labels)
    return attack_trials(replace(attack, auxiliary=known), private, seed=seed, pool=pool, **settings)


def learned_from_another_set(attack: Any, images: ImageSet, **settings: Any) -> dict[str, Any]:
    """`attack_trials` of Learning to Invert with auxiliary images of another set, which has other classes.

    Their labels are taken modulo the victim's number of classes: whoever owns an image may put any label to it.
    settings: the other arguments of `attack_trials`.
    """
    known = replace(attack.auxiliary, labels=attack.auxiliary.labels % images.num_classes, classes=images.classes)
    return attack_trials(replace(attack, auxiliary=known), images, **settings)


def random_spectra(images: Tensor, random: torch.Generator) -> Tensor:
    """As many images [N, C, H, W] with random DCT coefficients, normal with the mean and deviation of each in these."""
    spectrum = torch.from_numpy(dctn(images.double().numpy(), axes=(2, 3), norm="ortho"))
    noise = torch.randn(spectrum.shape, generator=random, dtype=spectrum.dtype)
    drawn = spectrum.mean(0) + spectrum.std(0) * noise
    return torch.from_numpy(idctn(drawn.numpy(), axes=(2, 3), norm="ortho")).to(images).clamp(0, 1)
