"""Named sets of images, from files to tensors in [0, 1]: `load`, `choose`, `check`.

Nothing here knows of models or gradients, and nothing is downloaded unasked.
"""

from reprolib.data.folders import SPLITS
from reprolib.data.imageset import ImageSet
from reprolib.data.manage import Check, catalogue, check, download
from reprolib.data.named import choose, load
from reprolib.data.offline import OFFLINE_SETS
from reprolib.data.papers import NAMES, PAPER_SETS, PaperSet

__all__ = [
    "NAMES",
    "OFFLINE_SETS",
    "PAPER_SETS",
    "SPLITS",
    "Check",
    "ImageSet",
    "PaperSet",
    "catalogue",
    "check",
    "choose",
    "download",
    "load",
]
