"""What the stress tests share: the long form, and where counts are written for the record."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LONG = os.environ.get("PYMPX_TEST_LONG") == "1"


@pytest.fixture
def long() -> bool:
    """Whether PYMPX_TEST_LONG=1 asks for the long form."""
    return LONG


@pytest.fixture
def record(comm: Any, request: pytest.FixtureRequest) -> Callable[[dict[str, Any]], None]:
    """Rank 0 prints counts as one line of JSON, and appends it to the file that PYMPX_TEST_RECORD names."""

    def write(counts: dict[str, Any]) -> None:
        if comm.rank:
            return
        line = json.dumps({"test": request.node.nodeid, **counts})
        print(line)
        if path := os.environ.get("PYMPX_TEST_RECORD"):
            with Path(path).open("a") as file:
                file.write(line + "\n")

    return write
