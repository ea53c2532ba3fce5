"""After each test everybody still communicates, as in tests/api. Links are cut as in tests/faults; apps are the repository's."""

import sys
from pathlib import Path

from together import _all_together, pytest_runtest_makereport

__all__ = ["_all_together", "pytest_runtest_makereport"]

_TESTS = Path(__file__).resolve().parents[1]
sys.path += [str(_TESTS / "faults"), str(_TESTS.parent)]
