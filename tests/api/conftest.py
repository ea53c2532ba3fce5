"""What the tests of the API share: an order in which tests can share jobs, and a seed that all ranks know."""

from __future__ import annotations

import os
import secrets
from typing import Any

import numpy as np
import pytest

_PASSED = pytest.StashKey[bool]()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put tests that want the same job (ranks, transport) side by side, for --ranks-batch."""
    folder = os.path.dirname(__file__)

    def job(item: pytest.Item) -> tuple[int, str, str]:
        params: dict[str, Any] = dict(item.callspec.params) if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        return int(params.get("_pympx_ranks", 0)), str(params.get("_pympx_transport", "")), str(item.path)

    mine = iter(sorted((item for item in items if str(item.path).startswith(folder)), key=job))
    items[:] = [next(mine) if str(item.path).startswith(folder) else item for item in items]


@pytest.fixture
def rng(comm: Any) -> np.random.Generator:
    """A generator in the same state on all ranks. Its seed is printed; PYMPX_TEST_SEED sets it."""
    seed = comm.bcast(int(os.environ.get("PYMPX_TEST_SEED", secrets.randbits(48))))
    print(f"seed: PYMPX_TEST_SEED={seed}")
    return np.random.default_rng(seed)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    report = yield
    if report.when == "call":
        item.stash[_PASSED] = report.passed
    return report


@pytest.fixture(autouse=True)
def _all_together(request: pytest.FixtureRequest) -> Any:
    """After a test that passed, no message may be left over, and everybody still communicates."""
    yield
    if request.node.get_closest_marker("ranks") is None or not request.node.stash.get(_PASSED, False):
        return
    from pympx import MPI

    world = MPI.COMM_WORLD
    total = world.allreduce(world.rank + 1)
    assert total == world.size * (world.size + 1) // 2
    assert not world.Iprobe(), "a message was left over"
