"""The confinement that CI tests in really confines, and is not there without it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFINED = Path(__file__).resolve().parents[2] / "ci" / "confined.py"

READ_CHILD = """
import ctypes, errno, os, sys
class Iov(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
libc = ctypes.CDLL(None, use_errno=True)
source = ctypes.create_string_buffer(b"secret")
target = ctypes.create_string_buffer(6)
here, there = Iov(ctypes.addressof(target), 6), Iov(ctypes.addressof(source), 6)
for call in (libc.process_vm_readv, libc.process_vm_writev):
    done = call(os.getpid(), ctypes.byref(here), ctypes.c_ulong(1), ctypes.byref(there), ctypes.c_ulong(1), ctypes.c_ulong(0))
    print(done, errno.errorcode.get(ctypes.get_errno()) if done < 0 else "")
"""
SHM_MEGABYTES = "import os; s = os.statvfs('/dev/shm'); print(s.f_blocks * s.f_frsize // 2**20, os.listdir('/dev/shm'))"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(CONFINED), *arguments], capture_output=True, text=True, timeout=60, check=False)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_cma_works_unless_refused() -> None:
    assert run("--", *python(READ_CHILD)).stdout.split() == ["6", "6"]


@pytest.mark.parametrize("more", [[], ["--empty-stderr"], ["--shm", "64"]])
def test_cma_is_refused_with_eperm(more: list[str]) -> None:
    done = run("--no-cma", *more, "--", *python(READ_CHILD))
    assert (done.stdout.split(), done.stderr) == (["-1", "EPERM"] * 2, "")


def test_descendants_are_refused_too() -> None:
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {READ_CHILD!r}], start_new_session=True)"
    assert run("--no-cma", "--", *python(code)).stdout.split() == ["-1", "EPERM"] * 2


def test_shm_is_small_fresh_and_full_at_its_size() -> None:
    mark = Path("/dev/shm") / f"outside-{os.getpid()}"
    mark.touch()
    try:
        done = run("--shm", "64", "--", *python(SHM_MEGABYTES))
        assert (done.stdout, done.stderr) == ("64 []\n", "")
        assert mark.exists()
    finally:
        mark.unlink()
    fill = "open('/dev/shm/inside', 'wb').write(bytes(65 << 20))"
    done = run("--shm", "64", "--", *python(fill))
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert not Path("/dev/shm/inside").exists()


def test_a_byte_on_stderr_fails_where_it_has_to_be_empty() -> None:
    noisy = python("import sys; print('note', file=sys.stderr)")
    assert run("--", *noisy).returncode == 0
    done = run("--empty-stderr", "--", *noisy)
    assert done.returncode == 1
    assert "5 bytes were written to stderr" in done.stderr
    assert run("--empty-stderr", "--", *python("print('fine')")).returncode == 0


def test_exit_codes_come_through() -> None:
    assert run("--no-cma", "--", *python("raise SystemExit(9)")).returncode == 9
    assert run("--empty-stderr", "--", *python("raise SystemExit(9)")).returncode == 9
    assert run("--", "there-is-no-such-command").returncode == 127


def test_the_filter_for_both_machines() -> None:
    sys.path.insert(0, str(CONFINED.parent))
    try:
        import confined
    finally:
        sys.path.remove(str(CONFINED.parent))
    for machine, (arch, numbers) in confined.SYSTEM_CALLS.items():
        code = confined.cma_filter(machine)
        assert len(code) == 8 * 8
        assert arch.to_bytes(4, sys.byteorder) in code
        assert all(number.to_bytes(4, sys.byteorder) in code for number in numbers)
    with pytest.raises(ValueError, match="riscv64 are not known"):
        confined.cma_filter("riscv64")
