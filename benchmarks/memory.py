"""What keeping freed memory is worth, side by side: `python benchmarks/memory.py`.

`reprolib` asks glibc to keep memory it has freed. Each row is one attack in a process of its own, with that setting and
with glibc's own, in alternation; processor seconds of the program and of the kernel, page faults and the largest
resident size are printed, and written to a JSON file. Linux only.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated
from unittest import mock

import pandas as pd
import typer
from rich import print

VICTIMS = {
    "MLP": {"name": "mlp", "width": 256, "activation": "relu"},
    "LeNet": {"name": "lenet", "init": "default"},
    "ConvNet": {"name": "convnet", "width": 16},
}


def attacked(victim: str, kept: bool, trials: int, iterations: int) -> dict[str, float]:
    """Run Inverting Gradients once in this process; seconds of the program and of the kernel, faults, MiB."""
    with mock.patch.object(sys, "platform", sys.platform if kept else "without mallopt"):
        import reprolib  # noqa: F401 - its first import sets the allocator

    from reprolib import attacks, data, models
    from reprolib.federated import client

    options = dict(VICTIMS[victim])
    images = data.load("photos", count=trials)
    model = models.build(options.pop("name"), images.num_classes, images.image_shape, 0, **options)
    x, y = images.batches(1, trials, seed=0)
    update = client.share(model, x, y, threat=client.ThreatModel(labels="known"))
    attack = attacks.InvertingGradients(iterations=iterations)
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    attack(model, update, progress=False)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "wall": time.perf_counter() - started,
        "user": after.ru_utime - before.ru_utime,
        "kernel": after.ru_stime - before.ru_stime,
        "faults": after.ru_minflt - before.ru_minflt,
        "resident": after.ru_maxrss / 1024,
    }


def main(
    trials: Annotated[int, typer.Option(help="trials at once")] = 16,
    iterations: Annotated[int, typer.Option(help="of each attack")] = 20,
    rounds: Annotated[int, typer.Option(help="alternating measurements a row")] = 3,
    out: Annotated[Path, typer.Option()] = Path("results/runs/benchmarks/memory.json"),
) -> None:
    import torch

    from reprolib.book import results  # not above: the children import this file before they choose the allocator

    found = []
    for victim in VICTIMS:
        for number in range(rounds):
            for kept in (True, False):
                call = f"memory.attacked({victim!r}, {kept}, {trials}, {iterations})"
                code = f"import json, memory; print(json.dumps({call}))"
                command = [sys.executable, "-c", code]
                child = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
                found.append({"victim": victim, "kept": kept, "round": number, **json.loads(child.stdout)})
    table = pd.DataFrame(found).groupby(["victim", "kept"], sort=False).median().drop(columns="round").reset_index()
    print(table.round(2).to_string(index=False))
    record = {"tables": {"memory": found}, "provenance": results.provenance(torch.device("cpu"), 0, {})}
    out.parent.mkdir(parents=True, exist_ok=True)
    results.save(out, record)
    print(f"written: {out}")


if __name__ == "__main__":
    typer.run(main)
