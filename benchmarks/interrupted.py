"""Is a book that was killed again and again the same book? `python benchmarks/interrupted.py`

Two clones of the last commit are built at one profile: the first in peace, the second killed with SIGKILL at ten
moments spread over its build and resumed each time. Then both sites are compared page by page, all but times:
durations, dates and columns of seconds. Ends non-zero where they differ.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parents[1]
TIMES = re.compile(
    r"\d+(\.\d+)? s on|\d{4}-\d\d-\d\dT[\d:.+]+Z?|\d{4}-\d\d-\d\d \d\d:\d\d(:\d\d)?( UTC)?|in \d+(\.\d+)? s"
    r"|, \d+ s, "
)


def clone(source: Path, folder: Path) -> Path:
    subprocess.run(["git", "clone", "--quiet", source, folder], check=True)
    return folder


def start(folder: Path, profile: str) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(folder)}
    environment.pop("REPROLIB_RESULTS", None)
    command = [sys.executable, "-m", "reprolib", "book", "--profile", profile]
    log = (folder / "build.log").open("ab")
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)


def finish(folder: Path, profile: str) -> float:
    began = time.monotonic()
    if start(folder, profile).wait() != 0:
        raise SystemExit(f"the build in {folder} failed: see {folder / 'build.log'}")
    return time.monotonic() - began


def killed(folder: Path, profile: str, after: float, whole_group: bool) -> bool:
    """Whether the build still ran `after` seconds; then it was killed, alone or with all its children."""
    process = start(folder, profile)
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        if whole_group:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()
        return True
    return False


def pages(folder: Path) -> dict[str, str]:
    """Name -> visible text and pictures of each page, times left out."""
    site = folder / "_build" / "html"
    found = {}
    for path in sorted(site.rglob("*.html")):
        page = BeautifulSoup(path.read_text(), "html.parser")
        for table in page.find_all("table"):
            heads = [cell.get_text(strip=True) for cell in table.find_all("tr")[0].find_all(["th", "td"])]
            for place in [i for i, head in enumerate(heads) if head == "seconds"]:
                for line in table.find_all("tr"):
                    line.find_all(["th", "td"])[place].string = "…"
        body = page.find("main") or page
        images = [image.get("src", "")[-4000:] for image in body.find_all("img")]
        found[str(path.relative_to(site))] = TIMES.sub("…", body.get_text(" ")) + "\n".join(images)
    return found


def main(
    profile: Annotated[str, typer.Option()] = "smoke",
    moments: Annotated[int, typer.Option(help="how often the build is killed")] = 10,
) -> None:
    folder = Path(tempfile.mkdtemp())
    source = clone(ROOT, folder / "source")  # a commit made meanwhile must not reach one of the two
    calm, hurt = clone(source, folder / "calm"), clone(source, folder / "hurt")
    whole = finish(calm, profile)
    print(f"undisturbed: {whole:.0f} s")
    done = 0
    while done < moments:
        after = whole * (0.1 + 0.35 * ((done * 0.618) % 1))  # a resumed build is shorter than a whole one
        if killed(hurt, profile, after, whole_group=bool(done % 2)):
            done += 1
            parts = sum(1 for _ in (hurt / "results" / "parts").rglob("*.json"))
            print(
                f"kill {done} after {after:.1f} s: {parts} parts stored, site {'there' if pages(hurt) else 'not there'}"
            )
        else:
            print(f"the build had ended after {after:.1f} s: beginning anew")
            shutil.rmtree(hurt)
            clone(source, hurt)
    print(f"resumed to the end: {finish(hurt, profile):.0f} s")
    ours, theirs = pages(calm), pages(hurt)
    differing = [name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)]
    print(f"{len(ours)} pages, {len(differing)} differ {differing or ''}")
    if not differing:
        shutil.rmtree(folder)
    raise typer.Exit(bool(differing))


if __name__ == "__main__":
    typer.run(main)
