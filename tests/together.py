"""After a test on ranks that passed, no message may be left over, and everybody still communicates. A conftest.py takes both names."""

from __future__ import annotations

from typing import Any

import pytest

_PASSED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    report = yield
    if report.when == "call":
        item.stash[_PASSED] = report.passed
    return report


@pytest.fixture(autouse=True)
def _all_together(request: pytest.FixtureRequest) -> Any:
    yield
    if request.node.get_closest_marker("ranks") is None or not request.node.stash.get(_PASSED, False):
        return
    from pympx import MPI

    world = MPI.COMM_WORLD
    total = world.allreduce(world.rank + 1)
    assert total == world.size * (world.size + 1) // 2
    assert not world.Iprobe(), "a message was left over"
