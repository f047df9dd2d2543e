"""Ctrl-C at any moment of a command: one line, exit code 130, and no process left."""

import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from test_runner import leftovers, write_chapter

ROOT = Path(__file__).resolve().parent.parent
STOPPED = "Stopped. Give the same command again: what was finished is kept.\n"
AS_SCRIPT = "import sys; from reprolib.__main__ import main; sys.argv = ['reprolib', {command!r}]; main()"
INTERRUPTED = "import os, signal, time\n{guard}\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(60)\n{then}"
BRINGS = {
    "an import": ("try:", "finally: pass"),
    "an import that goes on": ("try:", "except BaseException: pass"),
    "an import that fails otherwise": ("try:", "except BaseException: raise RecursionError"),
}


def command(folder: Path, *arguments: str, first: Path = ROOT, **options) -> subprocess.Popen:
    """A command of this tree in a group of processes of its own, as a terminal starts it."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join({str(first): 0, str(ROOT): 0})}
    environment |= {"TMPDIR": str(folder)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [sys.executable, *arguments]
    return subprocess.Popen(started, cwd=folder, env=environment, start_new_session=True, **pipes, **options)


def is_there(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def gone(process: int, seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while is_there(process) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not is_there(process)


def test_the_installed_command_takes_the_same_way_as_the_module():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert scripts == {"reprolib": "reprolib.__main__:main"}


@pytest.mark.parametrize("way", [("-m", "reprolib", "doctor"), ("-c", AS_SCRIPT.format(command="doctor"))])
@pytest.mark.parametrize("library", ["psutil", "torch"])
@pytest.mark.parametrize("moment", BRINGS)
def test_ctrl_c_during_an_import_is_one_line(tmp_path, way, library, moment):
    guard, then = BRINGS[moment]
    (tmp_path / f"{library}.py").write_text(INTERRUPTED.format(guard=guard, then=then), encoding="utf-8")
    process = command(tmp_path, *way, first=tmp_path)
    assert process.communicate(timeout=60) == ("", STOPPED)
    assert process.returncode == 130


def test_ctrl_c_in_a_command_is_one_line_and_a_second_one_changes_nothing(tmp_path):
    stop = "from reprolib.book import notebooks\nimport os, signal\n" + (
        "def stop(*arguments):\n    os.kill(os.getpid(), signal.SIGINT)\n"
        "notebooks.Parameters = stop\nimport atexit; atexit.register(os.kill, os.getpid(), signal.SIGINT)\n"
    )
    process = command(tmp_path, "-c", stop + AS_SCRIPT.format(command="run"))
    assert process.communicate(timeout=60) == ("", STOPPED)
    assert process.returncode == 130


WAITS = "import os, pathlib, time\npathlib.Path('kernel').write_text(str(os.getpid()))\ntime.sleep(600)"


@pytest.mark.parametrize("moment", ["as the chapter's process starts", "in a cell"])
def test_ctrl_c_ends_the_chapter_and_its_kernel(tmp_path, moment):
    (tmp_path / "claims").mkdir()
    write_chapter(tmp_path, "01-slow", WAITS)
    process = command(tmp_path, "-m", "reprolib", "run", "--profile", "smoke")
    kernel = tmp_path / "kernel"
    assert process.stdout is not None and "01-slow: running" in process.stdout.readline()
    deadline = time.monotonic() + 60
    while moment == "in a cell" and not (kernel.exists() and kernel.read_text()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=60) == ("", STOPPED)
    assert process.returncode == 130
    assert leftovers(tmp_path) == [] and not list(tmp_path.glob("reprolib-*"))
    assert not kernel.exists() or gone(int(kernel.read_text()))


def test_a_child_ends_with_a_parent_that_is_killed(tmp_path):
    code = "import time\nfrom reprolib.book import children\nprint(children.start(time.sleep, 600).pid, flush=True)"
    process = command(tmp_path, "-c", f"{code}\ntime.sleep(600)")
    assert process.stdout is not None
    child = int(process.stdout.readline())
    assert is_there(child)
    process.kill()
    assert gone(child)
    process.communicate()
