"""The examples in docstrings: they run, and print what they say."""

import doctest
import importlib
import pkgutil

import pytest

import reprolib

MODULES = [module.name for module in pkgutil.walk_packages(reprolib.__path__, "reprolib.")]
PUBLIC = ("data.named", "models", "federated.client", "federated.update", "attacks", "attacks.labels")
PUBLIC += ("measure.metrics", "measure.intervals", "book.claims")


@pytest.mark.parametrize("name", MODULES)
def test_examples_print_what_they_say(name):
    found = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.failed == 0, "the differences are in what this test printed"
    if name.removeprefix("reprolib.") in PUBLIC:
        assert found.attempted > 0, "a reader looks for an example here"
