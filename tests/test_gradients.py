"""The engine that client and attacker share, over the product of its options, against plain `torch.optim` loops."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from reprolib import attacks, models
from reprolib.attacks import labels
from reprolib.attacks.matching import Matching
from reprolib.defenses import TopK
from reprolib.federated import client
from reprolib.federated.client import LocalTraining, share
from reprolib.federated.observation import Observation
from reprolib.federated.threat import ThreatModel
from reprolib.models.task import Task

SHAPE = (2, 8, 8)


class Net(models.Victim):
    """A network with a normalisation layer to choose, a layer that nothing uses, and one that may be frozen."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__(3, SHAPE, nn.Identity())
        self.activation = nn.Sigmoid()
        self.trunk, self.norm = nn.Conv2d(2, 4, 3, stride=2, padding=1), norm
        self.unused, self.head = nn.Linear(2, 2), nn.Linear(64, 3)

    def forward(self, x):
        return self.head(self.activation(self.norm(self.trunk(x))).flatten(1))


NORMS = {
    "none": nn.Identity,
    "batch": lambda: nn.BatchNorm2d(4),
    "batch, untracked": lambda: nn.BatchNorm2d(4, track_running_stats=False),
    "layer": lambda: nn.LayerNorm((4, 4, 4)),
    "layer, plain": lambda: nn.LayerNorm((4, 4), elementwise_affine=False),
    "instance": lambda: nn.InstanceNorm2d(4),
    "instance, affine": lambda: nn.InstanceNorm2d(4, affine=True),
    "instance, tracked": lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    "group": lambda: nn.GroupNorm(2, 4),
}


def net(norm="none", seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Net(NORMS[norm]()).double()
        for name, parameter in model.named_parameters():
            if "norm" in name:
                nn.init.uniform_(parameter, 0.5, 1.5)
    return model


TASKS = {
    "classes": (Task(), nn.CrossEntropyLoss()),
    "classes, sum": (Task(reduction="sum"), nn.CrossEntropyLoss(reduction="sum")),
    "classes, smoothed": (Task(smoothing=0.1), nn.CrossEntropyLoss(label_smoothing=0.1)),
    "multi-label": (Task("bce"), nn.BCEWithLogitsLoss()),
    "multi-label, sum": (Task("bce", "sum"), nn.BCEWithLogitsLoss(reduction="sum")),
    "regression": (Task("squared error"), nn.MSELoss()),
}


def batch(images, trials=1, seed=0, task=None):
    random = torch.Generator().manual_seed(seed)
    x = torch.rand(trials, images, *SHAPE, dtype=torch.float64, generator=random)
    y = torch.randint(0, 3, (trials, images), generator=random)
    if task is not None and task.loss != "cross-entropy":
        y = torch.rand(trials, images, 3, dtype=torch.float64, generator=random)
    return x, y.round() if task is not None and task.loss == "bce" else y


def objective(model, update, x, y, **options):
    soft = update.targets(y, x)
    own = Matching(
        model,
        Observation(update.as_gradients()),
        lambda z, trials: (z.view(-1, *x.shape[1:]), soft[trials]),
        mode=update.threat.mode,
        local=update.local,
        sizes=update.sizes,
        order=update.order,
        **options,
    )
    return own, x.flatten(1), torch.arange(len(x))


def by_hand(model, x, y, loss, local, order, mode):
    """The weight difference of one client after a plain loop of torch.optim; x: [B, C, H, W]."""
    own = client.worker(model, mode)
    before = {name: parameter.detach().clone() for name, parameter in own.named_parameters()}
    options = {"lr": local.learning_rate, "weight_decay": local.weight_decay}
    trained = [parameter for parameter in own.parameters() if parameter.requires_grad]
    if local.optimizer == "adam":
        optimizer = torch.optim.Adam(trained, **options)
    else:
        optimizer = torch.optim.SGD(trained, momentum=local.momentum, **options)
    for epoch in range(local.epochs):
        rows = torch.arange(len(x)) if order is None else order[epoch]
        for mine in rows.split(local.batch_size):
            optimizer.zero_grad(set_to_none=False)
            (loss(own(x[mine]), y[mine]) + 0 * sum(p.sum() for p in trained)).backward()
            optimizer.step()
    return {name: p.detach() - before[name] for name, p in own.named_parameters() if p.requires_grad}


@st.composite
def rounds(draw):
    sizes = draw(st.sampled_from([(3,), (2, 2), (3, 1, 2), (1, 1, 1)]))
    local = None
    if draw(st.booleans()):
        optimizer, shuffle = draw(st.sampled_from(["sgd", "adam"])), draw(st.booleans())
        local = LocalTraining(
            epochs=draw(st.integers(1, 2)),
            batch_size=draw(st.integers(1, max(sizes))),
            learning_rate=draw(st.sampled_from([0.01, 0.1])),
            momentum=draw(st.sampled_from([0.0, 0.9])) if optimizer == "sgd" else 0.0,
            weight_decay=draw(st.sampled_from([0.0, 0.01])),
            optimizer=optimizer,
            shuffle=shuffle,
            order_known=shuffle,
        )
    frozen = draw(st.sampled_from(["nothing", "trunk", "norm"]))
    norm, mode = draw(st.sampled_from(sorted(NORMS))), draw(st.sampled_from(["eval", "train"]))
    return sizes, local, norm, mode, frozen, draw(st.sampled_from(sorted(TASKS)))


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(rounds(), st.integers(1, 2), st.integers(0, 3))
def test_what_is_shared_is_what_torch_optim_does_and_what_the_attacker_expects(how, trials, seed):
    sizes, local, norm, mode, frozen, trained_for = how
    model, (task, loss) = net(norm, seed), TASKS[trained_for]
    model.task = task
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    x, y = batch(sum(sizes), trials, seed, task)
    threat = ThreatModel(mode=mode, labels="known", observes=f"mean of {len(sizes)}")
    update = share(model, x, y, threat=threat, local=local, clients=sizes, seed=seed)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert list(update.gradients) == names, "only what is trained is shared"
    assert not update.gradients["unused.weight"].any() or (local is not None and local.weight_decay)

    for trial in range(trials):
        total = dict.fromkeys(names, 0.0)
        for own, (first, size) in enumerate(zip([sum(sizes[:k]) for k in range(len(sizes))], sizes, strict=True)):
            mine = slice(first, first + size)
            if local is None:
                worker = client.worker(model, mode)
                wanted = [p for p in worker.parameters() if p.requires_grad]
                value = loss(worker(x[trial, mine]), y[trial, mine])
                found = torch.autograd.grad(value, wanted, allow_unused=True, materialize_grads=True)
                found = dict(zip(names, found, strict=True))
            else:
                order = None
                if local.shuffle:
                    random = client.generator(seed, trial, client.ORDER_STREAM, own)
                    order = [torch.randperm(size, generator=random) for _ in range(local.epochs)]
                found = by_hand(model, x[trial, mine], y[trial, mine], loss, local, order, mode)
            total = {name: total[name] + size / sum(sizes) * found[name] for name in names}
        # Adam divides by |g| + 1e-8: of a gradient that is zero, as a bias's before a norm, the rounding grows so
        close = 1e-9 if local is not None and local.optimizer == "adam" else 1e-10
        for name in names:
            torch.testing.assert_close(update.gradients[name][trial], total[name], rtol=0, atol=close)

    own, points, rows = objective(model, update, x, y)
    assert own.alone(points, rows).max() <= 1e-10, "the truth explains the update"


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("trials", [1, 2])
def test_second_derivatives_are_right(norm, mode, trials):
    model, (x, y) = net(norm), batch(3, trials)
    update = share(model, x, y, threat=ThreatModel(mode=mode))
    own, _, rows = objective(model, update, x, y)
    random = torch.Generator().manual_seed(5)
    at = torch.rand(trials, x[0].numel(), dtype=torch.float64, generator=random)
    along = torch.randn(at.shape, dtype=torch.float64, generator=random)
    slope = (own(at, rows)[1] * along).sum(1)
    step = 1e-5
    differences = (own(at + step * along, rows)[0] - own(at - step * along, rows)[0]) / (2 * step)
    torch.testing.assert_close(slope, differences, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("norm", NORMS)
def test_a_worker_computes_what_torchs_own_layers_do(norm, mode):
    model, (x, _) = net(norm), batch(3, 1)
    for buffer in model.buffers():
        if buffer.is_floating_point():
            nn.init.uniform_(buffer, 0.5, 1.5)  # running statistics that are not those of this batch
    found = client.worker(model, mode)(x[0])
    torch.testing.assert_close(found, copy.deepcopy(model).train(mode == "train")(x[0]), rtol=1e-10, atol=1e-10)


class Attending(models.Victim):
    def __init__(self) -> None:
        super().__init__(3, SHAPE, nn.Identity())
        self.mix = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(128, 3)

    def forward(self, x):
        tokens = x.flatten(1, 2)
        return self.head(self.norm(self.mix(tokens, tokens, tokens, need_weights=False)[0]).flatten(1))


@pytest.mark.parametrize("trials", [1, 2])
def test_attention_is_differentiated_twice(trials):
    torch.manual_seed(0)
    model, (x, y) = Attending().double(), batch(2, trials)
    update = share(model, x, y)
    own, points, rows = objective(model, update, x, y)
    assert own.alone(points, rows).max() < 1e-20
    found = replace(attacks.InvertingGradients.official(), iterations=2, starts=1, labels="inferred")(
        model, share(model, x[:, :1], y[:, :1])
    )
    assert found.raw.isfinite().all()


def test_several_clients_of_one_step_each_are_attacked_by_who_matches_one_gradient():
    model = models.build("lenet", 4, (3, 16, 16), seed=1).double()
    x = torch.rand(1, 4, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([[0, 1, 2, 3]])
    threat = ThreatModel(labels="known", observes="mean of 4")
    update = share(model, x, y, local=LocalTraining(1, 1, 0.1), threat=threat)
    assert attacks.DLG(iterations=1)(model, update).raw.isfinite().all()
    for local, why in (
        (LocalTraining(2, 1, 0.1), "2 local steps"),
        (LocalTraining(1, 1, 0.1, optimizer="adam"), "optimizer='adam'"),
        (LocalTraining(1, 1, 0.1, weight_decay=0.1), "weight_decay=0.1"),
    ):
        with pytest.raises(ValueError, match=f"DLG matches one gradient, but this update is .*{why}"):
            attacks.DLG(iterations=1)(model, share(model, x, y, local=local, threat=threat))


def test_a_hidden_order_gives_the_labels_of_the_first_pass():
    model, (x, y) = net(), batch(6)
    local = LocalTraining(1, 2, 0.1, shuffle=True)
    update = share(model, x, y, local=local, threat=ThreatModel(labels="known"), seed=3)
    order = torch.randperm(6, generator=client.generator(3, 0, client.ORDER_STREAM, 0))
    assert update.order is None and update.labels.equal(y[:, order])
    own, points, rows = objective(model, update, x[:, order], update.labels)
    assert own.alone(points, rows).max() < 1e-20


def test_labels_in_a_hidden_order_are_those_of_the_first_of_several_passes():
    model, (x, y) = net(), batch(6, trials=2)
    threat, local = ThreatModel(labels="known"), LocalTraining(3, 2, 0.1, shuffle=True)
    hidden = share(model, x, y, local=local, threat=threat, seed=3)
    shown = share(model, x, y, local=replace(local, order_known=True), threat=threat, seed=3)
    assert not torch.equal(shown.order[:, 0], shown.order[:, -1])
    assert torch.equal(hidden.labels, y.gather(1, shown.order[:, 0]))


def test_trials_are_matched_in_their_own_order_of_images():
    model, (x, y) = net(), batch(4, trials=3)
    local = LocalTraining(2, 2, 0.1, shuffle=True, order_known=True)
    update = share(model, x, y, local=local, threat=ThreatModel(labels="known"))
    own, points, _ = objective(model, update, x, y)
    some = torch.tensor([2, 0])
    assert own(points[some], some)[0].max() < 1e-20
    assert own.alone(points[[1]], torch.tensor([1])).max() < 1e-20


def test_chosen_trials_bring_their_own_order_of_images():
    model, (x, y) = net(), batch(4, trials=3)
    local = LocalTraining(2, 2, 0.1, shuffle=True, order_known=True)
    whole, chosen = share(model, x, y, local=local, threat=ThreatModel(labels="known")), [2, 0]
    update = whole.select(chosen)
    assert torch.equal(update.order, whole.order[chosen])
    own, points, rows = objective(model, update, x[chosen], update.labels)
    assert own.alone(points, rows).max() < 1e-20


def test_each_client_takes_its_own_images_in_an_order_of_its_own():
    model, (x, y) = net(), batch(5, trials=2)
    local = LocalTraining(2, 2, 0.1, shuffle=True, order_known=True)
    told = {"threat": ThreatModel(labels="known", observes="mean of 2"), "clients": (2, 3), "seed": 3}
    shown = share(model, x, y, local=local, **told)
    assert (shown.order[..., :2].sort(2).values == torch.tensor([0, 1])).all()
    assert (shown.order[..., 2:].sort(2).values == torch.tensor([2, 3, 4])).all()
    own, points, rows = objective(model, shown, x, y)
    assert own.alone(points, rows).max() < 1e-20
    hidden = share(model, x, y, local=replace(local, order_known=False), **told)
    assert torch.equal(hidden.labels, y.gather(1, shown.order[:, 0]))


def test_an_update_of_layers_that_are_not_trained_is_refused():
    model, (x, y) = net(), batch(2)
    whole = share(model, x, y)
    model.trunk.requires_grad_(False)
    assert "trunk.weight" not in share(model, x, y).gradients
    with pytest.raises(ValueError, match=r"gradients for \['trunk.weight', 'trunk.bias'\].* does not train"):
        whole.check(model)


def test_nothing_is_read_off_a_last_layer_that_is_not_trained():
    model, (x, y) = net(), batch(1)
    model.head.requires_grad_(False)
    with pytest.raises(ValueError, match="the update has no gradient of head.weight, because the clients do not train"):
        labels.from_update(share(model, x, y))
    told = share(model, x, y, threat=ThreatModel(labels="known"))
    assert replace(attacks.InvertingGradients(), iterations=1, starts=1)(model, told).raw.isfinite().all()


BAD = {
    "frozen": (lambda m, x, y: share(m.requires_grad_(False), x, y), "every parameter of the model is frozen"),
    "sum": (
        lambda m, x, y: share(m, x, y, clients=(1, 2), threat=TWO),
        r"clients=\(1, 2\): .* sum up to the batch's 4",
    ),
    "zero": (
        lambda m, x, y: share(m, x, y, clients=(4, 0), threat=TWO),
        "each of clients must be a whole number >= 1, got 0",
    ),
    "true": (lambda m, x, y: share(m, x, y, clients=True), "clients must be a sequence, got True"),
    "half": (
        lambda m, x, y: share(m, x, y, clients=(2.5, 1.5)),
        "each of clients must be a whole number >= 1, got 2.5",
    ),
    "word": (
        lambda m, x, y: share(m, x, y, defense="noise"),
        "defense must be one of reprolib.defenses, .* got 'noise'",
    ),
    "class": (lambda m, x, y: share(m, x, y, defense=TopK), "defense must be one of reprolib.defenses, .* got <class"),
    "count": (lambda m, x, y: share(m, x, y, clients=(1, 1, 2), threat=TWO), "are 3, but the threat model observes"),
    "uneven": (lambda m, x, y: share(m, x[:, :3], y[:, :3], threat=TWO), "divides evenly among the clients, got 3"),
    "too large": (lambda m, x, y: share(m, x, y, local=LocalTraining(1, 5, 0.1)), "a client has only 4"),
    "sizes": (lambda m, x, y: share(m, x, y, local=LocalTraining(1, 1, 0.1, sizes=(4,))), r"clients=\(\.\.\.\)"),
}
TWO = ThreatModel(observes="mean of 2")


@pytest.mark.parametrize("case", BAD)
def test_rounds_that_cannot_be_are_refused(case):
    act, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        act(net(), *batch(4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\)"),
        ({"weight_decay": -1.0}, "weight_decay must be a finite number >= 0, got -1.0"),
        ({"optimizer": "rmsprop"}, "optimizer must be one of 'sgd', 'adam', got 'rmsprop'"),
        ({"optimizer": "adam", "momentum": 0.9}, "Adam has its own"),
        ({"order_known": True}, "there is no order to know"),
        ({"sizes": (0,)}, "each of sizes must be a whole number >= 1, got 0"),
    ],
)
def test_local_training_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LocalTraining(1, 1, 0.1, **options)


class Recurrent(models.Victim):
    def __init__(self) -> None:
        super().__init__(3, SHAPE, nn.Identity())
        self.cell, self.head = nn.LSTM(8, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.cell(x.flatten(1, 2))[0][:, -1])


class Dropping(Net):
    def forward(self, x):
        return super().forward(F.dropout(x, 0.5))


def test_layers_that_cannot_be_batched_are_named():
    with pytest.raises(ValueError, match=r"the layers \['cell'\] are recurrent"):
        share(Recurrent().double(), *batch(2))
    with pytest.raises(ValueError, match="Dropping cannot run in batches .* Functional dropout"):
        share(Dropping(nn.Identity()).double(), *batch(2))
