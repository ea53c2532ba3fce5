"""Fixtures of the tests on several hosts. They need root; where hosts cannot be made, the tests fail in CI and are skipped elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pympx.testing.hosts import Hosts, missing


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = missing()
    if reason and not os.environ.get("PYMPX_CI"):
        for item in items:
            item.add_marker(pytest.mark.skip(reason=f"no namespace hosts: {reason}"))


@pytest.fixture(autouse=True)
def _stay_here() -> Iterator[None]:
    before = Path.cwd()
    yield
    os.chdir(before)


@pytest.fixture
def two() -> Iterator[Hosts]:
    """Two hosts, a and b, each with a bogus docker0 and virbr0, that see each other's processes."""
    with Hosts("a", "b") as hosts:
        yield hosts
