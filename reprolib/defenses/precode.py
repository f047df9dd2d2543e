"""PRECODE: a bottleneck that passes on a random sample of its input's code, so that gradients behind it are random."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from reprolib import models, settings
from reprolib.defenses.base import Defense
from reprolib.federated import client
from reprolib.federated.closed_form import linear_inputs
from reprolib.federated.observation import Observation
from reprolib.federated.update import SharedUpdate
from reprolib.models import Victims
from reprolib.models.bottleneck import Bottleneck, ConvolutionalBottleneck, VariationalBottleneck

Tensors = Literal["all", "upstream"]
Noise = Literal["resample", "fixed", "zero", "joint", "recovered"]

NAME = "bottleneck"


@dataclass(frozen=True)
class Counter:
    """What an attacker who knows PRECODE does about the noise. The attack's own settings stay the attack's.

    tensors: match "all" gradients, or those "upstream" of the bottleneck alone, in which the noise is but a factor.
    noise in the attacker's passes: "resample" draws it anew in each, "fixed" once, "zero" passes on the mean, "joint"
    optimises it with the images, "recovered" reads the client's own off the gradients of a single image.
    draws: passes a step whose gradients are averaged, with "resample". penalty: the attacker's loss has the KL term.
    Errors: ValueError for other values, listing the known ones, and for several draws of noise that is not resampled.
    Source: Scheliga et al. 2022 (arXiv:2208.04767, PPP) and Balunovic et al. 2022 (upstream); the rest is this book's.
    """

    tensors: Tensors = "upstream"
    noise: Noise = "recovered"
    draws: settings.Count = 1
    penalty: bool = True

    def __post_init__(self) -> None:
        settings.check(self)
        if self.draws > 1 and self.noise != "resample":
            raise ValueError(f"draws={self.draws} averages over fresh noise, but noise={self.noise!r}: use 'resample'")


@dataclass(frozen=True)
class PRECODE(Defense):
    """Insert a variational bottleneck before the layer `before`; the clients train with it and draw its noise.

    k: entries of the sample. beta: weight of the KL divergence in bits (in nats it would be beta / ln 2). before: a
    linear or convolutional layer by its name; the paper's is the last one. against: what an informed attacker does; it
    changes nothing about the client, and defenses that differ in it alone are equal.
    The bottleneck's first weights are drawn for the victim's fingerprint: whoever extends the same victim gets the same
    network. The noise comes from the client's own generator and is never shared.
    Errors: ValueError for sizes below 1 and a negative beta; when extending, for a layer that is not there or not of
    these kinds, and for a model with a bottleneck.
    Source: Scheliga, Maeder and Seeland 2022, section 3.
    """

    k: settings.Count = 256
    beta: settings.Level = 1e-3
    before: str = "head"
    against: Counter = field(default=Counter(), compare=False)

    _layer = VariationalBottleneck
    _able = (nn.Linear, nn.Conv2d)

    def __str__(self) -> str:
        return "PRECODE" + ("" if self.before == "head" else f" before {self.before}")

    def extend(self, model: nn.Module) -> nn.Module:
        """A copy of the model with the bottleneck as its module `bottleneck`, in front of `before`."""
        if models.noise_shapes(model):
            raise ValueError(
                f"{self} cannot be inserted: the model has a bottleneck already ({_bottleneck(model)!r}); what one "
                "defense has extended is shared under that very defense"
            )
        able = [name for name, module in model.named_modules() if isinstance(module, self._able)]
        if self.before not in able:
            raise ValueError(f"before={self.before!r} is no layer that {self} can stand before: the model has {able}")
        shape = _input_shape(model, self.before)
        layer = models.drawn(lambda: self._layer(shape, self.k, self.beta), int(models.fingerprint(model), 16) % 2**63)
        larger = copy.deepcopy(model)
        larger.add_module(NAME, layer.to(next(model.parameters())).train(model.training))
        # parameters in the order in which they are passed
        names = [name for name in larger._modules if name != NAME]
        for name in names[names.index(self.before.partition(".")[0]) :]:
            larger._modules[name] = larger._modules.pop(name)
        larger.get_submodule(self.before).register_forward_pre_hook(layer.enter)
        if hasattr(model, "architecture"):
            larger.architecture = {**model.architecture, NAME: f"{type(layer).__name__} before {self.before}"}
        return larger

    def counter(self, model: nn.Module | Victims, update: SharedUpdate) -> Observation:
        """The update read as `against` says.

        Errors: ValueError for a bottleneck with nothing upstream, and for noise that cannot be recovered: of several
        images or local steps, or behind a layer that is not linear with a bias.
        """
        network, how = Victims.of(model).skeleton, self.against
        weight = None
        if how.tensors == "upstream":
            matched = upstream(network)
            if not matched:
                raise ValueError(f"tensors='upstream', but no parameter is upstream of the bottleneck of {self}")
            like = next(iter(update.gradients.values()))
            weight = {name: like.new_zeros(()) for name in update.gradients if name not in matched}
        noise: str | dict[str, Tensor] = how.noise
        if noise == "recovered":
            noise = {f"{NAME}.noise": recovered_noise(model, update)[:, None]}
        elif noise == "zero":
            none = models.no_noise(network, update.batch_size)
            noise = {name: value.expand(update.trials, *value.shape) for name, value in none.items()}
        return Observation(update.as_gradients(), weight, noise=noise, draws=how.draws, penalty=how.penalty)


@dataclass(frozen=True)
class ConvolutionalBottleneckSketch(PRECODE):
    """A sketch of the convolutional follow-up: a bottleneck of maps, early in the network, otherwise as `PRECODE`.

    k: maps of the sample, one noise at every pixel. before: a convolution, whose input has the shape [C, H, W]. What
    the follow-up's layers look like is not known to this book: its figures say something about this sketch alone. An
    attacker cannot read the noise off convolutions, so `against` matches what is upstream with the mean passed on.
    Source: Scheliga, Maeder and Seeland 2023, abstract (arXiv:2309.04515).
    """

    k: settings.Count = 8
    before: str = "conv2"
    against: Counter = field(default=Counter(noise="zero"), compare=False)

    _layer = ConvolutionalBottleneck
    _able = (nn.Conv2d,)  # type: ignore[assignment]

    def __str__(self) -> str:
        return f"convolutional bottleneck (sketch) before {self.before}"


@dataclass(frozen=True)
class PartialPerturbation(Defense):
    """Apply a defense of gradients to those upstream of the bottleneck alone; the random ones are shared as they are.

    `Compose([PRECODE(), PartialPerturbation(GaussianNoise(1e-2))])` or `... TopK(0.9)`.
    Errors: ValueError for what is no defense, and, when protecting, for a model without bottleneck.
    Source: Scheliga, Maeder and Seeland 2022 (PPP), abstract; which tensors it means is inferred from the abstract.
    """

    perturbation: Defense

    def __str__(self) -> str:
        return f"{self.perturbation} upstream"

    def protect(
        self, gradients: dict[str, Tensor], model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        chosen = {name: gradients[name] for name in upstream(model)}
        return gradients | self.perturbation.protect(chosen, model, images, labels, generator)

    def counter(self, model: nn.Module | Victims, update: SharedUpdate) -> Observation:
        """The perturbation's own counter, on the gradients upstream."""
        chosen = upstream(Victims.of(model).skeleton)
        part = replace(update, gradients={name: update.gradients[name] for name in chosen})
        reading = self.perturbation.counter(model, part)
        return replace(reading, target=update.as_gradients())


def upstream(model: nn.Module) -> list[str]:
    """The parameters that what enters the model's bottleneck depends on, in the model's order.

    Errors: ValueError for a model without bottleneck.
    """
    network, seen = client.worker(model, "eval"), []
    layer = network.get_submodule(_bottleneck(network))
    layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))  # on a copy, which ends with this call
    parameters = dict(network.named_parameters())
    image = next(network.parameters()).new_zeros(1, *model.image_shape)
    with torch.enable_grad():
        functional_call(network, models.no_noise(network, 1), (image,))
        if not seen[0].requires_grad:
            return []
        found = torch.autograd.grad(seen[0].sum(), list(parameters.values()), allow_unused=True)
    return [name for name, gradient in zip(parameters, found, strict=True) if gradient is not None]


def recovered_noise(model: nn.Module | Victims, update: SharedUpdate) -> Tensor:
    """The noise that each client drew, from its gradients alone: [T, k].

    The encoder's gradients give what entered it, and so mean and standard deviation; the decoder's give the sample z:
    noise = (z - mu) / std. The KL term is in the encoder's gradients too and changes nothing, since every row of a
    linear layer's gradient is a multiple of its input. Source: this book.
    Errors: ValueError for an update of several images or local steps, and for a bottleneck that is not linear.
    """
    victims = Victims.of(model)
    network = victims.skeleton
    layer = network.get_submodule(_bottleneck(network))
    if not isinstance(layer, VariationalBottleneck):
        raise ValueError(f"the noise of a {type(layer).__name__} cannot be recovered: its layers are not linear")
    steps = 1 if update.local is None else update.local.most_steps(update.batch_size)
    if update.batch_size != 1 or steps != 1:
        raise ValueError(
            "noise can be recovered from a single image's single gradient, this update is of "
            f"{update.batch_size} image(s) and {steps} step(s)"
        )
    gradients = update.as_gradients()
    weights = victims.weights()
    entered, sample = (
        linear_inputs(gradients[f"{NAME}.{part}.weight"], gradients[f"{NAME}.{part}.bias"])
        for part in ("encoder", "decoder")
    )
    code = (weights[f"{NAME}.encoder.weight"] @ entered[:, :, None])[:, :, 0]
    mu, spread = (code + weights[f"{NAME}.encoder.bias"]).chunk(2, 1)
    return (sample - mu) / F.softplus(spread)


def _bottleneck(model: nn.Module) -> str:
    names = [name for name, module in model.named_modules() if isinstance(module, Bottleneck)]
    if not names:
        raise ValueError("the model has no bottleneck: extend it with PRECODE first")
    return names[0]


def _input_shape(model: nn.Module, layer: str) -> tuple[int, ...]:
    """The shape of one sample of what enters the layer."""
    seen: list[Tensor] = []
    network = client.worker(model, "eval")
    network.get_submodule(layer).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        network(next(network.parameters()).new_zeros(1, *model.image_shape))
    return tuple(seen[0].shape[1:])
