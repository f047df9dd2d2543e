"""Processes that belong to the one that has started them: Ctrl-C is for that one alone, and they end with it.

Ctrl-C reaches a terminal's whole group of processes, and each that is not prepared for it prints a traceback.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing import connection, resource_tracker
from multiprocessing.process import BaseProcess

SECONDS_TO_END = 10
HOLDS = hasattr(signal, "pthread_sigmask")  # Windows cannot hold a signal back


def start(work: Callable[..., None], *arguments: object) -> BaseProcess:
    """A new Python that runs work(*arguments) and ends with this process, however this one ends."""
    process = multiprocessing.get_context("spawn").Process(target=_run, args=(work, *arguments), daemon=True)
    if not HOLDS:
        process.start()
        return process
    resource_tracker.ensure_running()  # before SIGINT is blocked: its start would unblock it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the child begins so: its imports are safe
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)  # here a Ctrl-C that came meanwhile is raised
    return process


def end(process: BaseProcess) -> None:
    """End a child, if it still runs, with time to stop its own kernel and to remove its temporary files."""
    process.terminate()
    process.join(SECONDS_TO_END)
    process.kill()


def _run(work: Callable[..., None], *arguments: object) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if HOLDS:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that `finally` is heeded
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        if parent is not None:
            connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    work(*arguments)
