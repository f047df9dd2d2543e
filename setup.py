"""What pyproject.toml cannot say: the wheel carries what a chapter reads beside the code (`reprolib.clone.shipped`)."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

CARRIED = ("claims", "checkpoints", "results/reference")


class WithTheBook(build_py):
    """Copies claims, checkpoints and the reference run into the built package. An editable install reads the clone."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        folder = Path(self.build_lib, "reprolib", "carried")
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier build
        for name in CARRIED:
            self.copy_tree(name, str(folder / name))


setup(cmdclass={"build_py": WithTheBook})
