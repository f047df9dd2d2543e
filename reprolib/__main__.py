"""The one way in, of `reprolib` as of `python -m reprolib`: Ctrl-C is one line, even while the library is imported."""

import os
import signal
import sys
from types import FrameType

INTERRUPTED = 128 + signal.SIGINT  # the exit code that shells give
STOPPED = "Stopped. Give the same command again: what was finished is kept.\n"


def main() -> None:
    """Run the command line and exit."""
    signal.signal(signal.SIGINT, _stop)
    code: str | int | None = 0
    try:
        from reprolib.cli import app  # here, because it takes a second or more

        app()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except SystemExit as end:
        code = end.code
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # nothing is left that a further Ctrl-C could stop
    if code == INTERRUPTED:
        sys.stderr.write(STOPPED)
    sys.exit(code)


def _stop(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt; but end at once in an import, where libraries lose it or make another error of it."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            os.write(2, STOPPED.encode())  # sys.stderr may be half made
            os._exit(INTERRUPTED)
        frame = frame.f_back
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
