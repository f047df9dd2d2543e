"""GGL's population scored in one batch against a loop, side by side: `python benchmarks/ggl.py`.

One table, printed and written to a JSON file: candidates scored a second, for one LeNet and populations of several
sizes. A candidate's score is the distance of its image's gradient to the shared one. The plain loop takes one latent
after the other through generator, victim and distance; the other loop makes all images at once first. The three
alternate, so that a machine that slows down slows all; medians are printed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import torch.nn.functional as F
import typer
from rich import print
from throughput import row
from torch import Tensor, nn

from reprolib import data, models
from reprolib.attacks.matching import Matching
from reprolib.book import results
from reprolib.federated import client
from reprolib.federated.observation import Observation
from reprolib.federated.update import SharedUpdate


def scorers(model: nn.Module, generator: nn.Module, update: SharedUpdate, label: Tensor) -> dict[str, Callable]:
    """Functions from latents [P, k] to distances [P]: in one batch, and by two loops."""
    soft = F.one_hot(label, update.num_classes).float()
    target = [g[0] for g in update.gradients.values()]
    network = client.worker(model, "eval")
    parameters = list(network.parameters())
    matching = Matching(
        model, Observation(update.gradients), lambda z, _: (generator(z)[:, None], soft.expand(len(z), 1, -1))
    )

    def of_image(image: Tensor) -> Tensor:
        gradients = torch.autograd.grad(F.cross_entropy(network(image), soft), parameters)
        return sum((g - t).square().sum() for g, t in zip(gradients, target, strict=True))

    def loop(latents: Tensor) -> Tensor:
        return torch.stack([of_image(generator(z[None])) for z in latents])

    def loop_of_victims(latents: Tensor) -> Tensor:
        return torch.stack([of_image(image[None]) for image in generator(latents)])

    def batch(latents: Tensor) -> Tensor:
        return matching.alone(latents, torch.zeros(len(latents), dtype=torch.long))

    return {"batch": batch, "loop": loop, "loop, images made at once": loop_of_victims}


def main(
    populations: Annotated[list[int], typer.Option(help="candidates of a generation")] = [18, 50, 200],  # noqa: B006
    threads: Annotated[list[int], typer.Option(help="thread counts to measure with")] = [1, 2],  # noqa: B006
    rounds: Annotated[int, typer.Option(help="alternating measurements a row")] = 7,
    width: Annotated[int, typer.Option(help="of the generator")] = 32,
    root: Annotated[str | None, typer.Option(help="data root with CIFAR-10; offline photographs without")] = None,
    out: Annotated[Path, typer.Option()] = Path("results/runs/benchmarks/ggl.json"),
) -> None:
    images, rows = data.choose("cifar10", root=root, count=16), []
    x, y = images.batches(1, 1)
    model = models.build("lenet", images.num_classes, images.image_shape, 0)
    generator = models.build_generator("vae", images.image_shape, 0, width=width).eval().requires_grad_(False)
    ways = scorers(model, generator, client.share(model, x, y), y[0])
    for count in threads:
        torch.set_num_threads(count)
        for population in populations:
            latents = torch.randn(population, generator.latent_dim, generator=torch.Generator().manual_seed(0))
            expected = ways["loop"](latents)
            for way in ways.values():  # warm, and the same numbers
                torch.testing.assert_close(way(latents), expected, rtol=1e-3, atol=1e-5)
            rates = {name: [] for name in ways}
            for _ in range(rounds):
                for name, way in ways.items():
                    began = time.perf_counter()
                    way(latents)
                    rates[name].append(population / (time.perf_counter() - began))
            for name in list(ways)[1:]:
                rows.append(row(f"against the {name}", count, population, rates["batch"], rates[name]))
    print(pd.DataFrame(rows).round(3).to_string(index=False))
    record = {"tables": {"candidates": rows}}
    record["provenance"] = results.provenance(torch.device("cpu"), 0, {images.name: images.fingerprint})
    out.parent.mkdir(parents=True, exist_ok=True)
    results.save(out, json.loads(json.dumps(record)))
    print(f"written: {out}")


if __name__ == "__main__":
    typer.run(main)
