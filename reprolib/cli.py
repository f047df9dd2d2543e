"""What `reprolib` does: `run | book | serve | report | verify | accept | compare | address | data | train | doctor`.

Every error is one clear line: exit code 2 for a wrong argument, 1 for work that failed; `--debug` shows the traceback.
After Ctrl-C the exit code is 130, as in shells.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import signal
import sys
from contextlib import suppress
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from reprolib import clone
from reprolib.book import children, locks, notebooks, runner

console = Console()
errors = Console(stderr=True)


class ClearErrors(TyperGroup):
    """Turns an exception into one line and an exit code, unless `--debug` was given."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):  # they are RuntimeErrors, and no mistakes
            raise
        except KeyboardInterrupt:
            raise typer.Exit(128 + signal.SIGINT) from None  # `reprolib.__main__` says the line
        except (ValueError, OSError, RuntimeError, ImportError) as error:  # a bug of another type keeps its traceback
            if ctx.params.get("debug"):
                raise
            errors.print(f"[bold red]Error:[/] {escape(str(error))}", soft_wrap=True)
            raise typer.Exit(2 if isinstance(error, ValueError | FileNotFoundError) else 1) from None


app = typer.Typer(cls=ClearErrors, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
data_app = typer.Typer(help="List, check and download image sets.")
app.add_typer(data_app, name="data")


@app.callback()
def main(debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False) -> None:
    """Leaky Gradients: the gradient-inversion papers, re-run and judged."""
    if sys.flags.optimize > 1:
        raise ValueError("Python was started without docstrings (-OO), which the package cma reads: leave out one O")


Names = Annotated[list[str] | None, typer.Argument(metavar="[CHAPTER]...", help="01-dlg, 1 or dlg; all if left out.")]
Profile = Annotated[str, typer.Option(help=f"How much to run: {', '.join(notebooks.PROFILES)}.")]
Device = Annotated[str, typer.Option(help=f"Where to run: {', '.join(notebooks.DEVICES)}.")]
Jobs = Annotated[int, typer.Option(help="Chapters at once; each gets cores / jobs threads.")]
DataRoot = Annotated[Path | None, typer.Option("--data", envvar="REPROLIB_DATA", help="Folder of the image sets.")]
Seed = Annotated[
    int | None, typer.Option(help="Seed of every random number; left out, each chapter's own, its reference run's.")
]
Force = Annotated[bool, typer.Option("--force", help="Execute chapters again even if nothing they read has changed.")]


@app.command()
def run(
    names: Names = None,
    profile: Profile = "reference",
    device: Device = "auto",
    jobs: Jobs = 2,
    data: DataRoot = None,
    seed: Seed = None,
    force: Force = False,
) -> None:
    """Execute chapters whose notebook, code, parameters, packages or data have changed."""
    parameters = _parameters(profile, device, data, seed)
    if not all(outcome.good for outcome in _run(find_root(), names or (), parameters, jobs, force)):
        raise typer.Exit(1)


@app.command()
def book(
    profile: Profile = "reference",
    device: Device = "auto",
    jobs: Jobs = 2,
    data: DataRoot = None,
    seed: Seed = None,
    force: Force = False,
) -> None:
    """Execute the changed chapters and build the site in _build/html."""
    root = find_root()
    outcomes = _run(root, (), _parameters(profile, device, data, seed), jobs, force)
    build_site(root)
    console.print(f"The site is in {root / '_build' / 'html' / 'index.html'}", soft_wrap=True)
    if others := [f"{outcome.chapter} ({outcome.status})" for outcome in outcomes if not outcome.good]:
        errors.print(f"Not made anew: {', '.join(others)}", soft_wrap=True)
        raise typer.Exit(1)


@app.command()
def serve(port: Annotated[int, typer.Option(help="Of this machine, which no other may reach.")] = 8000) -> None:
    """Show the site that `reprolib book` has built, until it is stopped."""
    if not 1 <= port <= 65535:
        raise ValueError(f"port is {port}; it must be between 1 and 65535")
    site = find_root() / "_build" / "html"
    if not (site / "index.html").is_file():
        raise FileNotFoundError("there is no site yet: make book builds it")
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), partial(SimpleHTTPRequestHandler, directory=str(site)))
    except OSError as error:
        raise OSError(f"port {port} cannot be used ({error.strerror}); name another: make serve PORT=8001") from error
    console.print(f"The site is at http://127.0.0.1:{port} until Ctrl-C")
    with server, suppress(KeyboardInterrupt):
        server.serve_forever()


@app.command()
def verify(
    names: Names = None,
    seconds: Annotated[float, typer.Option(help="About how long the trials of a chapter may take.")] = 300.0,
    data: DataRoot = None,
) -> None:
    """Run trials of the committed records again, on the record's own images, and print number beside number."""
    from reprolib.book import verification

    root, failed = find_root(), []
    chosen = notebooks.find(root, names or ())
    without = [c for c in chosen if not verification.has_records(c.paper)]
    if len(without) == len(chosen) or names and without:
        stems = ", ".join(c.stem for c in without)
        raise FileNotFoundError(f"no committed records of {stems}: nothing to verify")
    for chapter in without:
        console.print(f"{chapter.stem}: no committed records, nothing to verify")
    for chapter in [c for c in chosen if c not in without]:
        found = verification.verify(chapter, _parameters("reference", "auto", data, None), seconds, console.print)
        for line in found.lines:
            console.print(escape(line), soft_wrap=True)
        failed += found.failed
    if failed:
        raise RuntimeError(f"{len(failed)} parts differ from their records: {', '.join(failed)}")


@app.command()
def accept(
    name: Annotated[str, typer.Argument(metavar="CHAPTER", help="01-dlg, 1 or dlg.")],
    profile: Annotated[str, typer.Option(help="Of the run to accept.")] = "gpu",
) -> None:
    """Make a finished run of a chapter the reference run, which results/reference holds."""
    from reprolib.book import verification

    root = find_root()
    console.print(escape(verification.accept(root, notebooks.find(root, [name])[0].paper, profile)), soft_wrap=True)


@app.command()
def compare(
    run: Annotated[Path, typer.Argument(help="A run's results file: results/runs/PROFILE/KEY.json.", dir_okay=False)],
) -> None:
    """Show a run beside the reference run: verdicts, measures, and records row by row. Fails where a verdict flips."""
    from reprolib.book import verification

    judged = verification.verdicts(run.stem, run)
    flipped = judged[judged.flipped].claim.tolist()
    for frame in (
        judged.assign(flipped=judged.flipped.map({True: "yes", False: ""})),
        *verification.compare(run.stem, run),
    ):
        table = Table(*map(str, frame.columns))
        for row in frame.itertuples(index=False):
            table.add_row(*(escape(str(value)) for value in row))
        console.print(table)
    if flipped:
        raise RuntimeError(f"the run finds otherwise than the reference run: {', '.join(flipped)}")


@app.command()
def address(
    url: Annotated[str, typer.Argument(metavar="URL", help="https://HOST/OWNER/NAME")],
    branch: Annotated[str, typer.Option(help="What the buttons open and install.")] = "main",
) -> None:
    """Set the repository's address: buttons for Colab and Binder, what notebooks install, and how to clone."""
    notebooks.set_address(find_root(), url, branch)
    console.print(f"_config.yml and the notebooks name {escape(url)}, branch {escape(branch)}", soft_wrap=True)


@app.command()
def report(out: Annotated[Path, typer.Option(help="The file to write.")] = Path("report.html")) -> None:
    """Write one self-contained HTML file: the scoreboard, key figures, provenance."""
    from reprolib.book.report import write_report

    write_report(find_root(), out)
    console.print(f"Wrote {out}", soft_wrap=True)


@data_app.callback(invoke_without_command=True)
def data_main(context: typer.Context, data: DataRoot = None) -> None:
    if context.invoked_subcommand is None:
        data_list(data)


@data_app.command("list")
def data_list(data: DataRoot = None) -> None:
    """Which sets are there, and how to get the others."""
    from reprolib.data import catalogue

    sets = catalogue(data)
    console.print(_table(sets.drop(columns="how to get it")))
    for row in sets[~sets.present].to_dict("records"):
        console.print(f"[bold]{row['name']}[/]: {escape(row['how to get it'])}")


@data_app.command("check")
def data_check(
    name: Annotated[str, typer.Argument(help="A set's name, or a folder of images.")],
    data: DataRoot = None,
    size: Annotated[int | None, typer.Option(help="The side to which the pictures will be brought.")] = None,
) -> None:
    """Decode every image of a set and report what is wrong with it."""
    from reprolib.data import check

    found = check(name, data, size)
    console.print(escape(str(found)), soft_wrap=True)
    if found.problems:
        raise typer.Exit(1)


@data_app.command("download")
def data_download(
    name: Annotated[str, typer.Argument(help="A set's name, as `reprolib data` lists it.")], data: DataRoot = None
) -> None:
    """Fetch a set of the papers with torchvision into the data root."""
    from reprolib.data import download

    console.print(f"{name} is in {download(name, data)}", soft_wrap=True)


@app.command()
def train(
    names: Annotated[list[str] | None, typer.Argument(metavar="[CHECKPOINT]...", help="All if left out.")] = None,
    device: Device = "auto",
    data: DataRoot = None,
) -> None:
    """Train the victims and generators that ship in checkpoints/ again, each as its recipe says, and compare.

    A kind alone, such as `decoder`, means all that ship of it; a generator's KIND-DATA any set, such as `vae-svhn`.
    """
    import torch

    from reprolib import models
    from reprolib.experiments import generators, training

    device = _parameters("cpu", device, data, 1).device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    ship, folder = [*training.RECIPES, *generators.RECIPES], find_root() / "checkpoints"
    for asked in names or ship:
        for name in [known for known in ship if known.startswith(f"{asked}-")] or [asked]:
            trained = training.train if name in training.RECIPES else generators.train
            shipped = None
            with suppress(OSError, ValueError):  # nothing there, or a damaged card: nothing to compare with
                shipped = models.card(folder / f"{name}.safetensors")
            card = trained(name, data, device, folder)
            console.print(f"{name}: {_quality(card)[1]}", soft_wrap=True)
            if shipped is not None:
                console.print(f"  before: {_again(shipped, card)}", soft_wrap=True)


def _quality(card: dict) -> tuple[dict, str]:
    """A checkpoint's measured interval, and the sentence that says it."""
    what, measure, scale, unit = (
        ("right", "test_accuracy", 100, " %") if "test_accuracy" in card else ("restored", "test_psnr", 1, " dB")
    )
    found = card[measure]
    low, high = (scale * found[end] for end in ("low", "high"))
    return found, f"{scale * found['value']:.1f}{unit} of {found['images']} test images {what} [{low:.1f}, {high:.1f}]"


def _again(shipped: dict, card: dict) -> str:
    """Whether a checkpoint trained again is as good as the one it replaces says."""
    was, sentence = _quality(shipped)
    if json.loads(json.dumps([card["recipe"], card["data"]])) != [shipped["recipe"], shipped["data"]]:
        return f"{sentence}, by another recipe or on other images"
    within = was["low"] <= _quality(card)[0]["value"] <= was["high"]
    return f"{sentence}; the new figure lies {'within' if within else 'OUTSIDE'} this interval"


@app.command()
def doctor(data: DataRoot = None) -> None:
    """What this machine has, and what each profile will cost."""
    import torch

    from reprolib.data import catalogue

    root = find_root()
    memory = psutil.virtual_memory()
    facts = Table(show_header=False)
    facts.add_row("machine", f"{platform.system()} {platform.machine()}, {runner.cores()} cores")
    facts.add_row("memory", f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free")
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        facts.add_row(f"cuda:{index}", f"{name}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free")
    if not torch.cuda.is_available():
        facts.add_row("cuda", "none: device auto means cpu")
    facts.add_row("threads", f"{torch.get_num_threads()} in torch (OMP_NUM_THREADS sets them)")
    facts.add_row("python", platform.python_version())
    for package in ("reprolib", "torch", "torchvision", "numpy", "papermill", "jupyter-book"):
        facts.add_row(package, importlib.metadata.version(package))
    checkpoints = sorted(path.stem for path in (root / "checkpoints").glob("*.safetensors"))
    facts.add_row("checkpoints", ", ".join(checkpoints) or "none in checkpoints/")
    sets = catalogue(data)
    facts.add_row("data sets", ", ".join(sets.name[sets.present]))
    facts.add_row("absent", f"{', '.join(sets.name[~sets.present]) or 'none'} (see: reprolib data)")
    facts.add_row("speed", _speed())
    console.print(facts)
    console.print(_costs(root))


def find_root() -> Path:
    """The clone of the book that this is run in."""
    root = clone.find()
    if root is None:
        raise ValueError(f"no folder with claims/ and notebooks/ in {Path.cwd()} or above it; run this in a clone")
    return root


def build_site(root: Path) -> None:
    """Build the site anew from the executed pages: what a killed build has left is never taken for a finished page."""
    with locks.locked(root / "book" / "chapters" / ".site.lock", "the site"):
        shutil.rmtree(root / "_build", ignore_errors=True)
        process = children.start(_site, str(root))
        try:
            process.join()
        finally:
            children.end(process)
    if process.exitcode:
        raise RuntimeError(f"jupyter-book build ended with exit code {process.exitcode}; its messages are above")


def _site(root: str) -> None:
    """What `jupyter-book build ROOT` does, in a process of its own: Sphinx changes the one that it runs in."""
    from jupyter_book.cli.main import main

    # for the kernels of pages that execute their cells: as a chapter's, and their numbers are the same everywhere
    os.environ.update(OMP_NUM_THREADS="1", GOMP_SPINCOUNT=runner.SPINS)
    main(["build", root])


def _parameters(profile: str, device: str, data: Path | None, seed: int | None) -> notebooks.Parameters:
    root = str(data.expanduser().resolve()) if data else ""
    parameters = notebooks.Parameters(profile, seed, device, root)
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ValueError(f"device {device!r} was asked for, but torch finds no CUDA here; use --device cpu")
    return parameters


def _run(
    root: Path, names: list[str] | tuple, parameters: notebooks.Parameters, jobs: int, force: bool
) -> list[runner.Outcome]:
    outcomes = runner.run(root, names, parameters, jobs, force, tell=lambda line: console.print(escape(line)))
    table = Table("chapter", "", "seconds", "where")
    colours = {"ran": "green", "unchanged": "dim", "failed": "bold red", "busy": "yellow"}
    for outcome in outcomes:
        status = f"[{colours[outcome.status]}]{outcome.status}[/]"
        table.add_row(outcome.chapter, status, f"{outcome.seconds:.0f}", escape(outcome.where))
    console.print(table)
    if kept := [f"book/chapters/failed/{outcome.chapter}.ipynb" for outcome in outcomes if outcome.kept]:
        console.print(f"Kept for reading: {', '.join(kept)}", soft_wrap=True)
    if stale := [outcome.chapter for outcome in outcomes if outcome.stale]:
        console.print(f"Pages marked stale: {', '.join(stale)}", soft_wrap=True)
    return outcomes


def _table(frame: Any) -> Table:
    table = Table(*(str(column) for column in frame.columns))
    for row in frame.assign(present=frame.present.map({True: "yes", False: "no"})).itertuples(index=False):
        table.add_row(*(escape(str(value)) for value in row))
    return table


BUDGETS = {"smoke": "≤ 20 s", "cpu": "≤ 2 min on 2 cores", "gpu": "≤ 4 min on one GPU", "paper": "hours"}
"""What a chapter may take (developer guide, "Records, profiles, replay"), said where nothing has been measured."""


def _costs(root: Path) -> Table:
    """Seconds of each chapter at each profile: of the last run here, else of the reference run, else the budget."""
    table = Table("chapter", *BUDGETS, title="What a profile costs")
    for chapter in notebooks.chapters(root):
        cells = []
        for profile, budget in BUDGETS.items():
            runs, reference = root / "results" / "runs" / profile, root / "results" / "reference" / chapter.paper
            if here := _seconds(runs, chapter.paper, profile):
                cells.append(f"{here[0]:.0f} s, last run here")
            elif there := _seconds(reference, chapter.paper, profile):
                cells.append(f"{there[0]:.0f} s, reference run on {there[1]}")
            else:
                cells.append(f"{budget}, not run yet")
        table.add_row(chapter.stem, *map(escape, cells))
    return table


def _seconds(folder: Path, paper: str, profile: str) -> tuple[float, str] | None:
    """How long a run took and on what, by its results file, if that is there, whole, and of this profile."""
    from reprolib.book import checked

    with suppress(OSError, ValueError):
        stored, _ = checked.read(folder / f"{paper}.json", paper)
        if stored.profile == profile and stored.provenance.seconds is not None:
            return stored.provenance.seconds, stored.provenance.device
    return None


def _speed() -> str:
    """Gradients of DLG's objective a second, measured on LeNet and 64 victims: a second or two on an idle machine."""
    from reprolib import attacks, data, models
    from reprolib.federated import client

    photos = data.load("photos", count=64)
    model = models.build("lenet", photos.num_classes, photos.image_shape, seed=0)
    update = client.share(model, *photos.batches(1, 64))
    attack = replace(attacks.DLG.official(), iterations=1, max_iter=5)
    attack(model, update, progress=False)  # warms up
    found = attack(model, update, progress=False)
    return f"{int(found.evaluations.sum()) / found.seconds:,.0f} evaluations/s of DLG on LeNet, 64 victims at once"
