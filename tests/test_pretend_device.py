"""What CUDA would refuse, found without a GPU: the cases run on a pretended device in a process of their own.

The device is torch's backend for Python, of which a process has one, for good: other tests would see it.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.utils.backend_registration

HERE = Path(__file__).parent


@pytest.mark.skipif(
    not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"),
    reason=f"torch {torch.__version__} has no backend for Python",
)
def test_the_library_runs_on_a_device_as_on_the_cpu():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]  # the library that stands beside these tests
    run = subprocess.run(
        [*command, str(HERE / "cases_on_pretend_device.py")],
        cwd=HERE.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert not hasattr(torch, "pretend"), "this process has no such device"
