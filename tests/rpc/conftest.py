"""Calls are checked as the API is: after each test everybody still communicates."""

from together import _all_together, pytest_runtest_makereport

__all__ = ["_all_together", "pytest_runtest_makereport"]
