"""What clients share: equal to plain autograd, the threat model's grants and nothing more, clear refusals."""

import copy
import gc
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reprolib import models
from reprolib.defenses import CastPrecision, Defense, GaussianNoise, TopK
from reprolib.federated import client
from reprolib.federated.client import LocalTraining, SharedUpdate, share
from reprolib.federated.streams import generator
from reprolib.federated.threat import ThreatModel
from reprolib.models import Victims

SHAPE, CLASSES = (2, 6, 6), 5


class Net(models.Victim):
    """A victim of two convolutions, with batch norm or without, in float64 so that equality can be asked for."""

    def __init__(self, norm: bool = False, dropout: float = 0.0):
        super().__init__(CLASSES, SHAPE, nn.Identity())
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.BatchNorm2d(4) if norm else nn.Identity(),
            nn.Sigmoid(),
            nn.Dropout(dropout) if dropout else nn.Identity(),
            nn.Conv2d(4, 3, 3, stride=2, padding=1),
            nn.BatchNorm2d(3) if norm else nn.Identity(),
            nn.Sigmoid(),
            nn.Flatten(),
        )
        self.head = nn.Linear(27, CLASSES)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.2, 0.2)
                module.running_var.uniform_(0.5, 2)
        self.eval().double()

    def forward(self, x):
        return self.head(self.body(x))


def private(trials: int = 3, batch: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [T, B, *SHAPE] and labels [T, B]."""
    numbers = torch.Generator().manual_seed(1)
    images = torch.rand(trials, batch, *SHAPE, generator=numbers, dtype=torch.float64)
    return images, torch.randint(CLASSES, (trials, batch), generator=numbers)


def autograd(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """The gradient of one trial, the plain way."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(F.cross_entropy(model(images), labels), parameters), strict=True))


def assert_same(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], **(tolerance or {"rtol": 1e-10, "atol": 1e-14}))


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("norm", [False, True])
def test_gradients_equal_plain_autograd_in_every_trial(mode, norm):
    model = Net(norm)
    images, labels = private()
    update = share(model, images, labels, threat=ThreatModel(mode=mode))
    for trial in range(3):
        plain = copy.deepcopy(model).train(mode == "train")
        assert_same(update.select(trial).gradients, {k: g[None] for k, g in autograd(plain, *batch(trial)).items()})
    assert update.trials == 3 and update.batch_size == 4
    assert update.image_shape == SHAPE and update.num_classes == CLASSES


def batch(trial):
    images, labels = private()
    return images[trial], labels[trial]


@pytest.mark.parametrize(("name", "options"), [("lenet", {}), ("dlg-resnet20", {"norm": "batch"})])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_books_victims_share_what_autograd_computes(name, options, mode):
    model = models.build(name, 10, (3, 8, 8), seed=0, normalize=((0.5,) * 3, (0.2,) * 3), **options)
    before = models.fingerprint(model)
    numbers = torch.Generator().manual_seed(2)
    images = torch.rand(2, 3, 3, 8, 8, generator=numbers)
    labels = torch.randint(10, (2, 3), generator=numbers)
    update = share(model, images, labels, threat=ThreatModel(mode=mode))
    plain = copy.deepcopy(model).train(mode == "train")
    assert_same(
        update.select(1).gradients,
        {k: g[None] for k, g in autograd(plain, images[1], labels[1]).items()},
        rtol=1e-3,
        atol=1e-5,
    )
    assert models.fingerprint(model) == before
    update.check(model)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("local", [None, LocalTraining(2, 2, 0.1)])
def test_the_victim_is_left_bit_identical(mode, local):
    model = Net(norm=True).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    share(model, *private(), threat=ThreatModel(mode=mode, batch_norm="exact"), local=local)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training and all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_images_that_carry_a_graph_are_shared_as_their_values():
    model, (images, labels) = Net(), private()
    plain = share(model, images, labels, defense=GaussianNoise(0.1))
    carried = share(model, images.clone().requires_grad_(), labels, defense=GaussianNoise(0.1))
    assert_same(carried.gradients, plain.gradients, rtol=0, atol=0)
    assert not any(g.requires_grad for g in carried.gradients.values())


@pytest.mark.parametrize("local", [None, LocalTraining(1, 2, 0.1), LocalTraining(2, 2, 0.1, shuffle=True)])
def test_chunks_do_not_change_the_result(monkeypatch, local):
    model, threat = Net(norm=True), ThreatModel(mode="train", batch_norm="exact")
    whole = share(model, *private(), threat=threat, local=local, defense=GaussianNoise(0.1), seed=5)
    monkeypatch.setattr(client, "MEMORY_BUDGET", 1)
    single = share(model, *private(), threat=threat, local=local, defense=GaussianNoise(0.1), seed=5)
    assert_same(single.gradients, whole.gradients)
    for layer in whole.batch_norm:
        torch.testing.assert_close(single.batch_norm[layer], whole.batch_norm[layer])


def test_a_batch_is_the_mean_of_its_samples_in_any_order():
    model = Net()
    images, labels = private(2, 4)
    whole = share(model, images, labels).gradients
    singles = share(model, images.flatten(0, 1)[:, None], labels.flatten()[:, None]).gradients
    assert_same({name: g.unflatten(0, (2, 4)).mean(1) for name, g in singles.items()}, whole)
    order = torch.tensor([2, 0, 3, 1])
    assert_same(share(model, images[:, order], labels[:, order]).gradients, whole)


def test_mean_of_n_clients_equals_one_batch_of_their_images():
    images, labels = private(2, 6)
    one = share(Net(), images, labels)
    mean = share(Net(), images, labels, threat=ThreatModel(observes="mean of 3"))
    assert_same(mean.gradients, one.gradients, rtol=1e-6, atol=1e-6)
    assert mean.batch_size == 6


def test_mean_of_n_clients_averages_their_independent_noise():
    images, labels = private(8, 4)
    model = Net()
    threat = ThreatModel(observes="mean of 4")
    clean = share(model, images, labels, threat=threat).gradients
    noisy = share(model, images, labels, threat=threat, defense=GaussianNoise(1.0)).gradients
    noise = torch.cat([(noisy[name] - clean[name]).flatten() for name in clean])
    assert noise.std() == pytest.approx(0.5, rel=0.05)


def test_one_local_step_on_the_whole_batch_is_a_gradient_step():
    images, labels = private()
    gradients = share(Net(), images, labels).gradients
    update = share(Net(), images, labels, local=LocalTraining(1, 4, 0.25))
    assert_same({name: -g / 0.25 for name, g in update.gradients.items()}, gradients)
    assert_same(update.as_gradients(), gradients)


def test_local_training_is_plain_sgd_in_the_given_order():
    images, labels = private(2, 5)
    local = LocalTraining(epochs=2, batch_size=2, learning_rate=0.5)
    update = share(Net(norm=True), images, labels, local=local, threat=ThreatModel(mode="train"))
    for trial in range(2):
        model = Net(norm=True).train()
        start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in range(2):
            for x, y in zip(images[trial].split(2), labels[trial].split(2), strict=True):
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
        difference = {name: parameter.detach() - start[name] for name, parameter in model.named_parameters()}
        assert_same({name: g[trial] for name, g in update.gradients.items()}, difference)
    assert local.steps(5) == 6
    assert_same(update.as_gradients(), {name: -g / (0.5 * 6) for name, g in update.gradients.items()})


def test_mean_of_n_counts_the_steps_of_one_client():
    images, labels = private(2, 4)
    threat, local = ThreatModel(observes="mean of 2"), LocalTraining(1, 2, 0.1)
    update = share(Net(), images, labels, threat=threat, local=local)
    assert_same(update.as_gradients(), share(Net(), images, labels).gradients)


def test_the_update_holds_what_the_threat_model_grants_and_nothing_else():
    images, labels = private()
    least = share(Net(norm=True), images, labels, defense=TopK(0.5))
    assert least.labels is None and least.batch_norm is None and least.defense is None and least.local is None
    most = share(
        Net(norm=True),
        images,
        labels,
        defense=TopK(0.5),
        threat=ThreatModel(labels="known", batch_norm="exact", defense_known=True),
    )
    assert torch.equal(most.labels, labels) and most.defense == TopK(0.5)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_exact_batch_norm_statistics_are_those_of_the_layers_input(mode):
    model = Net(norm=True)
    images, labels = private()
    found = share(model, images, labels, threat=ThreatModel(mode=mode, batch_norm="exact")).batch_norm
    assert list(found) == ["body.1", "body.5"]
    for trial in range(3):
        worker = copy.deepcopy(model).train(mode == "train")
        first = worker.body[0](images[trial])
        second = worker.body[:5](images[trial])
        for layer, x in (("body.1", first), ("body.5", second)):
            mean, variance = found[layer]
            torch.testing.assert_close(mean[trial], x.mean((0, 2, 3)))
            torch.testing.assert_close(variance[trial], x.var((0, 2, 3), correction=0))


def test_running_batch_norm_statistics_are_the_models():
    model = Net(norm=True)
    found = share(model, *private(), threat=ThreatModel(mode="train", batch_norm="running")).batch_norm
    mean, variance = found["body.1"]
    assert torch.equal(mean, model.body[1].running_mean.expand(3, -1))
    assert torch.equal(variance, model.body[1].running_var.expand(3, -1))


def test_defense_randomness_depends_on_seed_and_trial_alone():
    model, (images, labels) = Net(), private()
    noisy = share(model, images, labels, defense=GaussianNoise(0.1), seed=3)
    assert_same(share(model, images, labels, defense=GaussianNoise(0.1), seed=3).gradients, noisy.gradients)
    fewer = share(model, images[:2], labels[:2], defense=GaussianNoise(0.1), seed=3)
    assert_same(fewer.gradients, noisy.select(slice(2)).gradients)
    other = share(model, images, labels, defense=GaussianNoise(0.1), seed=4)
    assert not torch.equal(other.gradients["head.bias"], noisy.gradients["head.bias"])
    same = share(model, images[:1].expand(3, -1, -1, -1, -1), labels[:1].expand(3, -1), defense=GaussianNoise(0.1))
    assert not torch.equal(same.gradients["head.bias"][0], same.gradients["head.bias"][1])


def test_identity_defense_is_bit_exact():
    model, (images, labels) = Net(), private()
    clean = share(model, images, labels).gradients
    for defense in (GaussianNoise(0), TopK(0)):
        shared = share(model, images, labels, defense=defense).gradients
        assert all(torch.equal(shared[name], clean[name]) for name in clean)


class Wider(Defense):
    """Stands in for defenses that insert a layer."""

    def extend(self, model):
        extended = copy.deepcopy(model)
        extended.body.append(nn.Linear(27, 27, dtype=torch.float64))
        return extended


def test_share_uses_the_model_that_the_defense_extends():
    torch.manual_seed(0)
    update = share(Net(), *private(), defense=Wider())
    assert "body.8.weight" in update.gradients
    torch.manual_seed(0)
    update.check(Wider().extend(Net()))
    with pytest.raises(ValueError, match=r"gradients for \['body.8.weight', 'body.8.bias'\], which the model does not"):
        update.check(Net())


def test_a_defense_that_loses_a_parameter_is_refused():
    class Broken(Defense):
        def protect(self, gradients, model, images, labels, generator):
            return {"head.bias": gradients["head.bias"]}

    with pytest.raises(ValueError, match="returned gradients of other names or shapes"):
        share(Net(), *private(), defense=Broken())


def test_select_and_to_keep_the_trial_axis_and_every_part():
    threat = ThreatModel(labels="known", batch_norm="exact")
    update = share(Net(norm=True), *private(), threat=threat)
    some = [(1, 1), (slice(1, 3), 2), ([2, 0], 2), (torch.tensor([True, False, True]), 2)]
    for index, trials in (*some, (np.int64(2), 1), (torch.tensor(0), 1), (np.array([-1]), 1), (range(2), 2)):
        part = update.select(index)
        assert part.trials == trials and len(part.labels) == trials and len(part.batch_norm["body.1"][0]) == trials
    assert torch.equal(update.select(1).labels, update.labels[1:2])
    assert update.to("cpu").gradients["head.bias"].device.type == "cpu"
    assert share(Net(), *private()).select(0).batch_norm is None


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([], "select needs one trial at least, and a flat list of them, got \\[\\]"),
        ([False] * 3, "select needs one trial at least"),
        (True, "select needs one trial at least, and a flat list of them, got True"),
        ([[0, 1]], "a flat list of them"),
        (3, r"select takes trials of 0\.\.2, got 3: index 3 is out of bounds"),
        ("a", r"select takes trials of 0\.\.2, got 'a'"),
        (1.0, r"select takes trials of 0\.\.2, got 1\.0"),
    ],
)
def test_select_refuses_what_names_no_trial(index, message):
    with pytest.raises(ValueError, match=message):
        share(Net(), *private()).select(index)


def test_joined_updates_keep_the_statistics_of_each():
    model, threat = Net(norm=True), ThreatModel(batch_norm="exact")
    whole = share(model, *private(), threat=threat)
    joined = SharedUpdate.join([whole.select(k) for k in range(3)], Victims.of([model] * 3))
    for layer, statistics in whole.batch_norm.items():
        assert all(map(torch.equal, joined.batch_norm[layer], statistics))


def test_join_needs_updates():
    with pytest.raises(ValueError, match="join needs one update at least, got none"):
        SharedUpdate.join([], Victims.of(Net(), 1))


def test_generator_is_repeatable_and_every_key_has_its_own_sequence():
    keys = [(0, 0), (0, 1), (1, 0), (0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (2**40, 0)]
    draws = [torch.randn(4, generator=generator(*key)) for key in keys]
    assert all(
        torch.equal(torch.randn(4, generator=generator(*key)), draw) for key, draw in zip(keys, draws, strict=True)
    )
    assert len({tuple(draw.tolist()) for draw in draws}) == len(keys)
    with pytest.raises(ValueError, match=r"integers >= 0, got \(0, -1\)"):
        generator(0, -1)


def test_check_accepts_its_model_and_refuses_others():
    model = Net()
    update = share(model, *private())
    update.check(model)

    other = Net()
    with torch.no_grad():
        other.head.bias += 1
    with pytest.raises(ValueError, match="computed with other weights: model fingerprint"):
        update.check(other)

    missing = replace(update, gradients={k: g for k, g in update.gradients.items() if k != "head.bias"})
    with pytest.raises(ValueError, match=r"no gradient for the parameters \['head.bias'\]"):
        missing.check(model)

    shaped = replace(update, gradients=update.gradients | {"head.bias": torch.zeros(3, 7)})
    with pytest.raises(ValueError, match=r"'head.bias' has shape \(7,\) a trial, the parameter \(5,\)"):
        shaped.check(model)

    with pytest.raises(ValueError, match=r"update is on meta and the model on cpu: use update.to\(device\)"):
        update.to("meta").check(model)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_check_names_trial_and_parameter_of_a_bad_value(value):
    model = Net()
    update = share(model, *private())
    update.gradients["head.weight"][1, 0, 0] = value
    with pytest.raises(ValueError, match=r"'head.weight' has a NaN or infinite entry in trial 1 \(1 of 3 trials\)"):
        update.check(model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "test"}, "mode must be one of 'eval', 'train', got 'test'"),
        ({"labels": "optimised"}, "labels must be one of 'unknown', 'known', got 'optimised'"),
        ({"batch_norm": "all"}, "batch_norm must be one of 'none', 'running', 'exact', 'buffers', got 'all'"),
        ({"defense_known": "yes"}, "defense_known must be True or False, got 'yes'"),
        ({"observes": "mean of 0"}, "observes must be 'one client' or 'mean of N' with N >= 1, got 'mean of 0'"),
        ({"observes": "everyone"}, "got 'everyone'"),
    ],
)
def test_threat_model_lists_known_values(settings, message):
    with pytest.raises(ValueError, match=message):
        ThreatModel(**settings)


def test_threat_model_tells_itself_in_plain_english():
    least = dict(ThreatModel().rows())
    most = dict(ThreatModel("train", "known", "exact", True, "mean of 8").rows())
    assert least.keys() == most.keys() and len(least) == 6
    assert all(question.endswith("?") and least[question].endswith(".") for question in least)
    assert "static" in least["Does it know the defense?"] and "adaptive" in most["Does it know the defense?"]
    assert "8 clients" in most["What does it see?"] and "one client" in least["What does it see?"]
    assert all(least[question] != most[question] for question in list(least)[1:])
    assert ThreatModel(observes="mean of 8").clients == 8 and ThreatModel().clients == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((0, 1, 0.1), "epochs must be a whole number >= 1, got 0"),
        ((1, 0, 0.1), "batch_size must be a whole number >= 1, got 0"),
        ((1, 1, 0.0), "learning_rate must be a finite number > 0, got 0.0"),
        ((1, 1, float("nan")), "learning_rate must be a finite number > 0, got nan"),
    ],
)
def test_local_training_refuses_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        LocalTraining(*settings)


def changed(images=None, labels=None):
    """The private data with one thing changed."""
    good = private()
    return (images(good[0]) if images else good[0]), (labels(good[1]) if labels else good[1])


def set_to(value):
    def change(tensor):
        tensor = tensor.clone()
        tensor[1, 0] = value
        return tensor

    return change


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            changed(images=lambda x: x[0]),
            r"images must have shape \[trials, batch, 2, 6, 6\] for this model, got \[4, 2",
        ),
        (changed(images=lambda x: x[..., :5]), r"got \[3, 4, 2, 6, 5\]"),
        (changed(images=lambda x: x[:0], labels=lambda y: y[:0]), r"at least one trial and one image a trial.*\[0, 4"),
        (changed(images=lambda x: x[:, :0], labels=lambda y: y[:, :0]), r"at least one trial and one image.*\[3, 0"),
        (changed(images=set_to(1.5)), r"images must lie in \[0, 1\], got values from .* to 1.5"),
        (changed(images=set_to(-0.1)), r"images must lie in \[0, 1\], got values from -0.1"),
        (changed(images=set_to(float("nan"))), "images have a NaN or infinite value in trial 1"),
        (changed(images=lambda x: x.float()), "images must be of the model's dtype torch.float64, got torch.float32"),
        (changed(labels=lambda y: y[:, 0]), r"labels must have shape \[3, 4\] like images, got \[3\]"),
        (changed(labels=lambda y: y.int()), "labels must be of dtype torch.int64, got torch.int32"),
        (changed(labels=set_to(5)), "labels must lie in 0..4 for this model, got 0 to 5"),
        (changed(labels=set_to(-1)), "labels must lie in 0..4 for this model, got -1 to"),
        (changed(labels=lambda y: y.to("meta")), "must be on one device, got cpu, cpu and meta"),
    ],
)
def test_share_refuses_bad_data(data, message):
    with pytest.raises(ValueError, match=message):
        share(Net(), *data)


def test_share_refuses_settings_that_do_not_fit():
    data = private()
    with pytest.raises(ValueError, match=r"seed, trial and stream must be integers >= 0, got \(-1, 0\)"):
        share(Net(), *data, seed=-1)
    with pytest.raises(ValueError, match=r"batch_size of LocalTraining is 5, but a client has only 4 image\(s\)"):
        share(Net(), *data, local=LocalTraining(1, 5, 0.1))
    with pytest.raises(ValueError, match=r"is 4, but a client has only 2 image\(s\)"):
        share(Net(), *data, local=LocalTraining(1, 4, 0.1), threat=ThreatModel(observes="mean of 2"))
    with pytest.raises(ValueError, match="observes='mean of 3' needs a batch that divides evenly.*got 4 images"):
        share(Net(), *data, threat=ThreatModel(observes="mean of 3"))
    with pytest.raises(ValueError, match="batch_norm='exact', but the model has no batch-norm layer"):
        share(Net(), *data, threat=ThreatModel(batch_norm="exact"))
    untracked = Net(norm=True)
    untracked.body[1].running_mean = untracked.body[1].running_var = None
    with pytest.raises(ValueError, match=r"the layers \['body.1'\] keep no running statistics"):
        share(untracked, *data, threat=ThreatModel(batch_norm="running"))
    with pytest.raises(ValueError, match=r"unrepeatable dropout masks in the layers \['body.3'\]: use 'eval'"):
        share(Net(dropout=0.5), *data, threat=ThreatModel(mode="train"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"images": [[0.5]]}, "images must be a tensor, got list"),
        ({"labels": [[1]]}, "labels must be a tensor, got list"),
        ({"threat": {"mode": "eval"}}, r"threat must be a client.ThreatModel\(...\), got {'mode': 'eval'}"),
        ({"local": 0.1}, r"local must be a client.LocalTraining\(...\), got 0.1"),
        ({"seed": True}, "seed, trial and stream must be integers >= 0, got .True"),
        ({"seed": "a"}, "seed, trial and stream must be integers >= 0, got .'a'"),
    ],
)
def test_share_names_an_argument_of_another_type(given, message):
    images, labels = private()
    with pytest.raises(ValueError, match=message):
        share(Net(), **{"images": images, "labels": labels} | given)


def test_share_refuses_models_that_are_not_victims():
    lacks = r"Linear is no victim as it is \(it is no models.Victim\)"
    with pytest.raises(ValueError, match=f"{lacks}: models.adapt"):
        share(nn.Linear(2, 2), *private())
    wrong = Net()
    wrong.num_classes = CLASSES + 1
    with pytest.raises(ValueError, match=f"its head gives {CLASSES} classes"):
        share(wrong, *private())


def test_half_precision_range_is_named():
    big = Net()
    with torch.no_grad():
        big.body[4].weight *= 1e7
        big.head.weight *= 1e7
    with pytest.raises(ValueError, match="beyond the range of fp16"):
        share(big, *private(), defense=CastPrecision("fp16"), local=LocalTraining(1, 1, 1e6))


@pytest.mark.parametrize("trials", [1, 2])
def test_second_derivatives_in_train_mode_agree_with_finite_differences(trials):
    from reprolib.attacks.matching import Matching
    from reprolib.federated.observation import Observation

    model = models.build("resnetbn8", 5, (3, 8, 8), seed=0, width=2).double()
    random = torch.Generator().manual_seed(0)
    x = torch.rand(trials, 3, 3, 8, 8, generator=random, dtype=torch.float64)
    y = torch.randint(5, (trials, 3), generator=random)
    update = share(model, x, y, threat=ThreatModel(mode="train"))
    soft = torch.nn.functional.one_hot(y, 5).double()
    matching = Matching(
        model, Observation(update.gradients), lambda z, rows: (z.view(-1, 3, 3, 8, 8), soft[rows]), mode="train"
    )
    point, rows = torch.rand(trials, 576, generator=random, dtype=torch.float64), torch.arange(trials)
    direction = torch.randn(trials, 576, generator=random, dtype=torch.float64)
    up, down = (matching(point + e * direction, rows)[0] for e in (1e-6, -1e-6))
    slope = (matching(point, rows)[1] * direction).sum(1)
    torch.testing.assert_close((up - down) / 2e-6, slope, rtol=1e-5, atol=1e-7)


def test_nothing_of_a_call_stays_behind():
    # a graph that holds itself is beyond the garbage collector: thousands of calls would fill the memory
    model = models.build("lenet", 10, (3, 32, 32), seed=0)

    def left() -> int:
        share(model, torch.rand(2, 1, 3, 32, 32), torch.zeros(2, 1, dtype=torch.long), threat=ThreatModel())
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    left()  # what the first call sets up
    assert left() == left()
