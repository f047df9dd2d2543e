"""Fixed numbers of the protocol: what clients share, under which random numbers, and what servers do."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import torch
from fixed import SHAPE, batch, case, classes, drawn, exact, images_of, known, refused, victim
from torch import Tensor, nn

from reprolib import defenses, models, servers
from reprolib.federated import client, gradients, server
from reprolib.federated.closed_form import linear_inputs, rows_of_labels
from reprolib.federated.observation import Observation, by_trial
from reprolib.federated.update import SharedUpdate
from reprolib.models import Victims
from reprolib.models.task import Task

LOCALS = {
    "none": None,
    "one step": client.LocalTraining(1, 3, 0.1),
    "sgd": client.LocalTraining(2, 2, 0.3),
    "momentum": client.LocalTraining(2, 1, 0.2, momentum=0.7),
    "decay": client.LocalTraining(1, 2, 0.2, weight_decay=0.05),
    "one step with decay": client.LocalTraining(1, 3, 0.2, weight_decay=0.05),
    "adam": client.LocalTraining(2, 2, 0.05, optimizer="adam", weight_decay=0.01),
    "shuffled": client.LocalTraining(3, 2, 0.2, shuffle=True),
    "order known": client.LocalTraining(3, 1, 0.2, shuffle=True, order_known=True, momentum=0.3),
}


@case("streams")
def _() -> object:
    draws = {}
    for seed, trial in product((0, 7), (0, 3)):
        for stream in ((), (0,), (1,), (2,), (0, 2), (client.DEFENSE_STREAM, 0), (client.DEFENSE_STREAM, 1)):
            draws[f"{seed} {trial} {stream}"] = torch.rand(2, generator=client.generator(seed, trial, *stream))
    return draws | {"pairs": torch.rand(2, generator=client.generator([(7, 3), (5, 2)], 1, 4))}


@case("share, every local training and every division among clients")
def _() -> object:
    model, (images, labels), found = victim(), batch(2, 3), {}
    for name, local in LOCALS.items():
        for clients in ((3,), (1, 2), (1, 1, 1)):
            if local is not None and local.batch_size > max(clients):
                continue
            threat = known(observes=f"mean of {len(clients)}" if len(clients) > 1 else "one client")
            update = client.share(model, images, labels, threat=threat, local=local, clients=clients, seed=3)
            own = update.local
            told = [] if own is None else [own.sizes, own.steps(3), own.most_steps(3), own.is_one_gradient(3)]
            found[f"{name} {clients}"] = [update, update.scale, update.trials, update.as_gradients(), told]
    return found


@case("share with a defense that draws, for one client and several")
def _() -> object:
    model, (images, labels), found = victim(), batch(2, 3), {}
    for local, clients in product((None, client.LocalTraining(1, 1, 0.1)), ((3,), (1, 2), (1, 1, 1))):
        threat = known(observes=f"mean of {len(clients)}", defense_known=True)
        for defense in (defenses.GaussianNoise(0.1), defenses.SignCompression(zeros="random")):
            if local is None or clients != (3,):
                update = client.share(
                    model, images, labels, threat=threat, defense=defense, local=local, clients=clients, seed=3
                )
                found[f"{defense} {clients} {local is None}"] = [update.gradients, str(update.defense)]
    pairs = [(4, 1), (3, 0)]
    found["pairs"] = client.share(model, images, labels, defense=defenses.GaussianNoise(0.1), seed=pairs).gradients
    return found


@case("share with batch norm, every mode and every grant")
def _() -> object:
    model, (images, labels), found = _trained(victim("convnet8", width=2)), batch(2, 4), {}
    for mode, grant, count in product(("eval", "train"), ("none", "running", "exact", "buffers"), (1, 2)):
        if (mode, grant) != ("eval", "buffers"):
            threat = known(mode=mode, batch_norm=grant, observes=f"mean of {count}")
            update = client.share(model, images, labels, threat=threat)
            statistics = None if grant == "none" else client.batch_statistics(model, update)
            found[f"{mode} {grant} {count}"] = [update, statistics]
    threat = known(mode="train", batch_norm="exact", observes="mean of 2")
    found["unequal"] = client.share(model, images, labels, threat=threat, clients=(1, 3)).batch_norm
    local = client.LocalTraining(1, 4, 0.1)
    threat = known(mode="train", batch_norm="buffers")
    found["a step"] = client.share(model, images, labels, threat=threat, local=local)
    found["refused"] = [
        refused(lambda: client.share(model, images, labels, threat=known(batch_norm="buffers"))),
        refused(lambda: client.share(victim(), images, labels, threat=known(batch_norm="exact"))),
        refused(lambda: client.batch_statistics(model, client.share(model, images, labels))),
    ]
    return found


def _trained(model: nn.Module) -> nn.Module:
    """With running statistics that are not those of a network nobody trained."""
    for number, (name, buffer) in enumerate(model.named_buffers()):
        if buffer.is_floating_point() and buffer.ndim == 1 and "running" in name:
            buffer.copy_(drawn(len(buffer), seed=number) * 0.5 + 0.2)
    return model


@case("share of a model with a bottleneck, also over local passes")
def _() -> object:
    model, (images, labels), found = victim(), batch(2, 2), {}
    for defense in (defenses.PRECODE(k=3, beta=0.1), defenses.PRECODE(k=2, before="hidden2")):
        larger = client.extended(model, defense)
        for name, local in {"gradient": None, "local": client.LocalTraining(2, 1, 0.2)}.items():
            update = client.share(larger, images, labels, defense=defense, local=local, seed=2)
            found[f"{defense} {name}"] = replace(update, model="")  # the bottleneck is drawn in float32
    return found | {"again": client.extended(larger, defense) is larger}


@case("each image's gradient, and trials that fit")
def _() -> object:
    model, (images, labels) = victim("lenet"), batch(1, 3)
    each = client.image_gradients(model, images[0], labels[0])
    return each, client.trials_that_fit(model, images[0].requires_grad_())


@case("local steps, derived through, also those computed again")
def _() -> object:
    (images, labels), found = batch(2, 2), {}
    worker, targets = Victims(client.worker(victim(), "eval")), nn.functional.one_hot(labels, 4).double()
    locals_ = {name: own for name, own in LOCALS.items() if own is not None and own.batch_size < 3}
    locals_["many"] = client.LocalTraining(11, 1, 0.05, momentum=0.5)
    for name, local in locals_.items():
        for sizes in ((), (1, 1)):
            x, order = images.clone().requires_grad_(), None
            if local.shuffle:
                order = torch.tensor([[[1, 0], [0, 1], [1, 0]]] * 2)
                order = torch.tensor([[[0, 1]] * 3] * 2) if sizes else order
            if sizes and local.batch_size > 1:
                continue
            shared = gradients.shared(worker, x, targets, local, sizes, None, order)
            (slope,) = torch.autograd.grad(sum(value.square().sum() for value in shared.values()), x)
            found[f"{name} {sizes}"] = [shared, slope]
    return found


class _Normed(nn.Module):
    """Every kind of norm that the engine writes out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norms = nn.Sequential(
            nn.BatchNorm2d(4),
            nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
            nn.InstanceNorm2d(4),
            nn.GroupNorm(2, 4),
            nn.Hardsigmoid(),
        )
        self.last = nn.Sequential(nn.Flatten(), nn.LayerNorm(4 * 30), nn.Linear(4 * 30, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norms(self.conv(x)).tanh())


@case("norms written out, at the client and through its gradient")
def _() -> object:
    own = exact(models.drawn(_Normed, 0))
    for number, parameter in enumerate(own.parameters()):
        parameter.data.add_(0.3 * drawn(*parameter.shape, seed=number))
    model, (images, labels), found = models.adapt(_trained(own), SHAPE, 4), batch(2, 2), {}
    for mode in ("eval", "train"):
        x = images.clone().requires_grad_()
        worker = Victims(client.worker(model, mode))
        shared = gradients.shared(worker, x, nn.functional.one_hot(labels, 4).double())
        (slope,) = torch.autograd.grad(sum(value.square().sum() for value in shared.values()), x)
        found[mode] = [shared, slope]
    return found | {"logits": model(images[0])}


@case("every loss and reduction")
def _() -> object:
    images, found = drawn(2, 2, *SHAPE), {}
    tasks = [
        (Task(reduction="sum"), 3, classes(2, 2, below=3)),
        (Task(smoothing=0.2), 3, classes(2, 2, below=3)),
        (Task("bce"), 1, torch.tensor([[0, 1], [1, 1]])),
        (Task("bce", "sum"), 2, drawn(2, 2, 2)),
        (Task("squared error"), 2, drawn(2, 2, 2) * 3),
    ]
    for task, outputs, labels in tasks:
        layers = nn.Sequential(nn.Flatten(), nn.Linear(90, 5), nn.Tanh(), nn.Linear(5, outputs))
        model = models.adapt(exact(layers), SHAPE, outputs, task=task)
        update = client.share(model, images, labels, threat=known())
        head = update.of_the_head() if task.loss == "cross-entropy" else refused(update.of_the_head)
        found[str(task)] = [update, head, update.targets(labels, images)]
    return found


@case("an input of a linear layer")
def _() -> object:
    weight, bias = drawn(3, 4, 5) - 0.5, drawn(3, 4, seed=8) - 0.8
    exact = bias[:, :, None] * drawn(3, 1, 5, seed=9)
    inputs = [linear_inputs(w, bias, rows) for w in (weight, exact) for rows in ("least_squares", "largest")]
    silent = refused(lambda: linear_inputs(weight, bias * torch.tensor([1.0, 0, 1])[:, None]))
    return inputs, rows_of_labels(weight, classes(3, 2)), silent


@case("updates selected, joined, and read from somebody's numbers")
def _() -> object:
    model, (images, labels) = victim(), batch(3, 2)
    local = client.LocalTraining(2, 1, 0.1, shuffle=True, order_known=True)
    update = client.share(model, images, labels, threat=known(), local=local)
    normed = client.share(_trained(victim("convnet8", width=2)), images, labels, threat=known(batch_norm="exact"))
    chosen = [update.select([2, 0]), update.select(1), normed.select(torch.tensor([1])), normed.select(slice(1, None))]
    others = [victim(seed=k) for k in (1, 2)]
    two = [client.share(other, images[k, None], labels[k, None], threat=known(), local=local) for k, other in
           enumerate(others)]  # fmt: skip
    joined = SharedUpdate.join(two, Victims.of(others))
    return chosen, joined, [refused(lambda: update.select(3)), refused(lambda: update.select([]))]


@case("somebody's numbers, and what is refused of them")
def _() -> object:
    found = {}
    for count, size in ((2, 1), (2, 2), (4, 1), (4, 3)):
        model, (images, labels) = victim(count=count), batch(1, size, below=count)
        shared = {name: g[0] for name, g in client.share(model, images, labels).gradients.items()}
        local = client.LocalTraining(1, size, 0.5)
        step = {name: p.detach() - 0.5 * shared[name] for name, p in model.named_parameters()}
        calls = {
            "named": lambda m=model, s=shared, n=size: SharedUpdate.of(m, s, batch_size=n),
            "in order": lambda m=model, s=shared, n=size: SharedUpdate.of(m, list(s.values()), batch_size=n),
            "vector": lambda m=model, s=shared, n=size: SharedUpdate.of(
                m, torch.cat([g.flatten() for g in s.values()]).float(), batch_size=n
            ),
            "after": lambda m=model, s=step, n=size, own=local: SharedUpdate.of(m, after=s, local=own, batch_size=n),
            "labels": lambda m=model, s=shared, n=size, y=labels: SharedUpdate.of(m, s, batch_size=n, labels=y[0]),
            "turned": lambda m=model, s=shared, n=size: SharedUpdate.of(
                m, {name: -g for name, g in s.items()}, batch_size=n
            ),
            "ten times": lambda m=model, s=shared, n=size: SharedUpdate.of(
                m, {name: 10 * g for name, g in s.items()}, batch_size=n
            ),
            "without labels": lambda m=model, s=shared, n=size: SharedUpdate.of(m, s, batch_size=n, threat=known()),
        }
        for name, call in calls.items():
            found[f"{count} classes, {size} images, {name}"] = refused(call) or call()
    return found


@case("observations of chosen trials")
def _() -> object:
    whole = {"a": drawn(3, 2, 2), "b": drawn(3, seed=4)}
    seen = Observation(
        target=whole,
        weight={"a": drawn(3, 1, 2, seed=5), "b": drawn(1, seed=6)},
        slack={"a": drawn(3, 2, 2, seed=7)},
        beyond={"a": drawn(3, 1, 1, seed=8) + 1},
        noise={"n": drawn(3, 2, 4, seed=9)},
        of_the_mean=lambda g, target: {name: value * target[name] for name, value in g.items()},
    )
    rows = torch.tensor([2, 0])
    shared = seen.as_shared({name: value[:2] * 2 for name, value in whole.items()}, rows)
    return replace(seen.select(rows), of_the_mean=None), shared, by_trial(whole["b"]), seen.select(rows).draws


@case("threat models in words")
def _() -> object:
    threats = [
        client.ThreatModel(),
        known(
            mode="train", batch_norm="running", defense_known=True, observes="mean of 3", server="malicious parameters"
        ),
        known(batch_norm="exact", server="malicious architecture"),
        known(batch_norm="buffers", mode="train"),
    ]
    return [(threat.rows(), threat.clients) for threat in threats]


@case("Honest servers over rounds")
def _() -> object:
    (images, labels), found = batch(3, 4), {}
    for name, model, threat, options in (
        ("gradients", victim(), None, {}),
        (
            "weights",
            victim(),
            known(observes="mean of 2"),
            {"local": client.LocalTraining(1, 2, 0.2), "clients": (1, 3)},
        ),
        ("buffers", _trained(victim("convnet8", width=2)), known(mode="train", batch_norm="buffers"), {}),
        ("defense", victim(), known(), {"defense": defenses.PRECODE(k=2)}),
    ):
        batches = lambda r: (images[r : r + 1], labels[r : r + 1])  # noqa: E731
        host = server.Honest(0.5)
        every = list(server.rounds(host, model, batches, 3, threat=threat, seed=4, **options))
        found[name] = [[r.number, r.update.gradients, r.model] for r in every]
        found[f"{name} after"] = host.aggregate(every[-1].model, every[-1].update)
    return found


@case("Imprint blocks of every query, law, layout and connection")
def _() -> object:
    model, public, found = victim(), images_of(40), {}
    ways = [
        servers.Imprint.official(5),
        servers.Imprint(num_bins=4, surrogate=public),
        servers.Imprint(
            num_bins=4,
            query="fourier",
            mode=2,
            gain=0.5,
            strength=2.0,
            cdf="fitted",
            surrogate=public,
            shuffled=True,
            seed=3,
        ),
        servers.Imprint(num_bins=4, query="randn", cdf="gaussian", layout="sparse", connection="cat", seed=1),
        servers.Imprint(
            num_bins=4, query="rand", cdf="laplace", layout="one-shot", target=0.2, connection="softmax", seed=1
        ),
        servers.Imprint(num_bins=6, layout="scattered", rate=0.3, gain=2.0, surrogate=public, seed=2),
        servers.Imprint(
            num_bins=4, query="randn", layout="sparse", surrogate=public, connection="linear", gain=1e-2, seed=5
        ),
    ]
    for way in ways:
        sent = way.broadcast(model)
        x = drawn(5, *SHAPE, seed=3)
        block = sent.imprint
        passed = block.passed(sent.normalize.forward(x))
        found[str(len(found))] = [sent, sent(x), way.statistic(model, x), passed, way.draws, way.kind, str(block)]
    return found


@case("TrapWeights")
def _() -> object:
    return [
        servers.TrapWeights().broadcast(victim()),
        servers.TrapWeights(sigma=0.3, scale=0.7, seed=4).broadcast(victim(shape=(1, 5, 3), normalize=None)),
    ]


@case("victims stacked, selected and grouped")
def _() -> object:
    every = Victims.of([victim(seed=k) for k in range(3)], 2)
    some = every.select(torch.tensor([5, 2, 0]))
    groups = [own.tolist() for own in some.groups(3)]
    return (
        some.network(0),
        some.network(2),
        some.weights(),
        some.repeat(2).weights(),
        groups,
        math.prod(some.index.shape),
    )
