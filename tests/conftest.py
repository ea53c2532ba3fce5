"""What tests of all folders share: where counts go for the record of a run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[[dict[str, Any]], None]:
    """Print counts as one line of JSON and append it to the file that PYMPX_TEST_RECORD names; of a test on ranks, rank 0 does."""
    silent = "comm" in request.fixturenames and request.getfixturevalue("comm").rank != 0

    def write(counts: dict[str, Any]) -> None:
        if silent:
            return
        line = json.dumps({"test": request.node.nodeid, **counts})
        print(line)
        if path := os.environ.get("PYMPX_TEST_RECORD"):
            with Path(path).open("a") as file:
                file.write(line + "\n")

    return write
