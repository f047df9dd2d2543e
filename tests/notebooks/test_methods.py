"""The twenty lines of plain torch in which a chapter shows its method give what the library gives."""

from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
import torch
import torch.nn.functional as F

from reprolib import attacks, client, models

NOTEBOOKS = Path(__file__).resolve().parent.parent.parent / "notebooks"


def method(stem, name):
    """The function of that name in the chapter's cells with the tag `method`."""
    cells = nbformat.read(NOTEBOOKS / f"{stem}.ipynb", as_version=4).cells
    defined = {"torch": torch, "F": F}
    for cell in cells:
        if "method" in cell.metadata.get("tags", []):
            exec(cell.source, defined)
    return defined[name]


@pytest.fixture
def victim():
    return models.build("lenet", 5, (3, 16, 16), seed=3).double()


@pytest.fixture
def images():
    return torch.rand(1, 1, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_dlg(victim, images):
    update = client.share(victim, images, torch.tensor([[2]]))
    engine = replace(attacks.DLG.official(), iterations=3, init_mean=0.5, init_std=0.1)
    random = client.generator(7, 0, 0)
    start = (0.5 + 0.1 * torch.randn(1, 3, 16, 16, generator=random)).double()
    logits = torch.randn(1, 5, generator=random).double()
    shared = [gradient[0] for gradient in update.gradients.values()]
    found = method("01-dlg", "dlg")(victim, shared, start, logits, steps=3)
    torch.testing.assert_close(found, engine(victim, update, seed=7).raw[0], rtol=0, atol=1e-6)
