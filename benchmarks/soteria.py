"""Soteria's row norms, batched against the loop over features, side by side: `python benchmarks/soteria.py`.

One table, printed and written to a JSON file: seconds for the norms of all rows of a LeNet's Jacobian, for one image
and for several. The ways: the published loop (`backward` of every feature, which computes the weights' gradients as
well), the same loop to the image alone, and what the library offers. They take turns, so that a machine that slows down
slows all; medians are printed, and the largest difference from the loop.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated

import pandas as pd
import torch
import typer
from rich import print
from torch import Tensor, nn

from reprolib import data, models
from reprolib.book import results
from reprolib.defenses import Soteria
from reprolib.experiments import training
from reprolib.federated import client


def published(model: nn.Module, images: Tensor) -> Tensor:
    """The published procedure: an image's forward pass, and `backward` of every feature, weights included; [B, m]."""

    def of_image(x: Tensor, feature: Tensor) -> Tensor:
        x.grad = None
        feature.backward(retain_graph=True)
        return x.grad

    return _loop(model, images, of_image)


def loop(model: nn.Module, images: Tensor) -> Tensor:
    """The same without the weights' gradients, which nobody needs; [B, m]."""
    return _loop(model, images, lambda x, feature: torch.autograd.grad(feature, x, retain_graph=True)[0])


def _loop(model: nn.Module, images: Tensor, gradient: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    network, seen, norms = copy.deepcopy(model), [], []
    network.normalize = nn.Identity()
    network.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for image in images:
        x = model.normalize(image[None]).requires_grad_()
        seen.clear()
        network(x)
        norms.append(torch.stack([gradient(x, feature).norm() for feature in seen[0][0]]))
    return torch.stack(norms)


def ways(draws: int) -> dict[str, Callable[[nn.Module, Tensor], Tensor]]:
    """Each way's norms as the defense computes them, mask included."""

    def gains(jacobian: str) -> Callable[[nn.Module, Tensor], Tensor]:
        defense = Soteria(60, jacobian=jacobian, draws=draws)
        return lambda model, images: defense.select(model, images, client.generator(0, 0)).gain

    return {
        "published": published,
        "loop": loop,
        "vjp": gains("vjp"),
        "jacrev": gains("jacrev"),
        f"jvp, {draws} draws": gains("jvp"),
    }


def measure(model: nn.Module, images: Tensor, rounds: int, draws: int) -> list[dict]:
    found = ways(draws)
    expected = loop(model, images)
    off = {name: float(((way(model, images) - expected).abs() / expected).max()) for name, way in found.items()}
    seconds = {name: [] for name in found}
    for _ in range(rounds):
        for name, way in found.items():
            if images.device.type == "cuda":
                torch.cuda.synchronize()
            began = time.perf_counter()
            way(model, images)
            if images.device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - began)
    return [
        {
            "images": len(images),
            "threads": torch.get_num_threads(),
            "way": name,
            "seconds": median(taken),
            "slowest": max(taken),
            "times the published loop": median(seconds["published"]) / median(taken),
            "times the loop": median(seconds["loop"]) / median(taken),
            "largest relative difference": off[name],
        }
        for name, taken in seconds.items()
    ]


def main(
    images: Annotated[list[int], typer.Option(help="numbers of images at once")] = [1, 16],  # noqa: B006
    threads: Annotated[list[int], typer.Option(help="thread counts to measure with")] = [1, 2],  # noqa: B006
    rounds: Annotated[int, typer.Option(help="alternating measurements a row")] = 5,
    draws: Annotated[int, typer.Option(help="random directions of the estimate")] = 30,
    root: Annotated[str | None, typer.Option(help="data root with CIFAR-10; offline photographs without")] = None,
    device: Annotated[str, typer.Option()] = "cpu",
    out: Annotated[Path, typer.Option()] = Path("results/runs/benchmarks/soteria.json"),
) -> None:
    where = torch.device(device)
    pictures = data.choose("cifar10", root=root, count=max(images))
    model = models.build(
        "lenet", pictures.num_classes, pictures.image_shape, 0, init="default", normalize=training.CIFAR10
    )
    model, rows = model.to(where), []
    for count in threads:
        torch.set_num_threads(count)
        for size in images:
            rows += measure(model, pictures.images[:size].to(where), rounds, draws)
    print(pd.DataFrame(rows).round(4).to_string(index=False))
    record = {"table": rows, "provenance": results.provenance(where, 0, {pictures.name: pictures.fingerprint})}
    out.parent.mkdir(parents=True, exist_ok=True)
    results.save(out, json.loads(json.dumps(record)))
    print(f"written: {out}")


if __name__ == "__main__":
    typer.run(main)
