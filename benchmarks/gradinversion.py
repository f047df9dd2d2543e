"""GradInversion, engine against a plain loop, side by side: `python benchmarks/gradinversion.py`.

One table, printed and written to a JSON file: iterations a second and seed, for S seeds of one batch at once, against
the same loop one seed after another, without and with the agreement of the seeds; the plain loop has none.
Plain and batched measurements alternate, so that a machine that slows down slows both; medians are printed.
"""

from __future__ import annotations

import json
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

from reprolib import attacks, data
from reprolib.attacks import priors
from reprolib.book import results
from reprolib.experiments import training
from reprolib.federated import client
from reprolib.federated.streams import generator
from reprolib.federated.threat import ThreatModel
from reprolib.optimizers import warm_cosine


def plain(attack: attacks.GradInversion, model: torch.nn.Module, update, seed: int) -> torch.Tensor:
    """The loop as one would write it, for one seed: hooks on the batch norms, torch's Adam, noise on the pixels."""
    victim = client.worker(model, update.threat.mode)
    target = [g[0] for g in update.gradients.values()]
    random, shape = generator(0, 0, seed), (update.batch_size, *update.image_shape)
    x = torch.randn(shape, generator=random).requires_grad_()
    mean, std = model.normalize.mean, model.normalize.std
    rate = warm_cosine(attack.learning_rate, attack.iterations, attack.warmup)
    optimizer = torch.optim.Adam([x], lr=attack.learning_rate)
    seen: dict[str, torch.Tensor] = {}
    for name in update.batch_norm:
        layer = victim.get_submodule(name)
        layer.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0]}))
    for iteration in range(attack.iterations):
        loss = F.cross_entropy(victim(x * std + mean), update.labels[0])
        dummy = torch.autograd.grad(loss, list(victim.parameters()), create_graph=True)
        value = attack.gradient * sum((d - g).norm() for d, g in zip(dummy, target, strict=True))
        for name, (wanted, spread) in update.batch_norm.items():
            axes = (0, 2, 3)
            value = value + attack.batch_norm * (seen[name].mean(axes) - wanted[0]).norm()
            value = value + attack.batch_norm * (seen[name].var(axes, unbiased=False) - spread[0]).norm()
        value = value + attack.total_variation * priors.four_direction_variation(x[None])[0]
        value = value + attack.energy * x.flatten(1).norm(dim=1).mean()
        (x.grad,) = torch.autograd.grad(value, x)
        for group in optimizer.param_groups:
            group["lr"] = rate(iteration)
        optimizer.step()
        with torch.no_grad():
            x += rate(iteration) * attack.noise * torch.randn(shape, generator=random)
            x.copy_(x.clamp((0 - mean) / std, (1 - mean) / std))
    return (x.detach() * std + mean)[0]


def main(
    batches: Annotated[list[int], typer.Option(help="images in the attacked batch")] = [2, 4, 8],  # noqa: B006
    seeds: Annotated[list[int], typer.Option(help="numbers of seeds at once")] = [1, 4, 8],  # noqa: B006
    threads: Annotated[list[int], typer.Option(help="thread counts to measure with")] = [1, 2],  # noqa: B006
    rounds: Annotated[int, typer.Option(help="alternating measurements a row")] = 3,
    length: Annotated[int, typer.Option(help="iterations of a measured run")] = 30,
    root: Annotated[str | None, typer.Option(help="data root with CIFAR-10; offline photographs without")] = None,
    out: Annotated[Path, typer.Option()] = Path("results/runs/benchmarks/gradinversion.json"),
) -> None:
    images, rows = data.choose("cifar10", root=root, count=max(*batches, 16)), []
    model = training.victim("resnetbn8-cifar10")
    threat = ThreatModel(mode="train", labels="known", batch_norm="exact")
    for count in threads:
        torch.set_num_threads(count)
        for batch in batches:
            x, y = images.batches(batch, 1, distinct_labels=True)
            update = client.share(model, x, y, threat=threat)
            for number in seeds:
                grouped = replace(attacks.GradInversion.balanced(), seeds=number, labels="known", gradient=0.1)
                grouped = grouped.compressed(length)
                alone = replace(grouped, group=0.0)
                # The refreshes of a long run: one in `length` iterations, not as many as a compressed run has.
                grouped = replace(grouped, group_start=0, group_every=length)
                warm = replace(alone, iterations=2, warmup=1)
                warm(model, update, progress=False), plain(warm, model, update, 0)
                ours, theirs, agreeing = [], [], []
                for _ in range(rounds):
                    ours.append(number * length / alone(model, update, progress=False).seconds)
                    agreeing.append(number * length / grouped(model, update, progress=False).seconds)
                    began = time.perf_counter()
                    plain(alone, model, update, 0)
                    theirs.append(length / (time.perf_counter() - began))
                for what, rates in {"without a group": ours, "with a group": agreeing}.items():
                    rows.append(row(f"batch of {batch}, {what}", count, number, rates, theirs))
    print(pd.DataFrame(rows).round(3).to_string(index=False))
    record = {"tables": {"iterations": rows}}
    record["provenance"] = results.provenance(torch.device("cpu"), 0, {images.name: images.fingerprint})
    out.parent.mkdir(parents=True, exist_ok=True)
    results.save(out, json.loads(json.dumps(record)))
    print(f"written: {out}")


if __name__ == "__main__":
    typer.run(main)
