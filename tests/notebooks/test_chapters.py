"""Every chapter at the smoke profile, by papermill's own command: a notebook must work without the runner."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch

from reprolib import results, runner

ROOT = Path(__file__).resolve().parent.parent.parent
CHAPTERS = runner.chapters(ROOT)


@pytest.mark.notebook
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.stem)
def test_a_chapter_runs_at_the_smoke_profile(chapter, device, tmp_path):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("this machine has no CUDA device")
    out = tmp_path / "out.ipynb"
    command = [sys.executable, "-m", "papermill", str(chapter.notebook), str(out), "--no-progress-bar"]
    done = subprocess.run(
        [*command, "-p", "profile", "smoke", "-p", "device", device],
        cwd=ROOT,
        env=os.environ | {"REPROLIB_RESULTS": str(tmp_path / "results")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    cells = nbformat.read(out, as_version=4).cells
    assert all(cell.execution_count for cell in cells if cell.cell_type == "code" and cell.source.strip())
    record = results.load(tmp_path / "results" / "runs" / "smoke" / f"{chapter.paper}.json")
    assert record["profile"] == "smoke" and record["verdicts"], "a chapter ends with the verdicts on its claims"
