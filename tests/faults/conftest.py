"""The transports over which faults are tested: the plugin's option --transports, else shm and tcp."""

from __future__ import annotations

import pytest


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "transport" in metafunc.fixturenames:
        chosen = [name for name in metafunc.config.getoption("transports").split(",") if name]
        metafunc.parametrize("transport", chosen or ["shm", "tcp"])
