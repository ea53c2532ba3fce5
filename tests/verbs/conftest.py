"""These tests run in the virtual machine: ``ci/lane verbs`` boots it; ``ci/verbs/vm --devices two -- pytest tests/verbs`` for some."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
# the apps are not installed; appended, so that the installed pympx wins over the source tree
sys.path += [str(HERE), str(HERE.parent / "apps"), str(HERE.parent / "faults"), str(HERE.parents[1])]


@pytest.fixture(scope="session", autouse=True)
def _devices() -> None:
    missing = [name for name in ("rxe1", "rxe2") if not Path("/sys/class/infiniband", name).exists()]
    if missing:
        pytest.fail(f"no verbs device {' or '.join(missing)} here: run ci/lane verbs, or ci/verbs/vm --devices two -- pytest tests/verbs")
