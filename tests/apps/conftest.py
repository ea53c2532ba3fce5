"""Makes `apps` and this folder importable, and offers the launcher of mini-apps."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
# the apps are not installed; appended, so that the installed pympx wins over the source tree
sys.path += [str(HERE), str(HERE.parents[1])]

from apps_harness import Launcher  # noqa: E402


@pytest.fixture(scope="session")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Launcher:
    """Return launch(ranks, program, *arguments, transport=...)."""
    return Launcher(tmp_path_factory.mktemp("apps"))
