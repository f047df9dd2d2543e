"""Every chapter, executed through papermill at the smoke profile, as a reader would start it."""

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from reprolib import results

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.notebook
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_chapter_runs_by_itself(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("REPROLIB_RESULTS", str(tmp_path / "results"))
    out = tmp_path / "out.ipynb"
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(notebook),
        str(out),
        "-p",
        "profile",
        "smoke",
        "-p",
        "device",
        "cpu",
    ]
    done = subprocess.run([*command, "--no-progress-bar"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    executed = nbformat.read(out, as_version=4)
    errors = [o for c in executed.cells if c.cell_type == "code" for o in c.outputs if o.output_type == "error"]
    assert not errors
    (record,) = (tmp_path / "results" / "runs" / "smoke").glob("*.json")
    assert results.load(record)["verdicts"], "a chapter ends with the verdicts on its claims"
