"""as_mpi4py: an mpi4py package without its extension, made here, gives programs pympx.MPI itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def run(*words: str, path: Path | None, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    command = [sys.executable, "-m", "pympx.as_mpi4py", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, cwd=cwd, check=False)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package with what mpi4py/__init__.py has for us: rc."""
    folder = tmp_path / "path" / "mpi4py"
    folder.mkdir(parents=True)
    options = ["initialize", "threads", "thread_level", "finalize", "fast_reduce", "recv_mprobe", "irecv_bufsz", "errors"]
    values = [True, True, "multiple", None, True, True, 32768, "exception"]
    body = "\n".join(f"    {name} = {value!r}" for name, value in zip(options, values, strict=True))
    (folder / "__init__.py").write_text(f"class rc:\n{body}\n")
    (folder / "MPI.py").write_text("raise RuntimeError('an MPI library would be loaded')\n")
    return folder.parent


def test_programs_and_modules(package: Path, tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("answer = 42\n")
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, mpi4py\nmpi4py.rc.initialize = False\nimport mpi4py.MPI\nfrom mpi4py import MPI\nimport pympx.MPI, beside\n"
        "assert MPI is pympx.MPI is sys.modules['mpi4py.MPI'] is mpi4py.MPI\nassert MPI.__name__ == MPI.__spec__.name == 'pympx.MPI'\n"
        "assert not MPI.Is_initialized()\nassert __name__ == '__main__'\nprint(sys.argv[1:], MPI.COMM_WORLD.size, beside.answer)\n"
        "sys.exit(3)\n"
    )
    for words in (("program.py", "-m", "x"), ("-m", "program", "-m", "x")):
        done = run(*words, path=package, cwd=tmp_path)
        assert (done.stdout, done.stderr, done.returncode) == ("['-m', 'x'] 1 42\n", "", 3)


def test_errors_are_one_line(package: Path, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("")
    for words, path, text in (
        (("program.py",), None, "mpi4py is not installed"),
        (("nothing.py",), package, "no such file"),
        ((), package, "usage:"),
        (("-x",), package, "usage:"),
    ):
        if path is None and run("-m", "mpi4py", path=None, cwd=tmp_path).returncode != 2:
            continue  # this environment has mpi4py
        done = run(*words, path=path, cwd=tmp_path)
        assert done.returncode == 2
        assert text in done.stderr
        assert done.stderr.count("\n") == 1
