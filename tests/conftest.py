"""Fixtures that several test files share."""

from __future__ import annotations

import gc

import pytest


def pytest_collection_finish() -> None:
    """Thousands of tests stay to the end: the collector need not look at each of them again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_data_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests see the offline sets, whatever the machine they run on has set."""
    monkeypatch.delenv("REPROLIB_DATA", raising=False)
