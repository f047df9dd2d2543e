"""The twenty lines of plain torch in which a chapter shows its method give what the library gives."""

import ast
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
import torch
import torch.nn.functional as F

from reprolib import attacks, client, experiments, labels, models
from reprolib.attacks.fgla import separate

NOTEBOOKS = Path(__file__).resolve().parent.parent.parent / "notebooks"


def method(stem, name):
    """The function of that name in the chapter's cells."""
    cells = nbformat.read(NOTEBOOKS / f"{stem}.ipynb", as_version=4).cells
    statements = [s for cell in cells if cell.cell_type == "code" for s in ast.parse(cell.source).body]
    (found,) = [s for s in statements if isinstance(s, ast.FunctionDef) and s.name == name]
    defined = {"torch": torch, "F": F}
    exec(ast.unparse(found), defined)
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


def test_the_label_rules():
    truth, weights, biases = experiments.head_gradients(50, 7, seed=3)
    named = [method("02-idlg", "rules")(weight, bias) for weight, bias in zip(weights, biases, strict=True)]
    for rule in labels.RULES:
        assert [one[rule] for one in named] == labels.infer(weights, biases, rule).tolist()
        assert [one[rule] for one in named] == truth.tolist()
    assert method("02-idlg", "rules")(weights[0, :2], biases[0, :2])["pairwise"] == -1, "two classes are opposites"


def test_idlg(victim, images):
    update = client.share(victim, images, torch.tensor([[2]]))
    engine = replace(attacks.IDLG.official(), iterations=3, init_mean=0.5, init_std=0.1)
    start = (0.5 + 0.1 * torch.randn(1, 3, 16, 16, generator=client.generator(7, 0, 0))).double()
    shared = [gradient[0] for gradient in update.gradients.values()]
    found, label = method("02-idlg", "idlg")(victim, shared, start, steps=3)
    assert label.tolist() == [2]
    torch.testing.assert_close(found, engine(victim, update, seed=7).raw[0], rtol=0, atol=1e-6)


def test_fgla():
    random = torch.Generator().manual_seed(1)
    head, features = torch.nn.Linear(6, 12).double(), torch.rand(3, 6, dtype=torch.float64, generator=random)
    given = torch.tensor([4, 0, 9])
    gradients = torch.autograd.grad(F.cross_entropy(head(features), given), list(head.parameters()))
    found = method("05-fgla", "fgla_by_hand")(*gradients, given, lambda features: features)
    own = separate(*(gradient[None] for gradient in gradients), given[None]).features[0]
    torch.testing.assert_close(found, own, rtol=0, atol=1e-12)
