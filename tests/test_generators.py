"""Learned priors: trained small on the offline photographs, resumed after a kill, opened, and refused with a reason."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from reprolib import data, models
from reprolib.experiments import generators, training
from reprolib.measure import metrics
from reprolib.models.latent import Critic

TRUNK = {"name": "convnet8", "seed": 3, "width": 4}
DECODER = generators.DecoderRecipe(
    2, victim=TRUNK, decoder={"channels": 16, "widths": (8, 8)}, batch_size=32, learning_rate=1e-2
)
VAE = generators.VAERecipe(2, latent_dim=4, width=4, batch_size=32)
WGAN = generators.WGANRecipe(1, latent_dim=4, width=4, batch_size=32)


@pytest.fixture(scope="module")
def photos():
    return data.load("photos", "train", count=160)


@pytest.fixture
def tiny(monkeypatch, photos):
    """The kinds of the shipped generators with small recipes, and a train set of 160 photographs."""
    for kind, recipe in (("decoder", DECODER), ("vae", VAE), ("wgan", WGAN)):
        monkeypatch.setitem(generators.RECIPES, f"{kind}-cifar10", recipe)
    monkeypatch.setattr(generators, "nearest", partial(generators.nearest, steps=2))
    opened = data.load
    monkeypatch.setattr(data, "load", lambda name, split, root=None: opened(name, split, count=160))


def test_a_decoder_learns_to_undo_a_drawn_trunk(photos):
    victim = generators.victim_of(DECODER, photos.num_classes, photos.image_shape)
    before = {name: value.clone() for name, value in victim.state_dict().items()}
    decoder = generators.fit_decoder(replace(DECODER, epochs=25), victim, photos)
    x = photos.images[:32]
    with torch.no_grad():
        found = decoder(models.penultimate(victim, x))
    assert found.shape == x.shape and not decoder.training
    assert not any(parameter.requires_grad for parameter in decoder.parameters())
    grey = metrics.psnr(x.mean((2, 3), keepdim=True).expand_as(x), x).mean()
    assert metrics.psnr(found, x).mean() > grey + 1
    assert decoder.trunk == models.trunk_fingerprint(victim)
    assert all(torch.equal(value, before[name]) for name, value in victim.state_dict().items())


def test_the_decoder_for_train_mode_reads_features_of_batch_statistics(photos):
    victim = generators.victim_of(DECODER, photos.num_classes, photos.image_shape)
    a, b = (generators.fit_decoder(replace(DECODER, mode=mode), victim, photos) for mode in ("eval", "train"))
    assert not torch.equal(a.scale, b.scale)
    with pytest.raises(ValueError, match="mode='batch': expected eval or train"):
        generators.fit_decoder(replace(DECODER, mode="batch"), victim, photos)


def test_a_vae_samples_with_the_deviation_that_its_encoder_says(photos, monkeypatch):
    built, seen = models.build_generator, []

    def told(*arguments, **options):
        model = built(*arguments, **options)
        model.encode = lambda x: (torch.zeros(len(x), 4), torch.full((len(x), 4), 4.0).log())
        model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
        return model

    monkeypatch.setattr(models, "build_generator", told)
    generators.fit_vae(VAE, photos)
    latents = torch.cat(seen)
    assert latents.shape == (2 * 160, 4) and latents.std() == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize("kind", ["decoder", "vae", "wgan"])
def test_a_generator_is_trained_and_opens_even_after_a_kill(kind, tiny, tmp_path, monkeypatch):
    name, saved = f"{kind}-photos", training.write_atomic
    card = generators.train(name, folder=tmp_path / "whole")
    assert card["test_psnr"]["low"] < card["test_psnr"]["value"] < card["test_psnr"]["high"]
    assert card["recipe"]["data"] == "photos" and card["data"]["images"] == 160

    def killed(path, content):
        saved(path, content)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "write_atomic", killed)
    with pytest.raises(KeyboardInterrupt):
        generators.train(name, folder=tmp_path / "parts")
    monkeypatch.setattr(training, "write_atomic", saved)
    assert generators.train(name, folder=tmp_path / "parts")["test_psnr"] == card["test_psnr"]
    a, b = (generators.shipped(name, tmp_path / folder) for folder in ("whole", "parts"))
    assert models.fingerprint(a) == models.fingerprint(b)
    endings = ("json", "png", "safetensors")
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == [f"{name}.{ending}" for ending in endings]
    shown = Image.open(tmp_path / "parts" / card["samples"])
    assert shown.size == (2 * 8 * 32, 2 * 2 * 32)


def test_a_prior_gives_samples_and_its_nearest_images(photos):
    vae = generators.fit_vae(VAE, photos)
    x = photos.images[:3]
    start = vae(vae.encode(x)[0])
    found = generators.nearest(vae, x, steps=100)
    assert (F.mse_loss(found, x) < F.mse_loss(start, x)) and found.shape == x.shape
    shown = generators.samples(vae, 5, seed=1)
    assert torch.equal(shown, generators.samples(vae, 5, seed=1)) and shown.min() >= 0 and shown.max() <= 1
    assert not torch.equal(shown, generators.samples(vae, 5, seed=2))


def test_papers_sizes():
    count = {"wgan": 1_731_203, "decoder": 100_590_979}
    wgan = models.build_generator("wgan", (3, 32, 32), 0)
    assert sum(p.numel() for p in wgan.parameters()) == count["wgan"]
    assert sum(p.numel() for p in Critic((3, 32, 32)).parameters()) == 1_487_105
    with torch.device("meta"):
        paper = models.decoder.Decoder((3, 224, 224), channels=2048, size=7, widths=(1024, 512, 256, 128, 64), blocks=3)
    assert sum(p.numel() for p in paper.parameters()) == count["decoder"]


def test_what_cannot_be_trained_or_opened_is_refused(photos, tmp_path):
    with pytest.raises(
        ValueError, match=r"unknown checkpoint 'gan-cifar10': expected a victim \(lenet.*decoder.*mnist"
    ):
        generators.recipe_of("gan-cifar10")
    with pytest.raises(ValueError, match="the data one of photos"):
        generators.recipe_of("vae-oxford")
    with pytest.raises(FileNotFoundError, match="'vae-svhn' is missing in .*`reprolib train vae-svhn`"):
        generators.shipped("vae-svhn", tmp_path)
    victim = models.build("convnet8", 10, (3, 32, 32), 0)
    with pytest.raises(ValueError, match="reads 1024 features, the victim's head 8192"):
        generators.fit_decoder(DECODER, victim, photos)
    with pytest.raises(ValueError, match="3 images do not fill a batch of 32"):
        generators.fit_vae(VAE, replace(photos, images=photos.images[:3], labels=photos.labels[:3]))
    with pytest.raises(ValueError, match="160 of the 160 private images of 'photos' are also among the public ones"):
        generators.check_disjoint(photos, photos)
    with pytest.raises(ValueError, match=r"square images of up to 32 pixels a side, expected.*\(3, 28, 28\)"):
        models.build_generator("decoder", (3, 28, 28), 0, size=8)
    with pytest.raises(ValueError, match=r"square images of up to 32 pixels a side, expected.*\(3, 32, 24\)"):
        models.build_generator("decoder", (3, 32, 24), 0)
    with pytest.raises(ValueError, match="'convnet8-cifar10' was trained on images of .*'mnist' has .*of that shape"):
        generators.victim_of(generators.recipe_of("decoder-trained-mnist"), 10, (1, 28, 28))
    with pytest.raises(ValueError, match="latent_dim=0, width=32: expected integers of at least 1"):
        models.build_generator("vae", (3, 32, 32), 0, latent_dim=0)
    with pytest.raises(ValueError, match="unknown generator 'gan': expected one of .*decoder, wgan, vae"):
        models.build_generator("gan", (3, 32, 32), 0)
    with pytest.raises(ValueError, match="unknown option 'depth' of 'vae': expected one of latent_dim, width, data"):
        models.build_generator("vae", (3, 32, 32), 0, depth=3)


def test_shipped_generators_open_name_their_data_and_show_samples():
    for name, recipe in generators.RECIPES.items():
        assert generators.shipped(name).data == recipe.data
        samples = training.FOLDER / models.card(training.FOLDER / f"{name}.safetensors")["samples"]
        assert Image.open(samples).format == "PNG"


def test_the_shipped_vae_restores_what_its_encoder_has_seen():
    vae, x = generators.shipped("vae-cifar10"), data.load("photos", "test", 32).images
    colour = metrics.psnr(x.mean((2, 3), keepdim=True).expand_as(x), x).mean()
    assert metrics.psnr(vae(vae.encode(x)[0]), x).mean() > colour + 4


def test_a_checkpoint_of_another_set_or_width_than_its_name_and_card_say_is_refused(tmp_path):
    def altered(name: str, **changes: object) -> None:
        card = json.loads((training.FOLDER / "vae-cifar10.json").read_text())
        card["architecture"] |= changes
        (tmp_path / f"{name}.json").write_text(json.dumps(card))
        shutil.copy(training.FOLDER / "vae-cifar10.safetensors", tmp_path / f"{name}.safetensors")

    altered("vae-svhn")
    with pytest.raises(ValueError, match="'vae-svhn' was trained on 'cifar10', its name says 'svhn': `reprolib train"):
        generators.shipped("vae-svhn", tmp_path)
    altered("vae-cifar10", width=16)
    with pytest.raises(ValueError, match="vae-cifar10"):
        generators.shipped("vae-cifar10", tmp_path)
    with pytest.raises(ValueError, match="'vae-cifar10.safetensors' is of another architecture: data is 'cifar10', as"):
        weights = training.FOLDER / "vae-cifar10.safetensors"
        models.build_generator("vae", (3, 32, 32), 0, weights, latent_dim=64, width=32, data="svhn")


@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 25, 25), (1, 8, 8), (3, 64, 64)])
def test_every_kind_is_built_for_the_images_of_every_set(shape):
    x = torch.rand(2, *shape)
    vae = models.build_generator("vae", shape, 0, width=4)
    assert vae(vae.encode(x)[0]).shape == x.shape
    assert models.build_generator("wgan", shape, 0, width=4)(torch.zeros(2, 128)).shape == x.shape
    assert Critic(shape, width=4)(x).shape == (2,)
    victim = models.build("convnet8", 10, shape, 0, width=4)
    decoder = models.build_generator("decoder", shape, 0, channels=16)
    assert decoder(models.penultimate(victim, x)).shape == x.shape
