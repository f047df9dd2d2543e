"""Fixtures that several test files share."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _no_data_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests see the offline sets, whatever the machine they run on has set."""
    monkeypatch.delenv("REPROLIB_DATA", raising=False)
