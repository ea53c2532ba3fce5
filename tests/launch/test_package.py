"""What importing pympx costs and loads: nothing compiled, no socket, no thread."""

from __future__ import annotations

import sys

from support import environment, execute


def test_import_is_light() -> None:
    program = """
import sys
before = set(sys.modules)
import pympx, pympx.bootstrap
loaded = set(sys.modules) - before
heavy = loaded & {"numpy", "socket", "ctypes", "threading", "pluggy"}
compiled = [name for name in loaded if getattr(sys.modules[name], "__file__", "") and sys.modules[name].__file__.endswith(".so")]
print(heavy, [name for name in compiled if name.startswith("pympx")], pympx.__version__.count("."))
"""
    done = execute([sys.executable, "-c", program], env=environment())
    assert (done.returncode, done.stdout, done.stderr) == (0, b"set() [] 2\n", b"")
