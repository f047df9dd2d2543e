"""Time and memory of the mask-guided recovery against the batch: `python benchmarks/exact_batches.py --data-root PATH`.

One table, printed and written to a JSON file: CPU seconds of one core, peak memory of the process so far (MB), and how
many images are exact, for ever larger batches under a layer of one width. Sizes ascend: the peak is each row's own.
"""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer
from rich import print

from reprolib import attacks, data
from reprolib.book import results
from reprolib.experiments import spear


def main(
    data_root: Annotated[str, typer.Option(help="where CIFAR-10 lies")] = "",
    sizes: Annotated[list[int], typer.Option(help="images in a batch")] = [16, 32, 64, 128, 192, 256],  # noqa: B006
    width: Annotated[int, typer.Option(help="units of the layer")] = 1024,
    out: Annotated[Path, typer.Option(help="file to write")] = Path("exact-batches.json"),
) -> None:
    torch.set_num_threads(1)
    pool = data.choose("cifar10", "train", max(sizes), 0, data_root or None)
    rows = []
    for size in sorted(sizes):
        clients = spear.Clients(pool, size, 1, 1, seed=0, width=width)
        found = spear.compared(clients, {"mask-guided": attacks.MaskGuided()})["batches"].iloc[0]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        rows.append({"images": size, "width": width, "CPU seconds": float(found.cpu), "peak MB": peak})
        rows[-1] |= {"exact": int(found.exact), "certified": bool(found.certified)}
        print(rows[-1])
    print(pd.DataFrame(rows).to_string(index=False))
    record = {"tables": {"batches": rows}}
    record["provenance"] = results.provenance(torch.device("cpu"), 0, {pool.name: pool.fingerprint})
    out.parent.mkdir(parents=True, exist_ok=True)
    results.save(out, json.loads(json.dumps(record)))
    print(f"written: {out}")


if __name__ == "__main__":
    typer.run(main)
