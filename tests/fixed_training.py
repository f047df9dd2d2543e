"""Fixed numbers of trainings of a step or two: of victims, under defenses, and of learned priors."""

from __future__ import annotations

from unittest import mock

import torch
from fixed import SINGLE, case, drawn, images_of, victim
from fixed_experiments import CPU, SHAPE, pool, same_bottleneck
from torch import Tensor, nn

from reprolib import defenses, models
from reprolib.experiments import generators, training, utility
from reprolib.federated import client


class Confident(nn.Module):
    """Sure of a class by brightness, and without an answer for dark images."""

    num_classes = 4

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 4)

    def forward(self, x: Tensor) -> Tensor:
        bright = x.mean((1, 2, 3), keepdim=False)[:, None]
        out = -(bright - torch.tensor([0.45, 0.48, 0.52, 0.55])).abs()
        return torch.where(x[:, :1, 0, 0] < 0.3, torch.nan, out)


class Wrong(Confident):
    """Gives numbers that no argmax should be trusted of."""

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros(len(x), 4)
        out[:, 0] = torch.where(x[:, 0, 0, 0] < 0.5, torch.inf, 1.0)
        return out


@case("images augmented")
def _() -> object:
    wide = drawn(5, 3, 6, 9).float()
    return [training.augmented(wide, client.generator(1, k), reach) for k, reach in ((0, 4), (1, 1), (2, 2))]


@case("training with defenses, and accuracy", rtol=SINGLE)
@same_bottleneck()
def _() -> object:
    own, found = pool(30), {}
    for name, defense in {
        "none": None,
        "noise": defenses.GaussianNoise(0.01),
        "pruned": defenses.TopK(0.7),
        "mixed": defenses.MixUp(own),
        "bottleneck": defenses.PRECODE(k=2),
    }.items():
        for feedback in (False, True) if name == "pruned" else (False,):
            model = client.extended(victim("mlp", SHAPE).float(), defense)
            utility.train(
                model, own, 3, 0.1, batch_size=5, momentum=0.6, defense=defense, error_feedback=feedback, seed=2
            )
            found[f"{name} {feedback}"] = [model, utility.accuracy(model, own)]
    found["no numbers"] = [utility.accuracy(model, own) for model in (Confident(), Wrong())]
    test = pool(20, seed=6)
    with mock.patch.object(utility, "train", wraps=utility.train) as trained:
        table = utility.with_defense(own, test, None, 2, 2, (0.01, 0.3), seed=1)
    found["with defense"] = [table, [(len(call.args[1]), call.args[2:]) for call in trained.call_args_list]]
    normed = utility.train(models.build("convnet8", 4, SHAPE, 0, width=2), own, 2, 0.1, batch_size=6)
    return found | {"statistics": [b for n, b in normed.named_buffers() if "running" in n]}


@case("epochs of a recipe", rtol=SINGLE)
def _() -> object:
    own, seen = pool(11), []
    recipe = generators.VAERecipe(2, batch_size=4, seed=3)

    def step(batch: Tensor, number: int, random: torch.Generator) -> float:
        seen.append([batch.tolist(), number, float(torch.rand((), generator=random))])
        return 1.0

    training.run_epochs(step, {}, recipe, own, name="it", device=CPU)
    cycle = [training._cycle(k, 20) for k in range(20)]
    lr = generators._adam(nn.Linear(1, 1), recipe, 11)[1].lr_lambdas[0]
    names = [str(generators.recipe_of(name)) for name in ("vae-digits", "decoder-pooled-cifar10", "wgan-lfw")]
    return seen, cycle, [lr(k) for k in range(6)], names


@case("a generator of rows and decoders, trained for a step or two", rtol=SINGLE)
def _() -> object:
    public, shape = images_of(12, (3, 8, 8), below=6), (3, 8, 8)
    model = victim("convnet8", shape, count=6, width=2).float()
    decoder = {"channels": 8, "widths": (4, 3)}
    rows = generators.fit_rows(
        model, public, defenses.GaussianNoise(1e-3), name="decoder", batch=2, epochs=2, minibatch=5, **decoder
    )
    found = {"rows": rows(drawn(3, 32).float())}
    for mode in ("eval", "train"):
        recipe = generators.DecoderRecipe(2, mode=mode, decoder=decoder, batch_size=4)
        made = generators.fit_decoder(recipe, model, public)
        found[mode] = [made(drawn(3, 32).float()), made.scale, made.trunk, made.data]
    losses, stepped = [], generators._stepped
    noted = lambda optimizer, loss: (losses.append(loss.item()), stepped(optimizer, loss))  # noqa: E731
    with mock.patch.object(generators, "_stepped", noted):
        vae = generators.fit_vae(generators.VAERecipe(2, latent_dim=3, width=2, batch_size=4), public)
        wgan = generators.fit_wgan(
            generators.WGANRecipe(2, latent_dim=3, width=2, batch_size=3, critic_steps=2), public
        )
    for name, prior in {"vae": vae, "wgan": wgan}.items():
        found[name] = [generators.samples(prior, 3), generators.nearest(prior, public.images[:2], steps=4)]
    return found | {"losses": losses, "sheet": len(generators.sheet(public.images))}
