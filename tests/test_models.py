from __future__ import annotations

import hashlib
import json
import pickle
from types import SimpleNamespace

import pytest
import torch
import torchvision
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from reprolib import models

SMALL = {"num_classes": 5, "image_shape": (3, 8, 8), "seed": 0}
VARIANTS = [
    ("lenet", {}),
    ("lenet", {"activation": "relu", "init": "default"}),
    ("mlp", {"width": 16}),
    ("mlp", {"width": 16, "init": "uniform"}),
    ("convbig", {"width": 4, "features": 20}),
    ("cnn", {"width": 2}),
    ("dlg-resnet20", {}),
    ("dlg-resnet20", {"norm": "batch", "activation": "relu", "init": "uniform"}),
]


def parameters_of(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("num_classes", "image_shape", "count"),
    [
        (10, (1, 28, 28), 13_426),  # MNIST
        (10, (3, 32, 32), 15_826),  # CIFAR-10, SVHN
        (100, (3, 32, 32), 85_036),  # CIFAR-100
        (5749, (3, 32, 32), 4_429_117),  # LFW
    ],
)
def test_lenet_has_the_papers_parameter_counts(num_classes, image_shape, count):
    assert parameters_of(models.build("lenet", num_classes, image_shape, seed=0)) == count


def test_lenet_has_the_papers_layers():
    model = models.build("lenet", 10, (3, 32, 32), seed=0)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert list(shapes) == [
        "conv1.weight",
        "conv1.bias",
        "conv2.weight",
        "conv2.bias",
        "conv3.weight",
        "conv3.bias",
        "head.weight",
        "head.bias",
    ]
    assert shapes["conv1.weight"] == (12, 3, 5, 5)
    assert shapes["head.weight"] == (10, 768)
    assert models.build("lenet", 10, (3, 64, 64), seed=0).head.in_features == 3072
    assert models.build("lenet", 10, (1, 25, 25), seed=0)(torch.rand(2, 1, 25, 25)).shape == (2, 10)


def test_lenet_uniform_weights_fill_the_papers_interval():
    drawn = torch.cat([p.detach().flatten() for p in models.build("lenet", 100, (3, 32, 32), seed=3).parameters()])
    assert drawn.min() >= -0.5 and drawn.max() <= 0.5
    assert drawn.abs().max() > 0.499
    assert abs(drawn.std().item() - 12**-0.5) < 2e-3


def test_lenet_default_weights_are_torchs():
    model = models.build("lenet", 10, (3, 32, 32), seed=3, init="default")
    assert model.conv1.weight.abs().max() <= (3 * 25) ** -0.5


@pytest.mark.parametrize(("name", "count"), [("dlg-resnet20", 269_722), ("dlg-resnet56", 853_018)])
def test_resnet_with_batch_norm_has_the_known_parameter_counts(name, count):
    assert parameters_of(models.build(name, 10, (3, 32, 32), seed=0, norm="batch")) == count


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("resnet20", {"width": 64}, 4_327_754),
        ("resnetbn8", {}, 78_042),
        ("resnet18", {}, 11_173_962),
        ("resnet32", {"width": 4}, None),
    ],
)
def test_cifar_resnets_have_the_papers_parameter_counts(name, options, count):
    model = models.build(name, 10, (3, 32, 32), seed=0, **options)
    assert count is None or sum(p.numel() for p in model.parameters()) == count
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    assert not any(module.inplace for module in model.modules() if isinstance(module, torch.nn.ReLU))
    with pytest.raises(ValueError, match="width=0: expected an integer of at least 1"):
        models.build(name, 10, (3, 32, 32), seed=0, width=0)


def test_cifar_resnets_take_other_activations_and_norms():
    leaky = models.build("resnetbn8", 10, (3, 32, 32), seed=0, activation="leaky_relu")
    assert not any(type(module) is torch.nn.ReLU for module in leaky.modules())
    plain = models.build("resnetbn8", 10, (3, 32, 32), seed=0)
    assert models.fingerprint(plain) == models.fingerprint(leaky)  # the same weights, drawn in the same order
    grouped = models.build("resnetbn8", 10, (3, 32, 32), seed=0, norm="group")
    norms = [module for module in grouped.modules() if isinstance(module, torch.nn.GroupNorm)]
    assert len(norms) == 9 and not any(isinstance(m, torch.nn.BatchNorm2d) for m in grouped.modules())
    assert sum(p.numel() for p in grouped.parameters()) == 78_042
    for options, message in (
        ({"activation": "tanh"}, "activation='tanh': expected one of relu, leaky_relu"),
        ({"norm": "layer"}, "norm='layer': expected one of batch, group"),
        ({"norm": "group", "width": 6}, "width=6: norm='group' takes four groups, expected a multiple of 4"),
    ):
        with pytest.raises(ValueError, match=message):
            models.build("resnet18", 10, (3, 32, 32), seed=0, **options)


def test_the_convolutions_of_a_cifar_resnet_are_drawn_by_what_they_feed():
    # Kaiming normal, fan out: a variance of 2 over the kernel times the channels that come out
    drawn = models.build("resnet18", 10, (3, 32, 32), seed=0)
    for layer in (layer for layer in drawn.modules() if isinstance(layer, torch.nn.Conv2d)):
        out, _, height, width = layer.weight.shape
        assert layer.weight.std().item() == pytest.approx((2 / (out * height * width)) ** 0.5, rel=0.1)


def test_convbig_is_the_network_of_the_attack_on_soteria():
    model = models.build("convbig", 10, (3, 32, 32), seed=0)
    linear = {
        name: (part.in_features, part.out_features)
        for name, part in model.named_modules()
        if hasattr(part, "in_features")
    }
    assert linear == {"hidden1": (5184, 2000), "hidden2": (2000, 1000), "head": (1000, 10)}
    assert list(dict(model.named_parameters()))[-4] == "hidden2.weight"  # the published index of the defended tensor
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(("name", "count"), [("imagenet-resnet18", 11_689_512), ("imagenet-resnet50", 25_557_032)])
def test_imagenet_resnets_are_torchvisions(name, count):
    model = models.build(name, 1000, (3, 224, 224), seed=0)
    assert parameters_of(model) == count
    assert list(dict(model.named_parameters()))[-2:] == ["head.weight", "head.bias"]
    assert not any(module.inplace for module in model.modules() if isinstance(module, torch.nn.ReLU))
    theirs = getattr(torchvision.models, name.removeprefix("imagenet-"))().eval()
    state = {key.removeprefix("body.").replace("head.", "fc."): value for key, value in model.state_dict().items()}
    theirs.load_state_dict(state)
    images = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(model(images), theirs(images))


def test_imagenet_weights_come_from_torchs_cache_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    asked = {"num_classes": 1000, "image_shape": (3, 224, 224), "seed": 0, "weights": "imagenet"}
    with pytest.raises(FileNotFoundError, match=r"ImageNet weights of resnet18 are not at .*to download them run"):
        models.build("imagenet-resnet18", **asked)
    with pytest.raises(ValueError, match="num_classes=10: the ImageNet weights of resnet18 have 1000 classes"):
        models.build("imagenet-resnet18", **asked | {"num_classes": 10})
    with pytest.raises(ValueError, match="takes three channels"):
        models.build("imagenet-resnet18", **asked | {"image_shape": (1, 224, 224)})
    with pytest.raises(ValueError, match="weights='moco': expected random or imagenet"):
        models.build("imagenet-resnet18", **asked | {"weights": "moco"})
    theirs = torchvision.models.resnet18()
    (tmp_path / "checkpoints").mkdir()
    torch.save(theirs.state_dict(), tmp_path / "checkpoints" / "new.pth")
    digest = hashlib.sha256((tmp_path / "checkpoints" / "new.pth").read_bytes()).hexdigest()[:8]
    weights = SimpleNamespace(url=f"https://somewhere/resnet18-{digest}.pth")
    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda name: {"IMAGENET1K_V1": weights})
    there = tmp_path / "checkpoints" / f"resnet18-{digest}.pth"
    (tmp_path / "checkpoints" / "new.pth").rename(there)
    model = models.build("imagenet-resnet18", **asked)
    assert torch.equal(model.head.weight, theirs.fc.weight)
    there.write_bytes(there.read_bytes()[:-1])
    with pytest.raises(ValueError, match="is damaged: its SHA-256 does not begin with"):
        models.build("imagenet-resnet18", **asked)


def test_resnet_keeps_the_resolution_and_has_biases_only_without_norm():
    model = models.build("dlg-resnet20", **SMALL)
    assert model.conv.bias is not None
    assert model.stage3(torch.rand(2, 32, 8, 8)).shape == (2, 64, 8, 8)
    assert models.build("dlg-resnet20", **SMALL, norm="batch").conv.bias is None


def test_batch_norm_uses_running_statistics_in_eval_and_the_batchs_in_train():
    model = models.build("dlg-resnet20", **SMALL, norm="batch")
    images = torch.rand(4, 3, 8, 8)
    before = model.norm.running_mean.clone()
    alone, together = model(images[:1]), model(images)[:1]
    torch.testing.assert_close(alone, together)
    assert torch.equal(model.norm.running_mean, before)
    model.train()
    assert not torch.allclose(model(images)[:1], model(images[:2])[:1])
    assert not torch.equal(model.norm.running_mean, before)


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_every_model_maps_images_to_logits_and_says_what_it_is(name, options):
    model = models.build(name, **SMALL, **options)
    assert model(torch.rand(2, 3, 8, 8)).shape == (2, 5)
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert isinstance(model.head, torch.nn.Linear)
    assert list(dict(model.named_parameters()))[-2:] == ["head.weight", "head.bias"]
    assert (model.image_shape, model.num_classes) == ((3, 8, 8), 5)
    assert model.architecture["name"] == name
    assert (
        model.architecture.items() >= {"num_classes": 5, "image_shape": (3, 8, 8), "normalize": None, **options}.items()
    )
    rebuilt = models.build(**model.architecture, seed=0)
    assert models.fingerprint(rebuilt) == models.fingerprint(model)


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_vmapped_gradients_equal_the_loop(name, options):
    model = models.build(name, **SMALL, **options).double()
    weights = {key: value.detach() for key, value in model.named_parameters()}
    images = torch.rand(3, 2, 3, 8, 8, dtype=torch.float64)
    soft = torch.rand(3, 2, 5, dtype=torch.float64).softmax(-1)

    def loss(parameters, x, y):
        return F.cross_entropy(functional_call(model, parameters, (x,)), y)

    batched = vmap(grad(loss), in_dims=(None, 0, 0))(weights, images, soft)
    for trial in range(3):
        single = torch.autograd.grad(F.cross_entropy(model(images[trial]), soft[trial]), list(model.parameters()))
        for gradient, key in zip(single, weights, strict=True):
            torch.testing.assert_close(batched[key][trial], gradient)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lenet", {}),
        ("mlp", {"width": 6, "init": "uniform"}),
        ("dlg-resnet20", {"init": "uniform"}),
        ("dlg-resnet20", {"norm": "batch"}),
    ],
)
def test_sigmoid_models_are_twice_differentiable(name, options):
    model = models.build(name, 3, (1, 4, 4), 0, **options, normalize=([0.4], [0.3])).double()
    weights = {key: value.detach() for key, value in model.named_parameters()}
    x = torch.rand(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([1])

    def squared_gradient(image):
        gradients = grad(lambda w: F.cross_entropy(functional_call(model, w, (image,)), y))(weights)
        return sum(gradient.square().sum() for gradient in gradients.values())

    assert torch.autograd.grad(squared_gradient(x), x)[0].abs().max() > 0
    assert torch.autograd.gradcheck(squared_gradient, (x,), rtol=1e-4, atol=1e-6)


def test_normalize_is_the_first_layer_and_no_parameter():
    plain = models.build("lenet", **SMALL)
    model = models.build("lenet", **SMALL, normalize=((0.5, 0.4, 0.3), (0.2, 0.2, 0.1)))
    images = torch.rand(2, 3, 8, 8)
    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), torch.tensor([0.2, 0.2, 0.1]).view(3, 1, 1)
    torch.testing.assert_close(model(images), plain((images - mean) / std))
    assert next(iter(model.named_children()))[0] == "normalize"
    assert list(dict(model.named_parameters())) == list(dict(plain.named_parameters()))


def test_weights_come_from_the_seed_and_leave_the_global_state_alone():
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first = models.fingerprint(models.build("lenet", **SMALL))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert models.fingerprint(models.build("lenet", **SMALL)) == first
    assert models.fingerprint(models.build("lenet", **{**SMALL, "seed": 1})) != first


def test_fingerprint_sees_a_single_changed_weight_and_buffer():
    model = models.build("dlg-resnet20", **SMALL, norm="batch")
    before = models.fingerprint(model)
    assert len(before) == 16
    model.norm.running_mean[0] += 1e-3
    after_buffer = models.fingerprint(model)
    with torch.no_grad():
        model.head.bias[0] += 1e-6
    assert len({before, after_buffer, models.fingerprint(model)}) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name": "vgg"},
            r"unknown model 'vgg': expected one of lenet, mlp, convnet, convnet8, resnet20, .*dlg-resnet20",
        ),
        ({"width": 3}, r"unknown option 'width' of 'lenet': expected one of normalize, activation, init"),
        ({"num_classes": 1}, r"num_classes=1: expected an integer of at least 2"),
        ({"num_classes": 2.5}, r"num_classes=2.5: expected an integer"),
        ({"image_shape": (8, 8)}, r"image_shape=\(8, 8\): expected \(channels, height, width\)"),
        ({"image_shape": (3, 0, 8)}, r"image_shape=\(3, 0, 8\): expected"),
        ({"activation": "tanh"}, r"activation='tanh': expected one of sigmoid, relu"),
        ({"init": "zeros"}, r"init='zeros': expected uniform or default"),
        ({"name": "mlp", "width": 0}, r"width=0: expected an integer of at least 1"),
        ({"name": "mlp", "activation": "tanh"}, r"activation='tanh'"),
        ({"name": "mlp", "init": "zeros"}, r"init='zeros'"),
        ({"name": "dlg-resnet20", "norm": "layer"}, r"norm='layer': expected none or batch"),
        ({"name": "dlg-resnet20", "activation": "tanh"}, r"activation='tanh'"),
        ({"name": "dlg-resnet20", "init": "zeros"}, r"init='zeros'"),
        ({"normalize": ((0.5,), (0.2,))}, r"normalize=.*expected \(mean, std\) with 3 numbers each"),
        ({"normalize": ((0.5,) * 3, (0.0,) * 3)}, r"normalize=.*std positive"),
        ({"normalize": 0.5}, r"normalize=0.5: expected"),
    ],
)
def test_build_refuses_with_the_reason(arguments, message):
    with pytest.raises(ValueError, match=message):
        models.build(**{"name": "lenet", **SMALL, **arguments})


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "victim.safetensors"
    model = models.build("dlg-resnet20", **{**SMALL, "seed": 9}, norm="batch", normalize=((0.5,) * 3, (0.2,) * 3))
    models.save_checkpoint(model, path, {"data": "cifar10", "accuracy": 0.5})
    return path


def build_from(path, **changes):
    arguments = {"name": "dlg-resnet20", **SMALL, "norm": "batch", "normalize": ((0.5,) * 3, (0.2,) * 3), **changes}
    return models.build(**arguments, checkpoint=path)


def test_checkpoint_round_trip(checkpoint):
    original = build_from(None, seed=9)
    assert models.fingerprint(build_from(checkpoint)) == models.fingerprint(original)
    # How the weights were once drawn is no part of the architecture.
    assert models.fingerprint(build_from(checkpoint, init="uniform")) == models.fingerprint(original)
    card = json.loads(checkpoint.with_suffix(".json").read_text())
    assert card["accuracy"] == 0.5
    assert card["architecture"]["name"] == "dlg-resnet20"
    assert sorted(file.name for file in checkpoint.parent.iterdir()) == ["victim.json", "victim.safetensors"]


def test_checkpoint_of_another_architecture(checkpoint):
    with pytest.raises(ValueError, match="another architecture: num_classes is 5, asked for 7"):
        build_from(checkpoint, num_classes=7)
    with pytest.raises(ValueError, match="norm is 'batch', asked for 'none'"):
        build_from(checkpoint, norm="none")
    with pytest.raises(ValueError, match=r"normalize is \[\[0.5.*asked for None"):
        build_from(checkpoint, normalize=None)
    with pytest.raises(ValueError, match="name is 'dlg-resnet20', asked for 'lenet'"):
        models.build("lenet", **SMALL, checkpoint=checkpoint)


def test_checkpoint_truncated_tampered_or_incomplete(checkpoint):
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[:100])
    with pytest.raises(ValueError, match=f"truncated or altered: 100 bytes, its card says {len(whole)}"):
        build_from(checkpoint)
    checkpoint.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match="was altered: its SHA-256 is not the one on its card"):
        build_from(checkpoint)
    card = checkpoint.with_suffix(".json")
    card.write_text(card.read_text()[:50])
    with pytest.raises(ValueError, match="checkpoint card .* is damaged"):
        build_from(checkpoint)
    card.unlink()
    with pytest.raises(FileNotFoundError, match="victim.json is missing"):
        build_from(checkpoint)
    checkpoint.unlink()
    with pytest.raises(FileNotFoundError, match="victim.safetensors is missing"):
        build_from(checkpoint)


def test_checkpoint_with_a_true_card_and_wrong_weights(checkpoint, tmp_path):
    other = tmp_path / "other.safetensors"
    models.save_checkpoint(models.build("mlp", **SMALL), other, {})
    cards = [json.loads(path.with_suffix(".json").read_text()) for path in (checkpoint, other)]
    other.with_suffix(".json").write_text(json.dumps({**cards[1], "architecture": cards[0]["architecture"]}))
    with pytest.raises(ValueError, match="does not hold the weights of its architecture"):
        build_from(other)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("conv.weight", lambda w: w.fill_(torch.nan), "'conv.weight' holds NaN or infinite values"),
        ("head.bias", lambda w: w.index_fill(0, torch.tensor(1), -torch.inf), "'head.bias' holds NaN or infinite"),
        ("norm.running_var", lambda w: w - 2, "'norm.running_var' holds variances or deviations that are not positive"),
        ("normalize.mean", lambda w: 3 * w, "'normalize.mean' is not the normalisation that its card names"),
        ("normalize.std", lambda w: 3 * w, "'normalize.std' is not the normalisation that its card names"),
        ("normalize.std", lambda w: 0 * w, "'normalize.std' holds variances or deviations that are not positive"),
        ("conv.weight", lambda w: w.double(), "'conv.weight' holds torch.float64, the model's is torch.float32"),
        ("conv.weight", lambda w: w.half(), "'conv.weight' holds torch.float16, the model's is torch.float32"),
        ("conv.weight", lambda w: w.to(torch.complex64), "'conv.weight' holds torch.complex64, the model's is"),
        ("head.weight", lambda w: w.long(), "'head.weight' holds torch.int64, the model's is torch.float32"),
    ],
)
def test_checkpoint_of_nonsense_under_a_true_card(tmp_path, name, damage, message):
    path = tmp_path / "victim.safetensors"
    options = {"normalize": ((0.5,) * 3, (0.2,) * 3), "width": 2}
    model = models.build("resnetbn8", 10, (3, 32, 32), seed=0, **options)
    state = model.state_dict()
    assert name in state, list(state)
    model.state_dict = lambda: {**state, name: damage(state[name])}
    models.save_checkpoint(model, path, {})
    with pytest.raises(
        ValueError, match=f"victim.safetensors does not hold the weights of its architecture: {message}"
    ):
        models.build("resnetbn8", 10, (3, 32, 32), seed=0, checkpoint=path, **options)


def test_checkpoint_pickle_is_refused_by_name_and_by_content(tmp_path, checkpoint):
    pickled = tmp_path / "victim.pth"
    pickled.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match="expected a .safetensors file .a pickle may run code"):
        build_from(pickled)
    checkpoint.write_bytes(pickled.read_bytes())
    with pytest.raises(ValueError, match="truncated or altered"):
        build_from(checkpoint)
    with pytest.raises(ValueError, match="expected the ending .safetensors"):
        models.save_checkpoint(models.build("lenet", **SMALL), tmp_path / "victim.pt", {})


def test_a_failed_save_leaves_the_old_checkpoint(checkpoint, monkeypatch):
    before = checkpoint.read_bytes()

    def full_disk(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        models.save_checkpoint(models.build("lenet", **SMALL), checkpoint, {})
    assert checkpoint.read_bytes() == before
    assert build_from(checkpoint) is not None


@pytest.mark.parametrize("seed", [-1, True, 1.5, "a", None, 2**70])
def test_a_seed_that_is_none_is_refused(seed):
    with pytest.raises(ValueError, match=r"seed=.*: expected an integer in \[0, 2\^64\)"):
        models.build("lenet", 4, (3, 16, 16), seed=seed)
