"""Kernels that begin with the library imported: a server imports it once and forks one for each that is asked for.

`python warm_kernel.py serve SOCKET` is the server, `python warm_kernel.py SOCKET CONNECTION_FILE` the command of a
kernel, as a kernel's specification names it. A kernel ends with its command, and a command with its kernel.
"""

import json
import os
import signal
import socket
import sys
import threading


def serve(path: str) -> None:
    import ipykernel.kernelapp  # noqa: F401
    import pandas  # noqa: F401
    import torch  # noqa: F401

    import reprolib.book.chapter
    import reprolib.book.figures
    import reprolib.experiments  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a kernel but its command
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{path}.new")
        listener.listen()
        os.rename(f"{path}.new", path)
        while True:
            command, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                kernel(command)
            command.close()


def kernel(command: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    asked = json.loads(command.makefile().readline())
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    threading.Thread(target=lambda: (command.recv(1), os._exit(1)), daemon=True).start()
    from ipykernel.kernelapp import IPKernelApp

    try:
        IPKernelApp.launch_instance(["-f", asked["file"]])
    finally:
        os._exit(0)


def ask(path: str, file: str) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        asked = {"file": file, "folder": os.getcwd(), "environment": dict(os.environ)}
        server.sendall(json.dumps(asked).encode() + b"\n")
        server.recv(1)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        ask(*sys.argv[1:])
