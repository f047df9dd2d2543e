"""FGLA's and HCGLA's experiments: batches decoded, blended, compressed, and set beside searches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reprolib import models
from reprolib.attacks import labels
from reprolib.attacks.fgla import FGLA, head_gradients, separate
from reprolib.attacks.hcgla import HCGLA
from reprolib.data import ImageSet
from reprolib.defenses import Defense
from reprolib.experiments.batches import Batches, draw
from reprolib.experiments.generators import DecoderRecipe, fit_decoder, fit_rows
from reprolib.experiments.networks import SHOWN, in_order, network_seed
from reprolib.experiments.separation import fresh_head
from reprolib.federated import client
from reprolib.federated.threat import ThreatModel
from reprolib.measure import metrics


def decoded(
    victim: nn.Module,
    attacks: Mapping[str, FGLA],
    batches: Batches,
    public: ImageSet,
    seed: int,
    trials: Sequence[int],
    threat: ThreatModel | None = None,
    defense: Defense | None = None,
) -> dict[str, Any]:
    """Attack batches with variants of FGLA: `compared`, with two more rows an image, which bound what it can do.

    "oracle" is the first attack's decoder on the true features, as the client computed them: what is missing to it is
    the separation's fault, what it misses is the decoder's. "mean image" is that of `public`.
    """
    threat = threat or ThreatModel(labels="known")
    found = compared(victim, attacks, batches, seed, trials, threat, defense)
    first, (images, truth) = next(iter(attacks.values())), batches.drawn(trials)
    device = victim.head.weight.device
    worker = client.worker(victim, threat.mode)
    f = torch.stack([models.penultimate(worker, batch.to(device)) for batch in images])
    references = {"oracle": first.decode(f).cpu(), "mean image": public.mean_image.expand_as(images)}
    tables = [found["scores"]]
    for name, shown in references.items():
        order = truth.argsort(dim=1, stable=True)
        tables.append(_quality(_sorted(shown, order), _sorted(images, order), trials).assign(attack=name))
        found[name] = _sorted(shown, order).flatten(0, 1)[:SHOWN]
    return found | {"scores": pd.concat(tables, ignore_index=True)}


def compared(
    victim: nn.Module,
    attacks: Mapping[str, Any],
    batches: Batches,
    seed: int,
    trials: Sequence[int],
    threat: ThreatModel,
    defense: Defense | None = None,
) -> dict[str, Any]:
    """Attack the same updates with each of several attacks; labels decide which image answers to which.

    trials: which of the batches; the numbers of each do not depend on the others. Returns "scores", a row an (attack,
    image): trial, image, psnr, ssim, psnr_whole and psnr_dim0 (of the batch), lost, labels (share of the batch's labels
    that the attack has), seconds (of the call, per batch), attack; and the first images: "truth" and NAME [n, C, H, W],
    in the order of their labels.
    """
    device, tables, (images, truth) = victim.head.weight.device, [], batches.drawn(trials)
    streams = [(seed, trial) for trial in trials]
    update = client.share(victim, images.to(device), truth.to(device), threat=threat, defense=defense, seed=streams)
    target = _sorted(images, truth.argsort(dim=1, stable=True))
    shown = {"truth": target.flatten(0, 1)[:SHOWN]}
    for name, attack in attacks.items():
        found = attack(victim, update, seed=streams)
        order = found.labels.cpu().argsort(dim=1, stable=True)
        placed = _sorted(found.images.cpu(), order)
        lost = torch.zeros_like(order).bool() if found.lost is None else found.lost.cpu().gather(1, order)
        overlap = metrics.label_overlap(found.labels.cpu(), truth).repeat_interleave(truth.shape[1])
        columns = {"lost": lost.flatten().numpy(), "labels": overlap.numpy(), "seconds": found.seconds / len(images)}
        tables.append(_quality(placed, target, trials).assign(**columns, attack=name))
        shown[name] = placed.flatten(0, 1)[:SHOWN]
    return shown | {"scores": pd.concat(tables, ignore_index=True)}


def _sorted(images: Tensor, order: Tensor) -> Tensor:
    return images[torch.arange(len(images))[:, None], order]


def _quality(found: Tensor, truth: Tensor, trials: Sequence[int]) -> pd.DataFrame:
    """A row an image of reconstructions that stand in the order of the truth, [T, B, C, H, W] both."""
    size = truth.shape[1]
    flat = found.flatten(0, 1), truth.flatten(0, 1)
    whole = -10 * (found - truth).double().square().flatten(1).mean(1).clamp(min=1e-12).log10()
    dim0 = [metrics.psnr_dim0(*pair) for pair in zip(found, truth, strict=True)]
    return pd.DataFrame(
        {
            "trial": np.repeat(trials, size),
            "image": np.tile(np.arange(size), len(trials)),
            "psnr": metrics.psnr(*flat).double().numpy(),
            "ssim": metrics.ssim(*flat).double().numpy(),
            "psnr_whole": whole.repeat_interleave(size).numpy(),
            "psnr_dim0": np.repeat(dim0, size),
        }
    )


def blends(victim: nn.Module, attack: FGLA, images: ImageSet, size: int, pairs: int, seed: int) -> dict[str, Any]:
    """What becomes of two images of one class in a batch of `size`: "rows", a row a pair, and the first ones' pictures.

    The first two images of every batch get the same label, all others different ones. Columns of the rows: distance
    (MSE) of what the attack shows to the decoded mean of both features ("blend") and to each picture's own decoding
    ("parent"), and blended, whether it is nearest to the blend. Pictures [n, C, H, W]: first, second, found, blend.
    """
    x, y = draw(images, size, pairs, "relabel", victim.num_classes, seed)
    y[:, 1] = y[:, 0]
    device = victim.head.weight.device
    update = client.share(victim, x.to(device), y.to(device), threat=ThreatModel(labels="known"))
    found = attack(victim, update).images.cpu()
    f = torch.stack([models.penultimate(victim, batch[:2].to(device)) for batch in x])
    own, blend = attack.decode(f).cpu(), attack.decode(f.mean(1, keepdim=True))[:, 0].cpu()
    to_blend = metrics.mse(found[:, 0], blend)
    to_parent = torch.stack([metrics.mse(found[:, 0], own[:, i]) for i in (0, 1)]).amin(0)
    rows = pd.DataFrame({"blend": to_blend.numpy(), "parent": to_parent.numpy()})
    pictures = {"first": x[:, 0], "second": x[:, 1], "found": found[:, 0], "blend": blend}
    return {name: shown[:SHOWN] for name, shown in pictures.items()} | {
        "rows": rows.assign(blended=rows.blend < rows.parent)
    }


def natural(victim: nn.Module, attack: FGLA, images: ImageSet, size: int, batches: int, seed: int) -> pd.DataFrame:
    """Batches as they come, labels repeated: a row an image with its PSNR, by whether its label occurs again.

    An image is scored against the reconstruction assigned to it (Hungarian), because labels no longer tell which.
    Column to_mean: that reconstruction's PSNR against the mean of the batch's images that share the image's label.
    """
    x, y = draw(images, size, batches, "natural", victim.num_classes, seed)
    device = victim.head.weight.device
    update = client.share(victim, x.to(device), y.to(device), threat=ThreatModel(labels="known"))
    placed = in_order(attack(victim, update).images.cpu(), x)
    same = y[:, :, None] == y[:, None]
    means = torch.einsum("tij,tjchw->tichw", same / same.sum(2, keepdim=True), x)
    columns = {
        "trial": torch.arange(batches).repeat_interleave(size),
        "repeated": (same.sum(2) > 1).flatten(),
        "psnr": metrics.psnr(placed.flatten(0, 1), x.flatten(0, 1)).double(),
        "to_mean": metrics.psnr(placed.flatten(0, 1), means.flatten(0, 1)).double(),
    }
    return pd.DataFrame({name: values.numpy() for name, values in columns.items()})


def restored_labels(
    trunk: nn.Module,
    images: ImageSet,
    cases: Sequence[tuple[int, int]],
    draws: int,
    seed: int,
) -> pd.DataFrame:
    """The share of a batch's labels that FGLA's rules restore from untrained heads: a row a (case, draw, rule).

    Every draw takes a new head, images drawn anew and different labels.
    """
    rows = []
    for classes, size in cases:
        for k in range(draws):
            own = network_seed(seed, k)
            x, y = draw(images, size, 1, "relabel", classes, own)
            head = fresh_head(trunk, classes, own).head
            f = models.penultimate(trunk, x[0])[None]
            gradients = head_gradients(f, y, head.weight.detach(), head.bias.detach())
            truth = F.one_hot(y, classes).sum(1)
            for name, rule in (("minimum", "yin"), ("sign", "bias_corrected"), ("count", "uniform")):
                counts = labels.infer_counts(*gradients, size, rule)
                right = torch.minimum(counts, truth).sum().item() / size
                rows.append({"classes": classes, "batch": size, "draw": k, "rule": name, "right": right})
    return pd.DataFrame(rows)


def feature_maps(features: Tensor, sides: tuple[int, int, int]) -> Tensor:
    """Features [N, F] as pictures [N, 1, h, w]: means over the channels of `sides` (c, h, w), each scaled to [0, 1]."""
    maps = features.view(-1, *sides).mean(1, keepdim=True)
    low, high = maps.amin((1, 2, 3), keepdim=True), maps.amax((1, 2, 3), keepdim=True)
    return (maps - low) / (high - low).clamp(min=1e-12)


def pipeline(victim: nn.Module, attack: FGLA, batches: Batches, sides: tuple[int, int, int]) -> dict[str, Tensor]:
    """The first batch on its way through the attack: pictures [B, ...] of images, features, separated ones, result."""
    images, truth = (part.to(victim.head.weight.device) for part in batches.drawn([0]))
    update = client.share(victim, images, truth, threat=ThreatModel(labels="known"))
    found = separate(update.gradients["head.weight"], update.gradients["head.bias"], truth, attack.offset)
    return {
        "the client's images": images[0],
        "their features": feature_maps(models.penultimate(victim, images[0]), sides),
        "separated features": feature_maps(found.features[0], sides),
        "decoded": attack.decode(found.features)[0],
    }


def oracle(trunk: nn.Module, inverse: nn.Module, images: ImageSet, count: int, device: torch.device) -> pd.DataFrame:
    """What a decoder makes of the true features of the set's first `count` images: a row an image, its PSNR."""
    truth = images.images[:count]
    with torch.no_grad():
        found = inverse(models.penultimate(trunk, truth).to(device)).cpu()
    return pd.DataFrame({"psnr": metrics.psnr(found, truth).double().numpy()})


def unseen_classes(
    trunk: nn.Module,
    recipe: DecoderRecipe,
    public: ImageSet,
    images: ImageSet,
    hidden: Sequence[int],
    count: int,
    device: torch.device,
) -> dict[str, Any]:
    """Two decoders on as many images, one of which never saw the `hidden` classes, on `count` test images of these.

    Returns "rows", a row an image: the PSNR of the decoded true features under "all" and "without"; and pictures
    [n, C, H, W]: truth, all, without.
    """
    seen = ~torch.isin(public.labels, torch.tensor(hidden))
    kept = int(seen.sum())
    parts = {"all": torch.arange(len(public))[:kept], "without": seen.nonzero()[:, 0]}
    private = images.images[torch.isin(images.labels, torch.tensor(hidden))][:count]
    rows, pictures = {}, {"truth": private[:SHOWN]}
    for name, index in parts.items():
        chosen = public.subset(index)
        inverse = fit_decoder(recipe, trunk, chosen, device, progress=False)
        with torch.no_grad():
            found = inverse(models.penultimate(trunk, private).to(device)).cpu()
        rows[name], pictures[name] = metrics.psnr(found, private).double().numpy(), found[:SHOWN]
    return pictures | {"rows": pd.DataFrame(rows)}


def masked_searches(
    victim: nn.Module,
    public: ImageSet,
    batches: Batches,
    defense: Defense,
    iterations: int,
    epochs: int,
    width: int,
    seed: int,
    trials: Sequence[int],
) -> dict[str, Any]:
    """HCGLA on single images, and what is left of it without its parts: `compared`, with the mean image's rows.

    The generator learns from `public` first. Also pictures of the first image's search: "strip" [S, C, H, W],
    after the iterations "steps".
    """
    model = fit_rows(victim, public, defense, epochs=epochs, width=width, seed=seed)
    full = replace(HCGLA.official(model), iterations=iterations)
    forms = {
        "HCGLA": full,
        "its start": replace(full, iterations=0),
        "no mask": replace(full, mask="none"),
        "random start": replace(full, generator=None, start="random"),
        "masked DLG": replace(HCGLA.masked_dlg(), iterations=iterations),
        "mean of all rows": replace(HCGLA.single(model), iterations=iterations),
    }
    threat = ThreatModel(labels="known")
    found, (images, truth) = compared(victim, forms, batches, seed, trials, threat, defense), batches.drawn(trials)
    mean = public.mean_image.expand_as(images)
    references = _quality(mean, images, trials).assign(attack="mean image")
    device = victim.head.weight.device
    first = [(seed, trials[0])]
    update = client.share(
        victim, images[:1].to(device), truth[:1].to(device), threat=threat, defense=defense, seed=first
    )
    steps = sorted({round(i) for i in np.linspace(0, iterations, min(7, iterations + 1))})
    history = full(victim, update, seed=first, snapshots=steps).history
    scores = pd.concat([found["scores"], references], ignore_index=True)
    return found | {"scores": scores, "strip": history.images[:, 0, 0].clamp(0, 1), "steps": steps}
