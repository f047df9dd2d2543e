"""Somebody's numbers as what a model's client shares: read by name, checked, and what had to be assumed of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from reprolib.federated.gradients import LocalTraining
from reprolib.federated.threat import ThreatModel
from reprolib.models import incoming


def brought(
    model: nn.Module,
    gradients: incoming.Numbers | None,
    before: incoming.Numbers | None,
    after: incoming.Numbers | None,
    local: LocalTraining | None,
    threat: ThreatModel,
    batch_size: int,
) -> tuple[dict[str, Tensor], list[str]]:
    """Somebody's numbers as name -> [1, *param] of what the model's client trains, and what was assumed of them."""
    if (gradients is None) == (after is None):
        raise ValueError(
            "give either gradients=, a gradient or weight difference, or after=, the weights that came back"
        )
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    called = incoming.called(model)
    if before is not None:
        sent, _ = incoming.named(model, before, "before")
        if other := [called[n] for n, p in parameters.items() if sent.get(n) is None or not torch.allclose(sent[n], p)]:
            raise ValueError(
                f"before: {other[:3]} are not the model's weights; give it those that the server sent: "
                "models.adapt(..., weights=before)"
            )
    if after is None:
        what = "gradients"
        found, assumed = incoming.named(model, gradients, what)
    else:
        what = "after"
        if local is None:
            raise ValueError(
                "after: weights need local=LocalTraining(epochs, batch_size, learning_rate), as the client trained"
            )
        found, assumed = incoming.named(model, after, what)
        if missing := [called[name] for name in parameters if found.get(name) is None]:
            raise ValueError(
                f"after: no weights for {missing}; expected all of the module's, as `state_dict()` holds them"
            )
    named = {name: found[name] for name in parameters if name in found}
    if bad := [called[name] for name, value in named.items() if value is not None and not value.isfinite().all()]:
        raise ValueError(f"{what}: {bad} hold NaN or infinite values")
    if after is not None:
        named = {name: value - parameters[name] for name, value in named.items()}
        if not any(value.any() for value in named.values()):
            raise ValueError(
                "after: the weights are those that the model has: nothing was trained, or it was loaded twice"
            )
    elif named and all(v is None or not v.any() for v in named.values()):
        raise ValueError("gradients: all are zero or None: read them after loss.backward() and before zero_grad()")
    elif _are_weights(named, parameters):
        raise ValueError("gradients: these are weights, near the model's own: give them as after=")
    if frozen := [called[n] for n, v in named.items() if n not in trained and v is not None and v.any()]:
        raise ValueError(
            f"{what}: {frozen} changed, but the model's do not require a gradient: unfreeze them, or leave them out"
        )
    if unused := [called[name] for name in trained if name in named and named[name] is None]:
        assumed.append(f"{what}: None for {unused} was taken as zero, a parameter that the loss does not depend on")
    if missing := [called[name] for name in trained if name not in named]:
        raise ValueError(
            f"{what}: nothing for {missing}; where the client does not train them, freeze them: "
            "parameter.requires_grad_(False)"
        )
    assumed += _of_the_buffers(model, found if after is not None else {}, local, threat, batch_size)
    return {
        name: (torch.zeros_like(parameters[name]) if named[name] is None else named[name])[None]  # type: ignore[index]
        for name in trained
    }, assumed


def _are_weights(found: dict[str, Tensor | None], parameters: dict[str, Tensor]) -> bool:
    """Whether these are the model's weights after some training: of as many numbers, no gradient is as parallel."""
    both = [(value.flatten(), parameters[name].flatten()) for name, value in found.items() if value is not None]
    if not both:
        return False
    theirs, own = (torch.cat(parts) for parts in zip(*both, strict=True))
    near = torch.allclose(theirs, own, rtol=0.2, atol=1e-8)
    return near or (len(own) >= 100 and bool(torch.cosine_similarity(theirs, own, dim=0) > 0.5))


def _of_the_buffers(
    model: nn.Module,
    after: dict[str, Tensor | None],
    local: LocalTraining | None,
    threat: ThreatModel,
    batch_size: int,
) -> list[str]:
    """What batch norm's statistics after the round say against what was said of the client: in words, or refused.

    Errors: ValueError for statistics that moved under mode "eval".
    """
    norms = {
        n: layer
        for n, layer in model.named_modules()
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None
    }
    sent = {name: layer for name, layer in norms.items() if after.get(f"{name}.running_mean") is not None}
    if not sent:
        return [f"batch norm was taken to run in mode={threat.mode!r}, as `threat` has it"] if norms else []
    if all(torch.allclose(after[f"{name}.running_mean"], layer.running_mean) for name, layer in sent.items()):
        still = "after: mode='train', though batch norm's running statistics did not move"
        return [still] if threat.mode == "train" else []
    if threat.mode == "eval":
        raise ValueError(
            "after: the running statistics of batch norm moved, so the client trained in training mode: give "
            "threat=ThreatModel(mode='train')"
        )
    first = next(iter(sent))
    counted, steps = after.get(f"{first}.num_batches_tracked"), local.most_steps(batch_size)
    passed = steps if counted is None else int(counted - sent[first].num_batches_tracked)  # type: ignore[operator]
    said = (
        f"after: batch norm counted {passed} passes, but a client of {batch_size} images takes {steps} steps by `local`"
    )
    return [said] if passed not in (0, steps) and threat.clients == 1 else []
