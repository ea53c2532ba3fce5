"""PMI-1 client: joins Hydra (MPICH, Intel MPI, gforker), ``srun --mpi=pmi2`` and ``python -m pympx run``.

The connection is a descriptor inherited as PMI_FD, or a TCP connection to PMI_PORT that introduces itself by PMI_ID. It is used as a raw
descriptor, since a socket object would close it while the interpreter exits, and launchers take end-of-file before ``finalize`` for a
crash. This object owns the descriptor from the constructor until `finalize`. One thread at a time may call it, except `abort`, which any
thread may call at any time. A forked child must not speak on its parent's connection: there `finalize` does nothing and every exchange
raises.

Blobs travel through the launcher's key-value store in chunks, under keys that are never written twice. Several requests are on their way
at once only where the server says that it is of PMI 1.2 or newer: older ones read one line and lose the rest.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import select
import socket
import sys
import time
from collections.abc import Mapping
from typing import NoReturn

from . import pmi1_wire as wire
from .base import Bootstrap, BootstrapError
from .ending import exit_code, flush_output, leave, wait_until_read
from .environment import number, place, socket_inode

#: Seconds that a launcher has for the first answers; it gives them without waiting for any other rank.
HANDSHAKE_TIMEOUT = 30.0
#: Bytes of a request with its newline: Slurm reads one request per read() of 1024 bytes.
REQUEST_LIMIT = 1000
#: Requests on their way at once where that is allowed: below the 64 KiB that Hydra's proxy can hold.
WINDOW = 16
#: Chunks of one blob that are believed (a chunk holds some 700 bytes).
CHUNK_LIMIT = 1 << 20


class Pmi1(Bootstrap):
    """A rank of a job whose launcher speaks PMI-1. The constructor talks to the launcher only, never waits for other ranks."""

    name = "pmi1"

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._pid = os.getpid()
        self._reader = wire.LineReader()
        self._sequence = 0
        self._fd = -1
        self._key = b""
        self._deadline: float | None = time.monotonic() + HANDSHAKE_TIMEOUT
        try:
            self._join(environ)
        except BaseException:
            self._close()
            raise
        self._deadline = None

    # ---- joining ----

    def _join(self, environ: Mapping[str, str]) -> None:
        if socket_inode(environ.get("PMI_FD")):
            self.rank, self.size = place(environ, "PMI_RANK", "PMI_SIZE")
            self._fd = int(environ["PMI_FD"])
            os.set_inheritable(self._fd, False)
            os.set_blocking(self._fd, True)
        elif "PMI_PORT" in environ and "PMI_ID" in environ:
            self._fd = _connect(environ["PMI_PORT"])
            self.rank, self.size = self._introduce(number(environ, "PMI_ID"))
        else:
            raise BootstrapError("pympx: no PMI-1 launcher is there (PMI_FD is no socket, PMI_PORT or PMI_ID missing): use mpiexec")
        reply = self._request("cmd=init pmi_version=1 pmi_subversion=1", "response_to_init")
        if wire.number(reply, "pmi_version") != 1:
            raise BootstrapError(f"PMI: the launcher speaks version {reply['pmi_version']}, pympx speaks 1: use another launcher")
        self._window = WINDOW if wire.number(reply, "pmi_subversion") >= 2 else 1
        reply = self._request("cmd=get_maxes", "maxes")
        self._key_max, self._value_max = wire.number(reply, "keylen_max"), wire.number(reply, "vallen_max")
        self._space = self._request("cmd=get_my_kvsname", "my_kvsname").get("kvsname", "")
        if not self._space:
            raise BootstrapError("PMI: the launcher did not name its key-value store")
        self._key = _inherited_key(environ)

    def _introduce(self, pmi_id: int) -> tuple[int, int]:
        self._request(f"cmd=initack pmiid={pmi_id}", "initack")
        settings: dict[str, str] = {"cmd": "set"}
        for _ in range(3):
            words = self._reply("set")
            settings.update(words)
        rank, size = wire.number(settings, "rank"), wire.number(settings, "size")
        if not 0 <= rank < size:
            raise BootstrapError(f"PMI: the launcher calls this process rank {rank} of {size}")
        return rank, size

    # ---- lines ----

    def _send(self, text: str) -> None:
        data = memoryview(text.encode("ascii"))
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError as error:
            raise _gone(error) from None

    def _line(self) -> bytes:
        while (line := self._reader.next_line()) is None:
            self._wait_readable()
            try:
                data = os.read(self._fd, 65536)
            except OSError as error:
                raise _gone(error) from None
            if not data:
                raise _gone(None)
            self._reader.feed(data)
        return line

    def _reply(self, expected: str) -> dict[str, str]:
        line = self._line()
        words = wire.parse(line)
        if words["cmd"] != expected:
            raise BootstrapError(f"PMI: expected {expected}, the launcher sent {wire.shown(line)}")
        if words.get("rc", "0") != "0":
            reason = words.get("msg", "").replace("_", " ")
            raise BootstrapError(f"PMI: the launcher refused ({expected}, rc={words['rc']}){': ' + reason if reason else ''}")
        return words

    def _wait_readable(self) -> None:
        if self._deadline is None:
            return
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        if not poll.poll(max(0.0, self._deadline - time.monotonic()) * 1000):
            raise BootstrapError(f"PMI: the launcher did not answer within {HANDSHAKE_TIMEOUT:.0f} s: is PMI_FD or PMI_PORT stale?")

    def _request(self, line: str, expected: str) -> dict[str, str]:
        self._send(line + "\n")
        return self._reply(expected)

    def _requests(self, lines: list[str], expected: str) -> list[dict[str, str]]:
        replies: list[dict[str, str]] = []
        for start in range(0, len(lines), self._window):
            part = lines[start : start + self._window]
            self._send("".join(f"{line}\n" for line in part))
            replies += [self._reply(expected) for _ in part]
        return replies

    # ---- blobs in the store ----

    def _put_line(self, key: str, value: str) -> str:
        return f"cmd=put kvsname={self._space} key={key} value={value}"

    def _put(self, name: str, blob: bytes) -> None:
        longest = f"{name}.{CHUNK_LIMIT}"
        head = len(f"{CHUNK_LIMIT}.")
        room = min(self._value_max - 1, REQUEST_LIMIT - len(self._put_line(longest, "\n"))) - head
        chunk = room // 4 * 3
        if chunk <= 0 or len(longest) >= self._key_max:
            raise BootstrapError(f"PMI: the launcher's limits (key {self._key_max}, value {self._value_max} bytes) leave no room")
        parts = [wire.encode(blob[start : start + chunk]) for start in range(0, len(blob), chunk)] or [""]
        if len(parts) > CHUNK_LIMIT:
            raise BootstrapError(f"PMI: {len(blob)} bytes are too much for the launcher's store")
        values = [f"{len(parts)}.{parts[0]}", *(f".{part}" for part in parts[1:])]
        self._requests([self._put_line(f"{name}.{index}", value) for index, value in enumerate(values)], "put_result")

    def _get(self, names: list[str]) -> list[bytes]:
        def fetch(keys: list[str]) -> list[str]:
            replies = self._requests([f"cmd=get kvsname={self._space} key={key}" for key in keys], "get_result")
            return [reply.get("value", "") for reply in replies]

        blobs: list[bytearray] = []
        counts: list[int] = []
        for index, value in enumerate(fetch([f"{name}.0" for name in names])):
            count, _, data = value.partition(".")
            chunks = wire.number({"cmd": "get_result", "chunks": count}, "chunks")
            if not 1 <= chunks <= CHUNK_LIMIT:
                raise BootstrapError(f"PMI: {names[index]} claims to have {chunks} chunks")
            blobs.append(bytearray(wire.decode(data)))
            counts.append(chunks)
        # a window at a time: what is only claimed to be there costs nothing
        more = ((index, f"{names[index]}.{chunk}") for index, count in enumerate(counts) for chunk in range(1, count))
        while part := list(itertools.islice(more, self._window)):
            for (index, key), value in zip(part, fetch([key for _, key in part]), strict=True):
                if not value.startswith("."):
                    raise BootstrapError(f"PMI: {key} is not the chunk that it should be")
                blobs[index] += wire.decode(value[1:])
        return [bytes(blob) for blob in blobs]

    def _check_usable(self) -> None:
        if os.getpid() != self._pid:
            raise BootstrapError("pympx: a forked child has no place in its parent's job: start a new program instead")
        if self._fd < 0:
            raise BootstrapError("pympx: this rank has already left its job: exchange before finalize")

    # ---- what Bootstrap promises ----

    def allgather(self, blob: bytes) -> list[bytes]:
        self._check_usable()
        name = f"px{self._sequence}"
        self._sequence += 1
        self._put(f"{name}.{self.rank}", blob)
        self.barrier()
        return self._get([f"{name}.{rank}" for rank in range(self.size)])

    def barrier(self) -> None:
        self._check_usable()
        self._request("cmd=barrier_in", "barrier_out")

    def job_key(self) -> bytes:
        if not self._key:
            self._check_usable()
            if self.rank == 0:
                self._key = secrets.token_bytes(32)
                self._put("pxkey", self._key)
            self.barrier()
            if self.rank != 0:
                key = self._get(["pxkey"])[0]
                if len(key) != 32:
                    raise BootstrapError(f"PMI: rank 0 stored a job key of {len(key)} bytes, expected 32")
                self._key = key
        return self._key

    def abort(self, code: int, message: str = "") -> NoReturn:
        if os.getpid() == self._pid and self._fd >= 0:
            flush_output(message)
            wait_until_read(0.5)
            message = ""
            with contextlib.suppress(BootstrapError):
                self._send(f"cmd=abort exitcode={exit_code(code)}\n")
        leave(code, message, self._pid)

    def finalize(self) -> None:
        if self._fd < 0 or os.getpid() != self._pid or _mpi_owns_connection():
            return
        try:
            self._send("cmd=finalize\n")
            while wire.parse(self._line())["cmd"] != "finalize_ack":
                pass  # the late reply to a request that Ctrl-C interrupted
        finally:
            self._close()

    def forked(self) -> None:
        self._close()

    def _close(self) -> None:
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self._fd)
        self._fd = -1


def _gone(error: OSError | None) -> BootstrapError:
    why = f" ({error.strerror})" if error else ""
    return BootstrapError(f"PMI: the launcher closed the connection{why}: has it, or another rank, died?")


def _connect(address: str) -> int:
    host, _, port = address.rpartition(":")
    try:
        connection = socket.create_connection((host, int(port)), timeout=HANDSHAKE_TIMEOUT)
    except (OSError, ValueError, OverflowError) as error:
        raise BootstrapError(f"pympx: PMI_PORT={address!r} does not lead to a launcher: {error}") from None
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setblocking(True)
    return connection.detach()


def _inherited_key(environ: Mapping[str, str]) -> bytes:
    """Return the job key that ``pympx run`` hands down by a pipe, b"" when this launcher is another one.

    PYMPX_JOB_KEY_FD is "descriptor:inode of the PMI_FD that it belongs to", so that a launcher nested in a rank of ``pympx run``, which
    passes the outer launcher's variable on, is not taken for its author. Reading empties the pipe.
    """
    descriptor, _, inode = environ.get("PYMPX_JOB_KEY_FD", "").partition(":")
    if not descriptor.isdecimal() or inode != str(socket_inode(environ.get("PMI_FD"))):
        return b""
    fd = int(descriptor)
    try:
        key = os.read(fd, 64)
        os.close(fd)
    except OSError as error:
        raise BootstrapError(f"pympx: the job key cannot be read from descriptor {fd} ({error.strerror})") from None
    if len(key) != 32:
        raise BootstrapError(f"pympx: the job key came with {len(key)} bytes, expected 32: was it read before?")
    return key


def _mpi_owns_connection() -> bool:
    """Tell whether an MPI library in this process (mpi4py on MPICH) uses the same connection and will end it in MPI_Finalize."""
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is None or mpi is sys.modules.get("pympx.MPI"):
        return False
    return bool(mpi.Is_initialized())
