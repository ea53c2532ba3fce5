"""What the tests of the API share: a seed that all ranks know, and a check after each test."""

from __future__ import annotations

import os
import secrets
from typing import Any

import numpy as np
import pytest
from together import _all_together, pytest_runtest_makereport

__all__ = ["_all_together", "pytest_runtest_makereport", "rng"]


@pytest.fixture
def rng(comm: Any) -> np.random.Generator:
    """A generator in the same state on all ranks. Its seed is printed; PYMPX_TEST_SEED sets it."""
    seed = comm.bcast(int(os.environ.get("PYMPX_TEST_SEED", secrets.randbits(48))))
    print(f"seed: PYMPX_TEST_SEED={seed}")
    return np.random.default_rng(seed)
