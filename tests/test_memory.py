"""Importing reprolib has malloc keep what it freed."""

import platform
import subprocess
import sys

import pytest


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc can be told to keep memory")
def test_memory_freed_after_importing_reprolib_is_used_again_without_page_faults():
    code = """if 1:
        import reprolib, resource, torch
        count = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(25):  # until the heap has grown to its size
            torch.ones(24 << 20)  # 96 MiB
        before = count()
        for _ in range(5):
            torch.ones(24 << 20)
        print(count() - before)
    """
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(found.stdout) < 1000  # of 122,880 pages touched
