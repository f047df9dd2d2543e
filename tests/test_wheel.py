"""A notebook needs no clone: the wheel carries the claims, the checkpoints and the reference run."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from reprolib import clone
from reprolib.book import results

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "NOTICE")
FOLDERS = ("reprolib", "claims", "checkpoints", "results/reference")


def called(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the package as its wheel unpacks it; what it depends on is that of this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    source, target = folder / "source", folder / "installed"
    source.mkdir()
    for name in SOURCES:
        shutil.copyfile(ROOT / name, source / name)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    called(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source)
    (wheel,) = folder.glob("*.whl")
    called(*pip, "install", "--no-deps", "--target", target, wheel)
    return target


def test_the_wheel_carries_every_file_that_a_chapter_reads(installed):
    for name in FOLDERS[1:]:
        carried = {path.relative_to(installed) for path in (installed / "reprolib" / "carried" / name).rglob("*")}
        assert carried == {Path("reprolib", "carried", path.relative_to(ROOT)) for path in (ROOT / name).rglob("*")}


def test_checkpoints_are_opened_from_the_wheel(installed, tmp_path):
    opened = "training.victim('lenet-cifar10'); generators.shipped('vae-cifar10')"
    code = f"from reprolib.experiments import generators, training; {opened}"
    called(sys.executable, "-c", code, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(installed)})


@pytest.mark.notebook
def test_a_notebook_runs_in_an_empty_folder(installed, tmp_path):
    run = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": str(installed), "REPROLIB_RESULTS": ""}}
    assert str(installed) in called(sys.executable, "-c", "import reprolib; print(reprolib.__file__)", **run)
    notebook = ROOT / "notebooks" / "02-idlg.ipynb"
    called(sys.executable, "-m", "papermill", notebook, "out.ipynb", "--no-progress-bar", **run)
    found = results.load(tmp_path / "results" / "runs" / "reference" / "idlg.json")
    reference = results.load(clone.reference_root() / "idlg" / "idlg.json")
    assert found["verdicts"] == reference["verdicts"] and found["measures"] == reference["measures"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.ipynb", "results"]
