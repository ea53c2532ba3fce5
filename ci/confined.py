"""Run a command where less is allowed: ``ci/confined.py [--shm MB] [--no-cma] [--empty-stderr] -- COMMAND``.

--shm MB        a mount namespace of its own, with a fresh tmpfs of MB megabytes on /dev/shm
--no-cma        a seccomp filter under which process_vm_readv and process_vm_writev fail with EPERM
--empty-stderr  fail if the command writes a byte to stderr

Everything the command starts inherits it. Exit code: the command's; 125 if it could not be confined.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import os
import platform
import struct
import subprocess
import sys
from pathlib import Path

CANNOT_CONFINE = 125

_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_MS_NOSUID, _MS_NODEV, _MS_REC, _MS_PRIVATE = 2, 4, 1 << 14, 1 << 18
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _SECCOMP_MODE_FILTER = 22, 38, 2
_RET_ALLOW, _RET_ERRNO, _RET_KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_LD_W_ABS, _JEQ_K, _RET_K = 0x20, 0x15, 0x06
_OFFSET_NUMBER, _OFFSET_ARCH = 0, 4  # struct seccomp_data
#: machine: (AUDIT_ARCH_*, numbers of process_vm_readv and process_vm_writev)
SYSTEM_CALLS = {"x86_64": (0xC000003E, (310, 311)), "aarch64": (0xC00000B7, (270, 271))}

_libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    """struct sock_fprog"""

    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def cma_filter(machine: str) -> bytes:
    """Return the BPF program that refuses cross-memory attach. Raises ValueError for a machine whose numbers are not known."""
    if machine not in SYSTEM_CALLS:
        raise ValueError(f"the numbers of the system calls of {machine} are not known: add them to SYSTEM_CALLS")
    arch, numbers = SYSTEM_CALLS[machine]
    steps = [
        (_LD_W_ABS, 0, 0, _OFFSET_ARCH),
        (_JEQ_K, 1, 0, arch),
        (_RET_K, 0, 0, _RET_KILL_PROCESS),  # another ABI's call would pass with other numbers
        (_LD_W_ABS, 0, 0, _OFFSET_NUMBER),
        *((_JEQ_K, len(numbers) - place, 0, number) for place, number in enumerate(numbers)),
        (_RET_K, 0, 0, _RET_ALLOW),
        (_RET_K, 0, 0, _RET_ERRNO | errno.EPERM),
    ]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def refuse_cma() -> None:
    """Put this process and all its descendants under the filter, for good. Raises OSError, or ValueError (see cma_filter)."""
    code = cma_filter(platform.machine())
    program = _Program(len(code) // 8, code)
    # these take unsigned longs: a plain int would leave half of a register undefined
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), *[ctypes.c_ulong(0)] * 3), "PR_SET_NO_NEW_PRIVS")
    _check(_libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), ctypes.byref(program)), "PR_SET_SECCOMP")


def small_shm(megabytes: int) -> None:
    """Give this process and its descendants a /dev/shm of `megabytes` MB. Raises OSError where namespaces are refused."""
    uid, gid = os.getuid(), os.getgid()
    unprivileged = os.geteuid() != 0
    _check(_libc.unshare(_CLONE_NEWNS | (_CLONE_NEWUSER if unprivileged else 0)), "unshare")
    if unprivileged:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    _check(_libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None), "make mounts private")
    options = f"size={megabytes}m,mode=1777".encode()
    flags = ctypes.c_ulong(_MS_NOSUID | _MS_NODEV)
    _check(_libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", flags, options), "mount a tmpfs on /dev/shm")


def run_with_empty_stderr(command: list[str]) -> int:
    """Run the command, pass its stderr on, and return its exit code, or 1 where it is 0 although stderr is not empty."""
    written = 0
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        while chunk := os.read(process.stderr.fileno(), 1 << 16):
            written += len(chunk)
            sys.stderr.buffer.write(chunk)
            sys.stderr.flush()
    if written and process.returncode == 0:
        print(f"confined: all went well, but {written} bytes were written to stderr", file=sys.stderr)
        return 1
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="ci/confined.py", description="Run a command where less is allowed.")
    parser.add_argument("--shm", type=int, metavar="MB", help="a mount namespace with a /dev/shm of this size")
    parser.add_argument("--no-cma", action="store_true", help="process_vm_readv and process_vm_writev fail with EPERM")
    parser.add_argument("--empty-stderr", action="store_true", help="fail if a byte is written to stderr")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    options = parser.parse_args()
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        parser.error("no command given: put it after --")
    try:
        if options.shm is not None:
            small_shm(options.shm)
        if options.no_cma:
            refuse_cma()
    except (OSError, ValueError) as error:
        print(f"confined: {error}", file=sys.stderr)
        return CANNOT_CONFINE
    try:
        if options.empty_stderr:
            return run_with_empty_stderr(command)
        os.execvp(command[0], command)
    except OSError as error:
        print(f"confined: cannot start {command[0]}: {error.strerror}", file=sys.stderr)
    return 127


if __name__ == "__main__":
    sys.exit(main())
