"""Run an unmodified mpi4py program on pympx: ``python -m pympx.as_mpi4py [-m module | prog.py] [arguments]``.

mpi4py's own Python files do the work (the installed distribution: mpi4py.rc, mpi4py.util, mpi4py.futures ...), except that importing
``mpi4py.MPI`` gives the module `pympx.MPI` itself. mpi4py's extension is never loaded, and so is no MPI library. Options that the
program sets in ``mpi4py.rc`` before it imports MPI hold.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

_NAME = "mpi4py.MPI"
_USAGE = "usage: python -m pympx.as_mpi4py [-m module | prog.py] [arguments]"


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Answers for mpi4py.MPI with pympx.MPI, when it is imported and not earlier."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(_NAME, self) if fullname == _NAME else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        """Let the import system make an empty module, which exec_module replaces: pympx.MPI keeps its own __spec__."""

    def exec_module(self, module: ModuleType) -> None:
        import pympx

        theirs = importlib.import_module("mpi4py").rc
        pympx.rc(**{name: getattr(theirs, name) for name in pympx.rc.options()})
        sys.modules[_NAME] = importlib.import_module("pympx.MPI")


def install() -> None:
    """Let ``from mpi4py import MPI`` give pympx.MPI from now on. Raises ImportError when mpi4py is missing, or its MPI loaded."""
    if _NAME in sys.modules:
        if sys.modules[_NAME] is sys.modules.get("pympx.MPI"):
            return
        raise ImportError("mpi4py.MPI is loaded already, on top of an MPI library")
    if importlib.util.find_spec("mpi4py") is None:
        raise ImportError(f"mpi4py is not installed for {sys.executable}: pip install --no-deps mpi4py")
    sys.meta_path.insert(0, _Finder())


def main(argv: Sequence[str]) -> int:
    """Run the program that `argv` (without our own name) names; return the exit code if it did not exit by itself."""
    as_module = argv[:1] == ["-m"]
    rest = list(argv[1:] if as_module else argv)
    if not rest or rest[0].startswith("-"):
        print(_USAGE, file=sys.stderr)
        return 2
    if not as_module and not Path(rest[0]).exists():
        print(f"pympx.as_mpi4py: cannot run {rest[0]}: there is no such file", file=sys.stderr)
        return 2
    try:
        install()
    except ImportError as error:
        print(f"pympx.as_mpi4py: {error}", file=sys.stderr)
        return 2
    sys.argv = rest
    if as_module:
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        if not sys.flags.safe_path:  # else there is no entry for us to replace
            sys.path[0] = str(Path(rest[0]).resolve().parent)
        runpy.run_path(rest[0], run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
