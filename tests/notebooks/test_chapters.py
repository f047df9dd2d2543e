"""Every chapter at the smoke profile, by papermill's own command: a notebook must work without the runner."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch

from reprolib.book import notebooks, results

ROOT = Path(__file__).resolve().parent.parent.parent
CHAPTERS = notebooks.chapters(ROOT)


def executed(chapter, tmp_path, *parameters):
    """The executed cells, and the results that the chapter wrote."""
    out = tmp_path / "out.ipynb"
    command = [sys.executable, "-m", "papermill", str(chapter.notebook), str(out), "--no-progress-bar"]
    done = subprocess.run(
        [*command, *parameters],
        cwd=ROOT,
        env=os.environ | {"REPROLIB_RESULTS": str(tmp_path / "results")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (record,) = (tmp_path / "results" / "runs").glob(f"*/{chapter.paper}.json")
    return nbformat.read(out, as_version=4).cells, results.load(record)


@pytest.mark.notebook
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.stem)
def test_a_chapter_runs_at_the_smoke_profile(chapter, device, tmp_path):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("this machine has no CUDA device")
    cells, record = executed(chapter, tmp_path, "-p", "profile", "smoke", "-p", "device", device)
    assert all(cell.execution_count for cell in cells if cell.cell_type == "code" and cell.source.strip())
    assert record["profile"] == "smoke" and record["verdicts"], "a chapter ends with the verdicts on its claims"


def recorded(chapter):
    path = ROOT / "results" / "reference" / chapter.paper / f"{chapter.paper}.json"
    return path.is_file() and "records" in results.load(path)


@pytest.mark.notebook
@pytest.mark.parametrize("chapter", [c for c in CHAPTERS if recorded(c)], ids=lambda chapter: chapter.stem)
def test_a_chapter_with_records_shows_them_and_they_are_what_the_code_makes(chapter, tmp_path):
    cells, record = executed(chapter, tmp_path)
    reference = results.load(ROOT / "results" / "reference" / chapter.paper / f"{chapter.paper}.json")
    stale = {kind: names for kind, names in record["state"].items() if "verified since" not in kind and names}
    assert not stale, f"stale records: run `reprolib verify {chapter.paper} --data ROOT`, or the chapter again"
    assert record["measures"] == reference["measures"], "accept the run again: its measures are computed otherwise now"
