"""The engine against the plain loop, side by side in one run: `python benchmarks/throughput.py`.

Three tables, printed and written to one JSON file:
  objective  gradients of the objective a second, for T trials at once, against the plain closure
  attack     evaluations a second of the whole official DLG (objective and L-BFGS with a full history)
  recovery   full attacks on the same networks and images: success, seconds a recovered image
Plain and batched measurements alternate, so that a machine that slows down slows both; medians are printed.
"""

from __future__ import annotations

import json
import os
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import pandas as pd
import psutil
import torch
import typer
from rich import print

from reprolib import attacks, data, models
from reprolib.attacks import plain
from reprolib.attacks.matching import Matching
from reprolib.book import results
from reprolib.federated import client
from reprolib.federated.observation import Observation

THRESHOLD = 1e-3  # a recovered image: MSE below it


def problem(images: data.ImageSet, trials: int, network: int, device: torch.device):
    """A drawn LeNet, and the update of `trials` different images under it."""
    x, labels = images.batches(1, trials, seed=network)
    model = models.build("lenet", images.num_classes, images.image_shape, seed=network).to(device)
    return model, client.share(model, x.to(device), labels.to(device)), x


def calls_per_second(call: Callable[[], object], repeat: int, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(repeat):
        call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return repeat / (time.perf_counter() - began)


def batched_objective(model, update, trials: int) -> Callable[[], object]:
    shape, size = update.image_shape, torch.Size(update.image_shape).numel()
    device = next(model.parameters()).device

    def parts(x, of):
        return x[:, :size].view(-1, 1, *shape), x[:, size:].view(-1, 1, update.num_classes).softmax(-1)

    matching = Matching(model, Observation(update.gradients), parts)
    x, index = torch.randn(trials, size + update.num_classes, device=device), torch.arange(trials, device=device)
    return lambda: matching(x, index)


def plain_objective(model, update) -> Callable[[], object]:
    target = {name: g[0] for name, g in update.gradients.items()}
    device = next(model.parameters()).device
    image = torch.randn(1, *update.image_shape, device=device, requires_grad=True)
    logits = torch.randn(1, update.num_classes, device=device, requires_grad=True)
    return lambda: torch.autograd.grad(plain.objective(model, target, image, logits.softmax(-1)), [image, logits])


def objective_table(images, sizes, threads, rounds: int, device) -> list[dict]:
    rows = []
    for count in threads:
        torch.set_num_threads(count)
        for trials in sizes:
            model, update, _ = problem(images, trials, 0, device)
            batched, single = batched_objective(model, update, trials), plain_objective(model, update)
            repeat = max(1, 128 // trials)
            batched(), single()
            ours, theirs = [], []
            for _ in range(rounds):
                ours.append(trials * calls_per_second(batched, repeat, device))
                theirs.append(calls_per_second(single, 24, device))
            rows.append(row("objective", count, trials, ours, theirs))
    return rows


def attack_table(images, sizes, threads, rounds: int, outers: int, device) -> list[dict]:
    """Rates over the last part of a run, when the history of 100 pairs is full."""
    official = replace(attacks.DLG.official(), iterations=outers)
    rows = []
    for count in threads:
        torch.set_num_threads(count)
        for trials in sizes:
            model, update, _ = problem(images, trials, 0, device)
            ours, theirs, peak = [], [], 0
            for _ in range(rounds):
                found, memory = with_peak(official, model, update, device)
                ours.append(found.evaluations.sum().item() / found.seconds)
                one = attacks.PlainDLG(outers)(model, update.select(0))
                theirs.append(one.evaluations.item() / one.seconds)
                peak = max(peak, memory)
            rows.append(
                row("attack", count, trials, ours, theirs)
                | {"seconds_per_trial": found.seconds / trials, "peak_memory_mib": peak / 2**20}
            )
    return rows


def with_peak(attack, model, update, device):
    """The reconstruction, and the memory that the attack added at its peak, in bytes (sampled on a CPU)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        result = attack(model, update, progress=False)
        return result, torch.cuda.max_memory_allocated()
    process, done = psutil.Process(), threading.Event()
    before = peak = process.memory_info().rss

    def sample() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, process.memory_info().rss)

    sampler = threading.Thread(target=sample)
    sampler.start()
    result = attack(model, update, progress=False)
    done.set()
    sampler.join()
    return result, peak - before


def row(what: str, threads: int, trials: int, ours: list[float], theirs: list[float]) -> dict:
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {
        "what": what,
        "threads": threads,
        "trials": trials,
        "engine_per_s": statistics.median(ours),
        "plain_per_s": statistics.median(theirs),
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
    }


def recovery_table(images, networks: int, each: int, plain_each: int, device) -> list[dict]:
    """Whole attacks on the same networks: the engine's presets on all images, the plain loop on the first of them."""
    rows = []
    for network in range(networks):
        model, update, truth = problem(images, each, network, device)
        compared = {
            "engine, stable": (attacks.DLG.stable(), each),
            "engine, official": (attacks.DLG.official(), each),
            "plain, official": (attacks.PlainDLG(), min(each, plain_each)),
        }
        for name, (attack, count) in compared.items():
            found = attack(model, update.select(slice(count)), seed=network, progress=False)
            errors = (found.raw.cpu() - truth[:count]).square().flatten(1).mean(1)
            good = int((errors < THRESHOLD).sum())
            cost = {"evaluations": found.evaluations.sum().item(), "seconds": found.seconds}
            rows.append({"what": name, "network": network, "images": count, "recovered": good} | cost)
        print(pd.DataFrame(rows[-3:]).to_string(index=False))
    return rows


def main(
    trials: Annotated[list[int], typer.Option(help="numbers of trials at once")] = [1, 4, 16, 64, 128, 256],  # noqa: B006
    threads: Annotated[list[int], typer.Option(help="thread counts to measure with")] = [1, 2],  # noqa: B006
    rounds: Annotated[int, typer.Option(help="alternating measurements a row")] = 3,
    outers: Annotated[int, typer.Option(help="outer steps of the `attack` rows")] = 12,
    networks: Annotated[int, typer.Option(help="drawn networks of the `recovery` rows; 0 leaves them out")] = 8,
    each: Annotated[int, typer.Option(help="images a network, attacked at once")] = 64,
    plain_each: Annotated[int, typer.Option(help="of these, images that the plain loop attacks too")] = 16,
    root: Annotated[str | None, typer.Option(help="data root with CIFAR-10; offline photographs without")] = None,
    device: Annotated[str, typer.Option()] = "cpu",
    out: Annotated[Path, typer.Option()] = Path("results/runs/benchmarks/throughput.json"),
) -> None:
    where = torch.device(device)
    images = data.choose("cifar10", root=root, count=max(*trials, each, 2))
    tables = {
        "objective": objective_table(images, trials, threads, rounds, where),
        "attack": attack_table(images, trials, threads, rounds, outers, where),
    }
    for name, rows in tables.items():
        print(f"\n{name}\n{pd.DataFrame(rows).round(2).to_string(index=False)}")
    torch.set_num_threads(os.cpu_count() if where.type == "cpu" else 1)
    tables["recovery"] = recovery_table(images, networks, each, plain_each, where)
    totals = pd.DataFrame(tables["recovery"])
    if len(totals):
        totals = totals.groupby("what")[["images", "recovered", "evaluations", "seconds"]].sum()
        totals["seconds_per_recovered"] = totals["seconds"] / totals["recovered"]
        print(totals.round(2).to_string())
    record = {"tables": tables, "provenance": results.provenance(where, 0, {images.name: images.fingerprint})}
    out.parent.mkdir(parents=True, exist_ok=True)
    results.save(out, json.loads(json.dumps(record)))
    print(f"written: {out}")


if __name__ == "__main__":
    typer.run(main)
