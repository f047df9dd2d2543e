"""Every chapter at the smoke profile, by papermill's own command: a notebook must work without the runner.

Their kernels are forked from a process that has imported the library: each would import it for nine seconds otherwise.
`tests/test_wheel.py` runs a chapter in a kernel of its own.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import pytest
import torch

from reprolib.book import notebooks, results

ROOT = Path(__file__).resolve().parent.parent.parent
CHAPTERS = notebooks.chapters(ROOT)


@pytest.fixture(scope="session")
def warm():
    """The environment in which Jupyter finds the kernel `warm`."""
    with tempfile.TemporaryDirectory(prefix="warm-") as folder:  # of a short name: a socket's may have 100 letters
        own = Path(folder)
        script, path = str(Path(__file__).with_name("warm_kernel.py")), str(own / "socket")
        (own / "kernels" / "warm").mkdir(parents=True)
        command = [sys.executable, script, path, "{connection_file}"]
        named = {"argv": command, "display_name": "warm", "language": "python"}
        (own / "kernels" / "warm" / "kernel.json").write_text(json.dumps(named))
        server = subprocess.Popen([sys.executable, script, "serve", path], cwd=ROOT)
        try:
            while not os.path.exists(path):
                assert server.poll() is None, "the server of warm kernels ended"
                time.sleep(0.1)
            yield {"JUPYTER_PATH": folder}
        finally:
            server.kill()
            server.wait()


def executed(chapter, tmp_path, warm, *parameters):
    """The executed cells, and the results that the chapter wrote."""
    out = tmp_path / "out.ipynb"
    command = [sys.executable, "-m", "papermill", str(chapter.notebook), str(out), "--no-progress-bar", "-k", "warm"]
    done = subprocess.run(
        [*command, *parameters],
        cwd=ROOT,
        env=os.environ | warm | {"REPROLIB_RESULTS": str(tmp_path / "results")},
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
def test_a_chapter_runs_at_the_smoke_profile(chapter, device, tmp_path, warm):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("this machine has no CUDA device")
    cells, record = executed(chapter, tmp_path, warm, "-p", "profile", "smoke", "-p", "device", device)
    assert all(cell.execution_count for cell in cells if cell.cell_type == "code" and cell.source.strip())
    assert record["profile"] == "smoke" and record["verdicts"], "a chapter ends with the verdicts on its claims"


def recorded(chapter):
    path = ROOT / "results" / "reference" / chapter.paper / f"{chapter.paper}.json"
    return path.is_file() and "records" in results.load(path)


@pytest.mark.notebook
@pytest.mark.parametrize("chapter", [c for c in CHAPTERS if recorded(c)], ids=lambda chapter: chapter.stem)
def test_a_chapter_with_records_shows_them_and_they_are_what_the_code_makes(chapter, tmp_path, warm):
    cells, record = executed(chapter, tmp_path, warm)
    reference = results.load(ROOT / "results" / "reference" / chapter.paper / f"{chapter.paper}.json")
    stale = {kind: names for kind, names in record["state"].items() if "verified since" not in kind and names}
    assert not stale, f"stale records: run `reprolib verify {chapter.paper} --data ROOT`, or the chapter again"
    assert record["measures"] == reference["measures"], "accept the run again: its measures are computed otherwise now"
