"""Who may import or include whom: this repository keeps the rules, and planted violations of each rule are found."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import architecture
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("check", architecture.CHECKS, ids=lambda check: check.__name__)
def test_the_repository_keeps_the_rules(check: Callable[[Path], list[str]]) -> None:
    assert check(ROOT) == []


def test_the_rules_have_something_to_judge() -> None:
    assert len(list(architecture.files(ROOT / "pympx" / "engine", architecture.NATIVE))) > 5
    assert (ROOT / "pympx" / "include" / "pympx" / "transport.h").exists()


SOUND = {
    "pympx/include/pympx/transport.h": "#include <stddef.h>\n#include <stdint.h>\n",
    "pympx/engine/send.cc": '#include <sys/uio.h>\n#include <pympx/transport.h>\n#include "send.h"\n#include "engine/send.h"\n',
    "pympx/engine/send.h": 'const char *name = "eager";  // like "shm"\n',
    "transports/shm/ep.cc": '#include <pympx/transport.h>\n#include "ring.h"\n',
    "transports/shm/ring.h": "#include <atomic>\n",
    "transports/shm/plugin.py": "from pympx.plugins.api import NativeTransport\nfrom . import config\nfrom ...plugins import api\n",
    "transports/tcp/plugin.py": "import pympx.plugins.api\n",
    "pympx/collectives/bcast.py": '"""tcp"""\nfrom .schedule import Schedule\nWORD = "shmem"\n',
    "pympx/api/comm.py": "from ..bindings import comm\n",
    "pympx/bindings/comm.pyx": 'from libc.stdint cimport uint64_t\ncdef extern from "engine/engine.h" namespace "mpx":\n    pass\n',
    "apps/heat/heat.py": "import pympx\nfrom pympx import MPI\nimport pympx.counters\nimport numpy as np\nfrom .halo import Halo\n",
}

VIOLATIONS = [
    ("check_engine", "pympx/engine/a.cc", "#include <Python.h>\n", r"a\.cc:1: the engine includes <Python\.h>"),
    ("check_engine", "pympx/engine/a.cc", '\n#include "Python.h"\n', r"a\.cc:2: the engine includes Python\.h"),
    ("check_engine", "pympx/engine/a.cc", '#include "../../transports/shm/ring.h"\n', "ring.h, which is not its own"),
    ("check_engine", "pympx/engine/a.cc", "#include <transports/shm/ring.h>\n", "transports/shm/ring.h"),
    ("check_engine", "pympx/engine/a.cc", '#include "../include/pympx/transport.h"\n', "which is not its own"),
    ("check_engine", "pympx/engine/a.h", 'if (name == "shm") return;\n', r"a\.h:1: the engine names the transport shm"),
    ("check_abi", "pympx/include/pympx/transport.h", "#include <string>\n", "the ABI includes string"),
    ("check_transports", "transports/shm/a.cc", '#include "../tcp/socket.h"\n', "socket.h, which is not its own"),
    ("check_transports", "transports/shm/a.cc", '#include "engine/send.h"\n', "engine/send.h, which is not its own"),
    ("check_transports", "transports/shm/a.cc", "#include <engine/send.h>\n", "transport shm includes <engine/send.h>"),
    ("check_transports", "transports/shm/a.cc", "#include <Python.h>\n", r"transport shm includes <Python\.h>"),
    ("check_transports", "transports/shm/a.py", "def f():\n    from pympx import MPI\n", r"a\.py:2: transport shm imports pympx\.MPI"),
    ("check_transports", "transports/shm/a.py", "from ..tcp import plugin\n", r"imports pympx\.transports\.tcp\.plugin"),
    ("check_transports", "transports/shm/a.py", "from ...bindings import loader\n", r"imports pympx\.bindings\.loader"),
    ("check_layers", "pympx/collectives/a.py", "from pympx.transports import shm\n", r"collectives imports pympx\.transports\.shm"),
    ("check_layers", "pympx/collectives/a.py", "import importlib\nimportlib.import_module('pympx.transports.tcp')\n", r"a\.py:2: .*tcp"),
    ("check_layers", "pympx/rpc/a.py", "from ..transports.tcp import plugin\n", r"rpc imports pympx\.transports\.tcp\.plugin"),
    ("check_layers", "pympx/dsm/a.py", "def f(t):\n    return t == 'shm'\n", r"a\.py:2: dsm names the transport shm"),
    ("check_layers", "pympx/dsm/a.cc", '#include "transports/shm/ring.h"\n', "dsm includes transports/shm/ring.h"),
    ("check_api", "pympx/api/a.py", "from ..transports import shm\n", r"api imports pympx\.transports\.shm"),
    ("check_api", "pympx/bindings/a.pyx", "from pympx.transports.shm cimport ring\n", r"a\.pyx:1: bindings imports pympx\.transports"),
    ("check_api", "pympx/bindings/a.pyx", "from ..api import comm\n", r"bindings imports pympx\.api\.comm, which sits on it"),
    ("check_api", "pympx/bindings/a.pyx", 'cdef extern from "transports/shm/ring.h":\n', "bindings includes transports/shm/ring.h"),
    ("check_apps", "apps/heat/a.py", "from pympx.api import comm\n", r"an app imports pympx\.api\.comm"),
    ("check_apps", "apps/heat/a.py", "from pympx import bindings\n", r"an app imports pympx\.bindings"),
    ("check_sizes", "pympx/engine/a.cc", "\n" * 8001, r"pympx/engine: 80\d\d lines, at most 8000"),
    ("check_sizes", "pympx/bindings/a.pyx", "\n" * 3001, r"pympx/bindings: 30\d\d lines, at most 3000"),
    ("check_sizes", "transports/shm/a.cc", "\n" * 2501, r"transports/shm: 25\d\d lines, at most 2500"),
]


def plant(root: Path, contents: dict[str, str]) -> None:
    for name, text in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_a_sound_house_has_no_violation(tmp_path: Path) -> None:
    plant(tmp_path, SOUND)
    assert [violation for check in architecture.CHECKS for violation in check(tmp_path)] == []


@pytest.mark.parametrize(("check", "name", "text", "message"), VIOLATIONS)
def test_a_planted_violation_is_found(tmp_path: Path, check: str, name: str, text: str, message: str) -> None:
    plant(tmp_path, SOUND | {name: text})
    found = getattr(architecture, check)(tmp_path)
    assert len(found) == 1
    assert re.search(message, found[0])


def test_a_hot_method_in_python_is_found() -> None:
    class Slow(list[int]):
        def append(self, item: int) -> None:
            super().append(item)

        @classmethod
        def make(cls) -> None: ...

    assert architecture.check_hot_methods(list, ["append", "pop"]) == []
    assert architecture.check_hot_methods(Slow, ["append", "pop", "make", "push"]) == [
        "Slow.append is a Python function",
        "Slow.make is a Python function",
        "Slow has no push",
    ]


def test_hot_methods_are_c_methods() -> None:
    try:
        from pympx import MPI
    except ImportError as error:
        if "PYMPX_CI" in os.environ:  # there it has to be built
            raise
        pytest.skip(f"pympx is not built here: {error}")
    assert architecture.check_hot_methods(MPI.Intracomm, architecture.HOT_COMM) == []
    assert architecture.check_hot_methods(MPI.Request, architecture.HOT_REQUEST) == []
