"""Inverting Gradients, engine against a plain loop, side by side: `python benchmarks/inverting_gradients.py`.

Two tables, printed and written to one JSON file:
  iterations  iterations a second and trial, for T trials at once, against the same loop one trial after another
  quality     whole runs on the same images and starts: PSNR of both, with its interval, and the paired difference
Plain and batched measurements alternate, so that a machine that slows down slows both; medians are printed.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import torch.nn.functional as F
import typer
from rich import print
from throughput import row

from reprolib import attacks, data, models
from reprolib.book import results
from reprolib.experiments import training
from reprolib.federated import client
from reprolib.federated.streams import generator
from reprolib.federated.threat import ThreatModel
from reprolib.measure import intervals, metrics

VICTIMS = {"lenet": {}, "convnet": {"width": 16}, "resnet20": {}}


def problem(images: data.ImageSet, victim: str, trials: int, device: torch.device):
    """An untrained victim, the update of `trials` different images under it, and the images."""
    x, y = images.batches(1, trials)
    model = models.build(
        victim, images.num_classes, images.image_shape, seed=0, normalize=training.CIFAR10, **VICTIMS[victim]
    ).to(device)
    return model, client.share(model, x.to(device), y.to(device), threat=ThreatModel(labels="known")), x


def plain(attack: attacks.InvertingGradients, model, update, trial: int) -> torch.Tensor:
    """The published loop on one trial, from the start that the engine draws for it; the image in pixels."""
    target = [g[trial] for g in update.gradients.values()]
    mean, std, size = model.normalize.mean, model.normalize.std, torch.Size(update.image_shape).numel()
    start = torch.randn(size, generator=generator(0, trial, 0))
    x = start.view(1, *update.image_shape).to(mean.device).requires_grad_()
    optimizer = torch.optim.Adam([x], lr=attack.learning_rate)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(attack.schedule()))
    length = sum(g.square().sum() for g in target).sqrt()
    for _ in range(attack.iterations):
        loss = F.cross_entropy(model(x * std + mean), update.labels[trial])
        dummy = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        inner = sum((d * g).sum() for d, g in zip(dummy, target, strict=True))
        value = 1 - inner / (sum(d.square().sum() for d in dummy).sqrt() * length)
        variation = (x[..., 1:] - x[..., :-1]).abs().mean() + (x[..., 1:, :] - x[..., :-1, :]).abs().mean()
        (x.grad,) = torch.autograd.grad(value + attack.total_variation * variation, x)
        x.grad.sign_()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            x.copy_(x.clamp((0 - mean) / std, (1 - mean) / std))
    return (x.detach() * std + mean)[0]


def iterations_table(images, victims, sizes, threads, rounds: int, length: int, device) -> list[dict]:
    rows = []
    for count in threads:
        torch.set_num_threads(count)
        for victim in victims:
            for trials in sizes:
                model, update, _ = problem(images, victim, trials, device)
                warm = replace(attacks.InvertingGradients(), iterations=1)
                warm(model, update, progress=False), plain(warm, model, update, 0)
                # the published runs take thousands of iterations: what an attack does once must not count here
                steps = max(length // trials, 40)
                attack = replace(attacks.InvertingGradients(), iterations=steps)
                ours, theirs = [], []
                for _ in range(rounds):
                    found = attack(model, update, progress=False)
                    ours.append(trials * steps / found.seconds)
                    began = time.perf_counter()
                    plain(attack, model, update, 0)
                    theirs.append(steps / (time.perf_counter() - began))
                rows.append(row(victim, count, trials, ours, theirs))
                print(rows[-1])
    return rows


def quality_table(images, trials: int, length: int, device) -> list[dict]:
    attack = replace(attacks.InvertingGradients(), iterations=length)
    model, update, x = problem(images, "lenet", trials, device)
    ours = metrics.psnr(attack(model, update, progress=False).images[:, 0].cpu(), x[:, 0])
    theirs = torch.stack([plain(attack, model, update, t).clamp(0, 1).cpu() for t in range(trials)])
    theirs = metrics.psnr(theirs, x[:, 0])
    means = {"engine": intervals.mean(ours), "plain": intervals.mean(theirs)}
    means["engine minus plain"] = intervals.difference(ours, theirs)
    return [{"what": name, "iterations": length, **vars(interval)} for name, interval in means.items()]


def main(
    victims: Annotated[list[str], typer.Option(help=f"of {', '.join(VICTIMS)}")] = list(VICTIMS),  # noqa: B006
    trials: Annotated[list[int], typer.Option(help="numbers of trials at once")] = [1, 4, 16],  # noqa: B006
    threads: Annotated[list[int], typer.Option(help="thread counts to measure with")] = [1, 2],  # noqa: B006
    rounds: Annotated[int, typer.Option(help="alternating measurements a row")] = 3,
    length: Annotated[int, typer.Option(help="iterations of a run over all its trials; 40 a trial at least")] = 400,
    quality: Annotated[int, typer.Option(help="iterations of the `quality` runs; 0 leaves them out")] = 300,
    root: Annotated[str | None, typer.Option(help="data root with CIFAR-10; offline photographs without")] = None,
    device: Annotated[str, typer.Option()] = "cpu",
    out: Annotated[Path, typer.Option()] = Path("results/runs/benchmarks/inverting_gradients.json"),
) -> None:
    where = torch.device(device)
    images = data.choose("cifar10", root=root, count=max(*trials, 16))
    tables = {"iterations": iterations_table(images, victims, trials, threads, rounds, length, where)}
    torch.set_num_threads(os.cpu_count() if where.type == "cpu" else 1)
    tables["quality"] = quality_table(images, 16, quality, where) if quality else []
    for name, rows in tables.items():
        print(f"\n{name}\n{pd.DataFrame(rows).round(3).to_string(index=False)}")
    record = {"tables": tables, "provenance": results.provenance(where, 0, {images.name: images.fingerprint})}
    out.parent.mkdir(parents=True, exist_ok=True)
    results.save(out, json.loads(json.dumps(record)))
    print(f"written: {out}")


if __name__ == "__main__":
    typer.run(main)
