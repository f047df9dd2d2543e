"""Anybody's model and numbers: `models.adapt`, `models.incoming` and `client.SharedUpdate.of`."""

import copy
import pickle
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from torch import nn

from reprolib import attacks, defenses, models
from reprolib.attacks import labels
from reprolib.federated import client
from reprolib.measure import metrics
from reprolib.models.task import Task

SHAPE, CLASSES = (3, 8, 8), 5


class Plain(nn.Module):
    """As people write them: convolution, batch norm, and a last layer of another name."""

    def __init__(self, last=nn.Identity):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.hidden = nn.Linear(96, 20)
        self.out = nn.Linear(20, CLASSES)
        self.last = last()

    def forward(self, x):
        x = torch.sigmoid(self.norm(self.conv(x))).flatten(1)
        return self.last(self.out(torch.relu(self.hidden(x))))


class Featured(Plain):
    """Returns what enters its last layer beside the logits."""

    def forward(self, x):
        x = torch.sigmoid(self.norm(self.conv(x))).flatten(1)
        x = torch.relu(self.hidden(x))
        return self.out(x), x


def plain(seed=0, **options):
    torch.manual_seed(seed)
    return Plain(**options).double().eval()


def batch(size=2, seed=1):
    random = torch.Generator().manual_seed(seed)
    return torch.rand(size, *SHAPE, generator=random).double(), torch.randint(CLASSES, (size,), generator=random)


def gradient(module, x, y):
    return torch.autograd.grad(F.cross_entropy(module(x), y), list(module.parameters()))


def test_adapt_keeps_what_the_module_computes_and_leaves_it_alone():
    module, (x, y) = plain(), batch()
    before = models.fingerprint(module)
    model = models.adapt(module, SHAPE, CLASSES, normalize=models.Normalize([0.5] * 3, [0.25] * 3))
    assert torch.equal(model(x), module((x - 0.5) / 0.25)) and models.fingerprint(module) == before
    assert model.head.weight.equal(module.out.weight) and model.names["out.bias"] == "head.bias"
    assert models.adapt(module, SHAPE, CLASSES, head="out").names == model.names
    shared = client.share(model, x[None], y[None]).gradients
    module = nn.Sequential(models.Normalize([0.5] * 3, [0.25] * 3).double(), module)
    for (name, _), own in zip(module.named_parameters(), gradient(module, x, y), strict=True):
        assert torch.allclose(shared[model.names[name.removeprefix("1.")]][0], own, atol=1e-12)


@pytest.mark.parametrize(
    "given",
    [
        lambda: ([0.5] * 3, [0.25] * 3),
        lambda: torchvision.transforms.Normalize([0.5] * 3, [0.25] * 3),
        lambda: models.Normalize([0.5] * 3, [0.25] * 3).double(),
    ],
)
def test_a_normalisation_in_any_form_is_the_victims_own_field(given):
    model = models.adapt(plain(), SHAPE, CLASSES, normalize=given())
    assert model.mean.flatten().tolist() == [0.5] * 3 and model.std.shape == (3, 1, 1)
    assert isinstance(model.normalize, models.Normalize) and model.std.dtype == torch.float64
    assert torch.equal(model(batch()[0]), plain()((batch()[0] - 0.5) / 0.25))


def test_without_a_normalisation_of_the_books_an_attacker_searches_in_pixels():
    for normalize in (None, nn.BatchNorm2d(3).double()):
        model = models.adapt(plain(), SHAPE, CLASSES, normalize=normalize)
        assert model.mean.tolist() == [0.0] and model.std.tolist() == [1.0]


class Tied(nn.Module):
    def __init__(self, twice):
        super().__init__()
        self.embed, self.out, self.twice = nn.Linear(CLASSES, CLASSES), nn.Linear(CLASSES, CLASSES), twice
        self.first = nn.Linear(192, CLASSES)
        if not twice:
            self.embed.weight = self.out.weight

    def forward(self, x):
        x = self.first(x.flatten(1))
        return self.out(self.out(x) if self.twice else self.embed(x))


class Returns(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.out, self.wrap = nn.Linear(192, CLASSES), wrap

    def forward(self, x):
        return self.wrap(self.out(x.flatten(1)))


class Call(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class ChannelsNorm(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.flip(1))


def plain_layers(outputs=CLASSES):
    return nn.Flatten(), nn.Linear(192, 16), nn.Sigmoid(), nn.Linear(16, outputs)


def frozen():
    return plain().requires_grad_(False)


def nan():
    module = plain()
    module.out.bias.data[0] = torch.nan
    return module


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.LSTM(24, 8, batch_first=True), nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.out(self.rnn(x.flatten(2).transpose(1, 2))[0][:, -1])


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (lambda: "resnet", {}, "must be an nn.Module, got str"),
        (lambda: plain(last=lambda: nn.Softmax(1)), {}, "something follows 'out'.*no softmax"),
        (lambda: plain(last=lambda: nn.Unflatten(1, (1, CLASSES))), {}, "no linear layer's"),
        (lambda: nn.Sequential(nn.Conv2d(3, CLASSES, 8), nn.Flatten()), {}, "no linear layer's"),
        (plain, {"head": "hidden"}, "head='hidden', but its output is what 'out' computes"),
        (plain, {"head": "fc"}, "head='fc' is none of its linear layers: hidden, out"),
        (plain, {"num_classes": 7}, r"'out' gives \[2, 5\] for two images, expected \[2, 7\]"),
        (plain, {"num_classes": 1}, "num_classes=1: expected an integer of at least 2"),
        (plain, {"num_classes": True}, "num_classes=True"),
        (plain, {"normalize": ([0.5], [0.25])}, "expected .mean, std. with 3 numbers each"),
        (plain, {"normalize": ([0.5] * 3, [0] * 3)}, "std positive"),
        (plain, {"normalize": "imagenet"}, "normalize='imagenet'"),
        (plain, {"image_shape": (8, 8)}, r"image_shape=\(8, 8\): expected"),
        (plain, {"image_shape": (1, 8, 8)}, r"does not take images of shape \[2, 1, 8, 8\]"),
        (lambda: Tied(False).double(), {}, r"shares its weight with \['embed.weight'\]"),
        (lambda: Tied(True).double(), {}, "'out' runs 2 times"),
        (lambda: Returns(lambda out: {"out": out, "features": 2 * out}).double(), {}, "returns a dict without"),
        (lambda: Returns(lambda out: 2 * out).double(), {}, "something follows 'out'"),
        (frozen, {}, "all its parameters are frozen"),
        (nan, {}, r"\['out.bias'\] hold NaN"),
        (nn.Identity, {}, "no parameters"),
        (lambda: plain().half(), {}, r"torch.float16.*module.float\(\)"),
        (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(CLASSES)), {}, "have no values yet"),
        (lambda: Recurrent().double(), {}, r"\['rnn'\] are recurrent"),
        (lambda: torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES))), {}, "torch.jit compiled it"),
        (lambda: plain().to("meta"), {}, r"'out.bias'\] have no values \(device 'meta'\)"),
        (lambda: nn.Sequential(Call(lambda x: F.dropout(x, 0.5)), *plain_layers()), {}, "two passes .* differ"),
        (lambda: plain(last=lambda: Call(torch.relu)), {}, r"something follows 'out': 'last', a .*\.Call"),
        (
            lambda: nn.Sequential(Call(torch.squeeze), *plain_layers(1)),
            {"num_classes": 1, "task": Task("bce")},
            "squee",
        ),
        (
            lambda: nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 3, 1)), *plain_layers()),
            {},
            "cannot be copied.*prune",
        ),
        (
            lambda: nn.Sequential(ChannelsNorm([8, 8]), *plain_layers()),
            {},
            r"'0' \(ChannelsNorm\) are normalisation with",
        ),
        (
            lambda: nn.Sequential(Call(lambda x: F.layer_norm(x, [8, 8])), nn.LayerNorm(8), *plain_layers()),
            {},
            "its forward calls F.layer_norm or F.instance_norm, whose second derivative in batches is wrong",
        ),
        (lambda: nn.Sequential(nn.RReLU(), *plain_layers()), {}, "torch cannot differentiate it twice.*RReLU"),
        (lambda: nn.Sequential(Call(lambda x: x if x.mean() > 0 else -x), *plain_layers()), {}, "Branches on values"),
        (
            lambda: nn.Sequential(torch.compile(nn.Flatten()), nn.Linear(192, 5)),
            {},
            r"compile wraps its layers \['0'\]",
        ),
        (lambda: plain(last=lambda: Call(lambda x: (x, x))), {}, "returns a tuple without"),
        (
            lambda: Recurrent().requires_grad_(False),
            {"num_classes": 0},
            r"\(1\) num_classes=0.*\(2\) all.*\(3\) the lay",
        ),
    ],
)
def test_adapt_names_what_is_missing(module, options, message):
    with pytest.raises(ValueError, match=message):
        models.adapt(module(), **{"image_shape": SHAPE, "num_classes": CLASSES} | options)


HARD = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.Hardsigmoid(), nn.Linear(16, CLASSES))
AROUND = {
    "compiled": torch.compile,
    "data-parallel": nn.DataParallel,
    "tuple": lambda module: nn.Sequential(module, Call(lambda out: (out,))),
    "features": lambda module: Featured(),
    "mapping": lambda module: nn.Sequential(module, Call(lambda out: {"loss": None, "logits": out})),
    "attribute": lambda module: nn.Sequential(module, Call(lambda out: SimpleNamespace(logits=out, hidden=0))),
    "spectral": lambda module: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 3, 1)), module),
    "old spectral": lambda module: nn.Sequential(nn.utils.spectral_norm(nn.Conv2d(3, 3, 1)), module),
    "hard sigmoid": lambda module: copy.deepcopy(HARD),
}


@pytest.mark.parametrize("around", AROUND)
def test_what_is_around_the_logits_is_understood(around):
    torch.manual_seed(0)
    module, (x, y) = AROUND[around](plain()).double().eval(), batch()
    model = models.adapt(module, SHAPE, CLASSES)
    update = client.share(model, x[:, None], y[:, None], threat=client.ThreatModel(labels="known"))
    plainly = getattr(module, "_orig_mod", module)
    for trial in range(2):
        out = plainly(x[trial : trial + 1])
        out = out[0] if isinstance(out, tuple) else out["logits"] if isinstance(out, dict) else out
        loss = F.cross_entropy(getattr(out, "logits", out), y[trial : trial + 1])
        own = torch.autograd.grad(loss, list(plainly.parameters()), allow_unused=True)
        for (name, _), value in zip(plainly.named_parameters(), own, strict=True):
            here = model.names[name.removeprefix("module.")]
            assert torch.allclose(update.gradients[here][trial], value, atol=1e-12), name
    assert attacks.InvertingGradients(labels="known", iterations=2)(model, update).objective.isfinite().all()
    if around in ("compiled", "data-parallel"):  # what a test's lambdas and torch's parametrisations forbid
        assert torch.equal(pickle.loads(pickle.dumps(model))(x), model(x))


@pytest.mark.parametrize(("mode", "frozen"), [("eval", False), ("eval", True), ("train", False)])
def test_torchs_transformer_layers_are_no_random_numbers(mode, frozen):
    """Their fast path, which they take when they are frozen, has no derivative; dropout of 0 draws nothing."""

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches = nn.Conv2d(3, 8, 4, 4)
            layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
            self.last = nn.Linear(8, 5)

        def forward(self, x):
            return self.last(self.encoder(self.patches(x).flatten(2).transpose(1, 2)).mean(1))

    torch.manual_seed(0)
    module, x, y = Tokens().double(), torch.rand(2, 1, 3, 8, 8).double(), torch.tensor([[3], [1]])
    module.train(mode == "train").encoder.requires_grad_(not frozen)
    model = models.adapt(module, (3, 8, 8), 5)
    assert torch.backends.mha.get_fastpath_enabled(), "as it was"
    F.cross_entropy(module(x[0]), y[0]).backward()
    update = client.SharedUpdate.of(model, {n: p.grad for n, p in module.named_parameters()}, batch_size=1)
    shared = client.share(model, x, y, threat=client.ThreatModel(mode=mode))
    for name, value in update.gradients.items():
        torch.testing.assert_close(value[0], shared.gradients[name][0], rtol=1e-9, atol=1e-12)
    found = attacks.InvertingGradients(labels="inferred", iterations=2)(model, shared, progress=False)
    assert found.labels.tolist() == [[3], [1]]
    alone = attacks.InvertingGradients(labels="inferred", iterations=2)(model, shared.select(1), [(0, 1)], False)
    assert torch.allclose(alone.objective, found.objective[1:], rtol=1e-6)


def test_dropout_inside_attention_draws_masks_too():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.last = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True), nn.Linear(8, 5)

        def forward(self, x):
            tokens = x.flatten(2)
            return self.last(self.attention(tokens, tokens, tokens)[0].mean(1))

    model = models.adapt(Attention(), (3, 2, 4), 5)
    with pytest.raises(ValueError, match=r"dropout masks in the layers \['body.attention'\]: use 'eval'"):
        client.share(model, torch.rand(1, 1, 3, 2, 4), torch.tensor([[3]]), threat=client.ThreatModel(mode="train"))


def test_batch_norm_without_running_statistics_needs_several_images_and_is_taken():
    layers = nn.Flatten(), nn.Linear(192, 16), nn.BatchNorm1d(16, track_running_stats=False), nn.Linear(16, 5)
    module, (x, y) = nn.Sequential(*layers).double().eval(), batch(3)
    model = models.adapt(module, SHAPE, CLASSES)
    shared = client.share(model, x[None], y[None]).gradients
    for name, own in zip(dict(module.named_parameters()), gradient(module, x, y), strict=True):
        assert torch.allclose(shared[model.names[name]][0], own, atol=1e-12), name


class Tempered(nn.Module):
    """With a parameter that is a single number, as CLIP's temperature and ReZero's factors."""

    def __init__(self):
        super().__init__()
        self.factor, self.first, self.last = nn.Parameter(torch.tensor(0.5)), nn.Linear(192, 8), nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.last(torch.tanh(self.factor * self.first(x.flatten(1))))


@pytest.mark.parametrize(
    "defense",
    [
        None,
        defenses.GaussianNoise(0.01),
        defenses.TopK(0.5),
        defenses.TopK(0.5, scope="global"),
        defenses.Clipping(0.5),
        defenses.Clipping(0.01, scope="tensor"),
        defenses.SignCompression(),
        defenses.DualPruning(0.1, 0.5),
        defenses.CastPrecision("int8"),
        defenses.DPSGD(1.0, 0.1),
    ],
    ids=repr,
)
def test_a_parameter_may_be_a_single_number(defense):
    torch.manual_seed(0)
    module, (x, y) = Tempered().double(), batch(2)
    model = models.adapt(module, SHAPE, CLASSES)
    update = client.SharedUpdate.of(model, gradient(module, x, y), batch_size=2)
    assert update.gradients["body.factor"].shape == (1,)
    for known in (False, True):
        threat = client.ThreatModel(labels="known", defense_known=known)
        both = torch.stack([x, x.flip(0)]), torch.stack([y, y.flip(0)])
        update = client.share(model, *both, threat=threat, defense=defense)
        for attack in (attacks.InvertingGradients(iterations=1), attacks.DLG(iterations=1, labels="known")):
            assert attack(model, update, progress=False).raw.isfinite().all()


def test_one_output_may_come_without_its_axis():
    module = nn.Sequential(*plain_layers(1), Call(lambda out: out.squeeze(1))).double()
    model = models.adapt(module, SHAPE, 1, task=Task("bce"))
    x, _ = batch()
    assert torch.equal(model(x)[:, 0], module(x))


def test_a_norm_that_every_pass_moves_is_refused_in_training_mode():
    module = AROUND["spectral"](plain()).double()
    model, (x, y) = models.adapt(module, SHAPE, CLASSES), batch()
    with pytest.raises(
        ValueError, match=r"mode='train' would write the buffers \['0.parametrizations.*_u'.*use 'eval'"
    ):
        client.share(model, x[None], y[None], threat=client.ThreatModel(mode="train"))


FORMS = {
    "mapping": lambda named, folder: named,
    "arrays": lambda named, folder: {name: value.numpy() for name, value in named.items()},
    "list": lambda named, folder: list(named.values()),
    "tuple of arrays": lambda named, folder: tuple(value.numpy() for value in named.values()),
    "wrapped": lambda named, folder: {f"_orig_mod.module.{name}": value for name, value in named.items()},
    "pairs": lambda named, folder: named.items(),
    "big-endian": lambda named, folder: {name: value.numpy().astype(">f8") for name, value in named.items()},
    "sparse": lambda named, folder: {name: value.to_sparse() if value.ndim else value for name, value in named.items()},
    "vector": lambda named, folder: torch.cat([value.double().flatten() for value in named.values()]),
    "generator": lambda named, folder: (value[...] for value in FORMS["tuple of arrays"](named, folder)),
    "ckpt": lambda named, folder: (
        torch.save({"net": named, "optimizer": {"state": {}, "param_groups": []}, "epoch": 3}, folder / "u.ckpt")
        or folder / "u.ckpt"
    ),
    "pt": lambda named, folder: torch.save({"state_dict": named, "epoch": 3}, folder / "u.pt") or folder / "u.pt",
    "npz": lambda named, folder: np.savez(folder / "u.npz", **FORMS["arrays"](named, folder)) or folder / "u.npz",
    "npz, unnamed": lambda named, folder: (
        np.savez(folder / "u.npz", *FORMS["tuple of arrays"](named, folder)) or str(folder / "u.npz")
    ),
    "safetensors": lambda named, folder: save_file(named, folder / "u.safetensors") or folder / "u.safetensors",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["gradient", "difference", "weights"])
def test_an_update_in_any_form_is_the_one_that_share_makes(form, kind, tmp_path):
    module, (x, y) = plain(), batch()
    model, local = models.adapt(module, SHAPE, CLASSES), client.LocalTraining(2, 1, 0.1, momentum=0.5)
    local = None if kind == "gradient" else local
    shared = client.share(model, x[None], y[None], local=local)
    numbers = {name: shared.gradients[here][0] for name, here in model.names.items() if here in shared.gradients}
    if kind == "weights":
        state = module.state_dict()
        numbers = {name: value + numbers[name] if name in numbers else value for name, value in state.items()}
    given = {"after" if kind == "weights" else "gradients": FORMS[form](numbers, tmp_path)}
    update = client.SharedUpdate.of(model, batch_size=2, local=local, **given)
    for name, value in shared.gradients.items():
        assert torch.allclose(update.gradients[name], value, atol=1e-14), name
    by_order = {"list", "tuple of arrays", "npz, unnamed", "vector", "generator"}
    assert any("order of" in line for line in update.assumed) == (form in by_order)


def test_the_weights_that_the_server_sent_are_loaded_in_any_form():
    module, other = plain(0), plain(3)
    model = models.adapt(module, SHAPE, CLASSES, weights=[value.numpy() for value in other.state_dict().values()])
    x, _ = batch()
    assert torch.equal(model(x), other(x))
    with pytest.raises(ValueError, match=r"weights: nothing for \['conv.weight'"):
        models.adapt(module, SHAPE, CLASSES, weights={"out.bias": other.out.bias})
    with pytest.raises(ValueError, match="weights: .* hold NaN"):
        models.adapt(module, SHAPE, CLASSES, weights=nan().state_dict())


def test_an_order_that_does_not_fit_is_found_by_shapes_that_are_all_different():
    module, (x, y) = plain(), batch()
    module.norm = nn.Identity()  # its weight and bias have the shape of the convolution's bias
    model = models.adapt(module.double(), SHAPE, CLASSES)
    shared = client.share(model, x[None], y[None]).gradients
    turned = [shared[model.names[name]][0] for name, _ in module.named_parameters()][::-1]
    update = client.SharedUpdate.of(model, turned, batch_size=2)
    assert all(torch.equal(update.gradients[name], value) for name, value in shared.items())
    assert "placed by its shape" in update.assumed[0]


def test_what_is_lower_in_precision_is_read_and_said():
    module, (x, y) = plain(), batch()
    model = models.adapt(module, SHAPE, CLASSES)
    grads = [g.bfloat16() for g in gradient(module, x, y)]
    update = client.SharedUpdate.of(model, grads, batch_size=2)
    assert "8 arrays of bfloat16 were read as float64" in update.assumed
    assert update.gradients["head.bias"].dtype == torch.float64


def test_only_what_is_trained_is_needed_and_none_is_zero():
    module, (x, y) = plain(), batch()
    module.aux = nn.Linear(4, 4).double()
    for parameter in (*module.conv.parameters(), *module.norm.parameters()):
        parameter.requires_grad_(False)
    model = models.adapt(module, SHAPE, CLASSES)
    F.cross_entropy(module(x), y).backward()
    every = {name: parameter.grad for name, parameter in module.named_parameters()}
    update = client.SharedUpdate.of(model, every, batch_size=2)
    shared = client.share(model, x[None], y[None])
    assert (
        update.gradients.keys()
        == shared.gradients.keys()
        == {n for n, p in model.named_parameters() if p.requires_grad}
    )
    assert all(torch.allclose(update.gradients[name], value) for name, value in shared.gradients.items())
    assert any("aux" in line and "zero" in line for line in update.assumed)


def test_one_image_of_two_classes_has_as_many_negative_entries_as_positive():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 2)).double()
    x, _ = batch(1)
    model = models.adapt(module, SHAPE, 2)
    for label in (0, 1):
        update = client.SharedUpdate.of(model, gradient(module, x, torch.tensor([label])), batch_size=1)
        assert labels.from_update(update, "bias").tolist() == [label]


def ours(change):
    """Numbers of the plain module's gradient after a change, for the messages below."""

    def make():
        module, (x, y) = plain(), batch()
        return change(module, dict(zip(dict(module.named_parameters()), gradient(module, x, y), strict=True)))

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (ours(lambda m, g: {"gradients": {n: -v for n, v in g.items()}}), "points the other way"),
        (ours(lambda m, g: {"gradients": {n: 3 * v for n, v in g.items()}}), "too large for a mean loss"),
        (ours(lambda m, g: {"gradients": m.state_dict()}), "these are weights"),
        (
            ours(
                lambda m, g: {
                    "gradients": {n: p + 0.5 * p.std() * torch.randn_like(p) for n, p in m.named_parameters()}
                }
            ),
            "these are weights",
        ),
        (ours(lambda m, g: {"gradients": g, "after": g}), "give either gradients"),
        (ours(lambda m, g: {}), "give either gradients"),
        (ours(lambda m, g: {"after": m.state_dict()}), r"weights need local=LocalTraining"),
        (ours(lambda m, g: {"after": m.state_dict(), "local": client.LocalTraining(1, 1, 0.1)}), "nothing was trained"),
        (
            ours(lambda m, g: {"after": g, "before": plain(4).state_dict(), "local": client.LocalTraining(1, 1, 0.1)}),
            "before: .* are not the model's weights",
        ),
        (ours(lambda m, g: {"gradients": list(g.values())[:-1]}), r"7 arrays, but the module has 11 \(state_dict"),
        (ours(lambda m, g: {"gradients": list(g.values())[::-1]}), "the shapes do not say where each belongs"),
        (ours(lambda m, g: {"gradients": g | {"fc.weight": g["out.weight"]}}), "has no 'fc.weight'"),
        (
            ours(lambda m, g: {"gradients": {n: v for n, v in g.items() if n != "out.bias"}}),
            r"nothing for \['out.bias'\]",
        ),
        (ours(lambda m, g: {"gradients": g | {"out.bias": g["out.bias"][:-1]}}), r"'out.bias' has shape \(4,\)"),
        (ours(lambda m, g: {"gradients": g | {"out.bias": g["out.bias"] * torch.nan}}), "hold NaN"),
        (ours(lambda m, g: {"gradients": g | {"out.bias": g["out.bias"].long()}}), "dtype torch.int64. Expected frac"),
        (ours(lambda m, g: {"gradients": g | {"out.bias": g["out.bias"] + 0j}}), "dtype torch.complex128"),
        (ours(lambda m, g: {"gradients": g | {"out.bias": "x"}}), "str|no array"),
        (ours(lambda m, g: {"gradients": 3}), "must be a mapping .*, got int"),
        (ours(lambda m, g: {"gradients": {1: 2}}), "names must be text"),
        (ours(lambda m, g: {"gradients": "update.h5"}), "another ending"),
        (ours(lambda m, g: {"gradients": {}}), "nothing for .'conv.weight'"),
        (ours(lambda m, g: {"gradients": [0 * v for v in g.values()]}), "all are zero or None: .*zero_grad"),
        (ours(lambda m, g: {"gradients": [None] * len(g)}), "all are zero or None"),
        (ours(lambda m, g: {"gradients": [b"x"] * len(g)}), "array 0 is no array of numbers: bytes.*flwr"),
        (ours(lambda m, g: {"gradients": set(g)}), "must be a mapping .*, got set"),
        (ours(lambda m, g: {"gradients": torch.zeros(7)}), "a vector of 7 numbers, but the module has"),
        (ours(lambda m, g: {"gradients": torch.zeros(7, 7)}), "must be a mapping .*, got Tensor"),
        (
            ours(lambda m, g: {"gradients": g | {"module.out.bias": g["out.bias"]}}),
            "several names stand for one tensor",
        ),
        (
            ours(lambda m, g: {"gradients": {"criterion.w": 1} | {f"net.{n}": v for n, v in g.items()}}),
            "the model has no 'criterion.w': leave out",
        ),
        (
            ours(lambda m, g: {"gradients": {n.replace("out", "fc"): v for n, v in g.items()}}),
            "has no 'fc.weight', 'fc.bias', and there is nothing for its 'out.weight', 'out.bias'",
        ),
        (
            ours(
                lambda m, g: {"gradients": g | {"conv.weight": g["conv.weight"].permute(2, 3, 1, 0), "out.bias": 1.0}}
            ),
            r"'conv.weight' .*\(as Keras .*transpose\(3, 2, 0, 1\)\), 'out.bias' has shape \(\)",
        ),
        (ours(lambda m, g: {"gradients": {n: v.numpy().T for n, v in g.items()}}), r"'out.weight' .*give array.T"),
        (ours(lambda m, g: {"gradients": g, "local": 0.1}), r"local must be a client.LocalTraining\(...\), got 0.1"),
        (ours(lambda m, g: {"gradients": g, "threat": "eval"}), r"threat must be a client.ThreatModel"),
        (ours(lambda m, g: {"gradients": g, "labels": ["cat", "dog"]}), "labels must be numbers"),
        (ours(lambda m, g: {"gradients": g, "labels": [1]}), "labels must have shape"),
        (ours(lambda m, g: {"gradients": g, "labels": [1, 5]}), "labels must lie in 0..4"),
        (ours(lambda m, g: {"gradients": g, "labels": [1.0, 2.0]}), "labels must be of dtype torch.int64"),
        (ours(lambda m, g: {"gradients": g, "batch_size": 0}), "batch_size must be a whole number"),
        (
            ours(lambda m, g: {"gradients": g, "threat": client.ThreatModel(batch_norm="running")}),
            "carries no statistics",
        ),
    ],
)
def test_numbers_that_are_no_update_of_this_model_are_refused(make, message):
    model = models.adapt(plain(), SHAPE, CLASSES)
    with pytest.raises(ValueError, match=message):
        client.SharedUpdate.of(model, **{"batch_size": 2} | make())


def test_a_file_that_is_missing_or_no_plain_numbers_is_refused(tmp_path):
    model = models.adapt(plain(), SHAPE, CLASSES)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        client.SharedUpdate.of(model, tmp_path / "u.npz", batch_size=1)
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 cut")
    torch.save(plain(), tmp_path / "code.pt")  # a whole module: its pickle would run code
    torch.save(torch.optim.SGD(plain().parameters()).state_dict(), tmp_path / "sgd.pt")
    np.savez(tmp_path / "objects.npz", a=np.array([{}], dtype=object))
    reasons = {
        "cut.npz": "",
        "code.pt": "it holds more than tensors.*could run code",
        "objects.npz": "Object arrays .*np.savez",
        "sgd.pt": "state of an optimiser",
    }
    for name, reason in reasons.items():
        with pytest.raises(ValueError, match=f"{name!r} cannot be read as.*{reason}"):
            client.SharedUpdate.of(model, tmp_path / name, batch_size=1)


def test_the_buffers_say_how_batch_norm_ran():
    module, (x, y) = plain(), batch()
    model, local, after = models.adapt(module, SHAPE, CLASSES), client.LocalTraining(1, 2, 1e-3), copy.deepcopy(module)
    step = torch.optim.SGD(after.train().parameters(), lr=1e-3)
    F.cross_entropy(after(x), y).backward()
    step.step()
    with pytest.raises(ValueError, match=r"statistics of batch norm moved, .*ThreatModel\(mode='train'\)"):
        client.SharedUpdate.of(model, after=after, batch_size=2, local=local)
    training = {"batch_size": np.int64(2), "local": local, "threat": client.ThreatModel(mode="train")}
    update = client.SharedUpdate.of(model, after=after, **training)
    shared = client.share(model, x[None], y[None], threat=training["threat"], local=local)
    assert all(torch.allclose(update.gradients[name], g, atol=1e-12) for name, g in shared.gradients.items())
    assert update.assumed == () and type(update.batch_size) is int
    after(x), after(x)
    assert "counted 3 passes, but" in client.SharedUpdate.of(model, after=after, **training).assumed[0]
    after.load_state_dict(after.state_dict() | dict(module.named_buffers()))
    assert "did not move" in client.SharedUpdate.of(model, after=after, **training).assumed[0]
    assert "mode='train'" in client.SharedUpdate.of(model, after=list(after.parameters()), **training).assumed[1]


def test_a_last_bias_alone_may_be_trained():
    module, (x, y) = plain().requires_grad_(False), batch()
    module.out.bias.requires_grad_(True)
    (bias,) = torch.autograd.grad(F.cross_entropy(module(x), y), [module.out.bias])
    update = client.SharedUpdate.of(models.adapt(module, SHAPE, CLASSES), [bias], batch_size=2, labels=y.int().numpy())
    assert torch.equal(update.gradients["head.bias"][0], bias) and torch.equal(update.labels[0], y)


def test_added_noise_is_said_and_not_refused():
    model, (x, y) = models.adapt(plain(), SHAPE, CLASSES), batch()
    noisy = {name: 20 * torch.randn_like(g[0]) for name, g in client.share(model, x[None], y[None]).gradients.items()}
    assert "does not sum to 0" in client.SharedUpdate.of(model, noisy, batch_size=2).assumed[-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: list(g.values()), "no tensors by name: SharedUpdate.of"),
        (lambda g: {name: value.numpy() for name, value in g.items()}, "no tensors by name: SharedUpdate.of"),
        (
            lambda g: {name: value.float() for name, value in g.items()},
            "is of dtype torch.float32, the model of .*float64",
        ),
    ],
)
def test_numbers_that_went_past_the_constructor_are_sent_back_to_it(change, message):
    model, (x, y) = models.adapt(plain(), SHAPE, CLASSES), batch()
    update = client.share(model, x[None], y[None])
    with pytest.raises(ValueError, match=message):
        attacks.InvertingGradients(iterations=1)(model, replace(update, gradients=change(update.gradients)))


def test_a_model_that_is_no_victim_is_named():
    with pytest.raises(ValueError, match=r"Plain is no victim as it is \(it is no models.Victim\): models.adapt"):
        client.SharedUpdate.of(plain(), [], batch_size=1)
    update = client.share(models.adapt(plain(), SHAPE, CLASSES), *(part[None] for part in batch()))
    with pytest.raises(ValueError, match="Plain is no victim as it is"):
        attacks.DLG(iterations=1)(plain(), update)


@pytest.mark.parametrize("together", [False, True])
def test_attacks_find_the_image_behind_somebody_elses_numbers(together):
    """From a plain training loop's weights to the label and the image, with one model or several."""
    found = []
    for seed in range(2 if together else 1):
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Flatten(), nn.Linear(192, 256), nn.Sigmoid(), nn.Linear(256, CLASSES)).double()
        model, (x, y) = models.adapt(module, SHAPE, CLASSES), batch(1, seed)
        client_side = copy.deepcopy(module)
        step = torch.optim.SGD(client_side.parameters(), lr=0.01)
        F.cross_entropy(client_side(x), y).backward()
        step.step()
        update = client.SharedUpdate.of(
            model, after=client_side.state_dict(), batch_size=1, local=client.LocalTraining(1, 1, 0.01)
        )
        assert labels.from_update(update, "bias") == y
        found.append((model, update, x))
    victims = [model for model, _, _ in found]
    model, update = victims[0], found[0][1]
    if together:
        model = models.Victims.of(victims, 1)
        update = client.SharedUpdate.join([u for _, u, _ in found], model)
    result = attacks.IDLG(iterations=60)(model, update)
    assert (metrics.mse(result.images[:, 0], torch.cat([x for _, _, x in found])) < 1e-4).all()


def test_the_books_page_goes_from_two_files_to_the_picture(tmp_path, monkeypatch):
    page = Path(__file__).resolve().parent.parent / "book" / "your-own-model.md"
    _, server, shown = cells = re.findall(r"```{code-cell} ipython3\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    assert len([line for line in server.splitlines() if line]) <= 8
    monkeypatch.chdir(tmp_path)
    names = {}
    for cell in cells:
        exec(cell, names)
    assert metrics.psnr(names["found"].images[0], names["image"]).item() > 20
    assert names["found"].labels.item() == names["label"].item() and "print" in shown


@pytest.mark.parametrize(
    ("task", "loss", "outputs"),
    [
        (Task("bce"), nn.BCEWithLogitsLoss(), 5),
        (Task("bce"), nn.BCEWithLogitsLoss(), 1),
        (Task("squared error"), nn.MSELoss(), 2),
        (Task(reduction="sum"), nn.CrossEntropyLoss(reduction="sum"), 5),
        (Task(smoothing=0.1), nn.CrossEntropyLoss(label_smoothing=0.1), 5),
    ],
)
@pytest.mark.parametrize("attack", ["DLG", "IG"])
def test_an_image_is_found_under_any_task(task, loss, outputs, attack):
    torch.manual_seed(2)
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 128), nn.Sigmoid(), nn.Linear(128, outputs)).double()
    model, (x, y) = models.adapt(module, SHAPE, outputs, task=task), batch(1)
    if task.loss != "cross-entropy":
        y = torch.tensor([1.0, 0, 1, 1, 0][:outputs]).double()[None] if outputs > 1 else torch.tensor([1])
    target = y.double()[:, None] if outputs == 1 else y
    gradients = torch.autograd.grad(loss(module(x), target), list(module.parameters()))
    update = client.SharedUpdate.of(model, gradients, batch_size=1, labels=y)
    shared = client.share(model, x[None], y[None], threat=client.ThreatModel(labels="known"))
    assert all(torch.allclose(update.gradients[n], g, atol=1e-12) for n, g in shared.gradients.items())
    chosen = (
        attacks.DLG(labels="known", iterations=60) if attack == "DLG" else attacks.InvertingGradients(iterations=400)
    )
    found = chosen(model, update)
    assert metrics.psnr(found.images[0], x).item() > (30 if attack == "DLG" else 15)
    assert torch.equal(found.labels, update.labels), "given labels come back as they were given"


def test_classes_are_read_only_where_there_are_any():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).double()
    x, _ = batch(1)
    model = models.adapt(module, SHAPE, 3, task=Task("squared error"))
    update = client.share(model, x[None], torch.rand(1, 1, 3).double())
    for attack in (attacks.DLG(), attacks.IDLG(), attacks.InvertingGradients(labels="inferred")):
        with pytest.raises(ValueError, match="cross-entropy over classes, but the clients minimise 'squared error'"):
            attack(model, update)
    with pytest.raises(ValueError, match="the clients minimise .*squared error.*, but the model is adapted for"):
        attacks.DLG()(models.adapt(module, SHAPE, 3), update)


def test_a_sum_over_the_batch_leaves_the_counts_of_labels_as_they_are():
    torch.manual_seed(0)
    module, (x, _) = plain(), batch(3)
    y = torch.tensor([0, 0, 4])
    found = []
    for reduction in ("mean", "sum"):
        model = models.adapt(module, SHAPE, CLASSES, task=Task(reduction=reduction))
        update = client.share(model, x[None], y[None])
        found.append(update.of_the_head())
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-14)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "hinge"}, "loss must be one of 'cross-entropy', 'bce', 'squared error', got 'hinge'"),
        ({"reduction": "none"}, "reduction must be one of 'mean', 'sum', got 'none'"),
        ({"smoothing": 1.0}, r"smoothing must lie in \[0, 1\), got 1.0"),
        ({"smoothing": float("nan")}, "smoothing must lie"),
        ({"smoothing": True}, "smoothing must lie"),
        ({"loss": "bce", "smoothing": 0.1}, "is of the cross-entropy"),
    ],
)
def test_a_task_that_is_none_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Task(**settings)


@pytest.mark.parametrize(
    ("task", "outputs", "y", "message"),
    [
        (Task("bce"), 3, torch.tensor([[1]]), r"labels must have shape \[1, 1, 3\] like images under Task\(loss='bce'"),
        (Task("bce"), 3, torch.ones(1, 1, 3), "dtype torch.float64 under .*, got torch.float32"),
        (Task("bce"), 3, 2 * torch.ones(1, 1, 3).double(), r"labels must lie in 0..1 .*, got 2.0 to 2.0"),
        (Task("bce"), 3, torch.nan * torch.ones(1, 1, 3).double(), "labels must lie in 0..1"),
        (Task("bce"), 1, torch.tensor([[2]]), "labels must lie in 0..1"),
        (Task("bce"), 1, torch.tensor([[1.0]]), "dtype torch.int64"),
        (Task("squared error"), 3, torch.inf * torch.ones(1, 1, 3).double(), "NaN or infinite"),
        (Task(smoothing=0.1), 3, torch.tensor([[3]]), r"labels must lie in 0..2 .*, got 3 to 3"),
    ],
)
def test_labels_that_do_not_fit_the_task_are_refused(task, outputs, y, message):
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, outputs)).double()
    model = models.adapt(module, SHAPE, outputs, task=task)
    with pytest.raises(ValueError, match=message):
        client.share(model, batch(1)[0][None], y)
