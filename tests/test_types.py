"""Static types."""

import subprocess
import sys
from pathlib import Path


def test_mypy_is_clean():
    # beside the other tests: alone it would keep one core waiting
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
