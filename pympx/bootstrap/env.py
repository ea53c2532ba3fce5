"""Joins ranks that share only variables: RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT (torchrun, Kubernetes, shell loops).

Rank 0 listens on MASTER_ADDR's own address, the others connect to it, and every exchange goes through this star. The connections are made
at the first exchange, so the constructor opens nothing. The port is PYMPX_PORT, else MASTER_PORT (default 29500), plus one under
torchrun, whose agent holds MASTER_PORT itself.

Both sides prove by HMAC-SHA256 over fresh nonces that they know the job's secret before either believes another byte. With
PYMPX_JOB_KEY_FILE (a file of at least 16 bytes, the same for all ranks, not readable by others) the secret is its content, and the job
key is derived from it and never sent. Without it the secret is made of what tells runs apart (the port, torchrun's run id and restart
count): that keeps two jobs from mixing by mistake, but everybody who can guess these values can join and read the job key, which rank 0
then sends in the clear. On a network that others use, set PYMPX_JOB_KEY_FILE. After the proof the bytes are neither encrypted nor signed.

This object owns its sockets until `finalize`; one thread at a time may call it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import hmac
import os
import secrets
import selectors
import socket
import stat
import struct
import time
from collections.abc import Iterable, Mapping
from typing import NoReturn

from .base import Bootstrap, BootstrapError
from .ending import leave
from .environment import number, place

#: Seconds that all ranks have to come together; PYMPX_JOIN_TIMEOUT overrides it.
JOIN_TIMEOUT = 60
#: Seconds that a stranger who connected to rank 0 has to prove that it belongs to the job.
PROOF_TIMEOUT = 5.0
#: Bytes that one rank may contribute to one exchange.
BLOB_LIMIT = 256 << 20

_MAGIC = b"pympxEB1"
_HELLO = struct.Struct("!8sII16s")  # magic, rank, size, client's nonce
_ANSWER = struct.Struct("!16s32s")  # server's nonce, server's proof
_PROOF = struct.Struct("!32s")
_VERDICT = struct.Struct("!B")
_LENGTH = struct.Struct("!Q")
_WELCOME, _TAKEN, _OTHER_SIZE = range(3)


class Env(Bootstrap):
    """A rank placed by RANK and WORLD_SIZE."""

    name = "env"

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.rank, self.size = place(environ, "RANK", "WORLD_SIZE")
        self._pid = os.getpid()
        self._peers: dict[int, socket.socket] = {}
        self._connected = self.size == 1
        self._left = False
        self._key = b""
        self._file_secret = b""
        if self.size == 1:
            return
        self._host = environ.get("MASTER_ADDR", "")
        if not self._host:
            raise BootstrapError("pympx: MASTER_ADDR, the host of rank 0, is not set: set it, or PYMPX_BOOTSTRAP=single")
        self._port = _port(environ)
        self._timeout = number(environ, "PYMPX_JOIN_TIMEOUT", 1, 86400) if "PYMPX_JOIN_TIMEOUT" in environ else JOIN_TIMEOUT
        if environ.get("PYMPX_JOB_KEY_FILE"):
            self._file_secret = _read_secret(environ["PYMPX_JOB_KEY_FILE"])
        run = [str(self._port), *(environ.get(f"TORCHELASTIC_{key}", "") for key in ("RUN_ID", "RESTART_COUNT"))]
        self._secret = self._file_secret or hashlib.sha256("\0".join(["pympx", *run]).encode("utf-8", "surrogateescape")).digest()

    # ---- coming together ----

    def _connect(self) -> None:
        if os.getpid() != self._pid:
            raise BootstrapError("pympx: a forked child has no place in its parent's job: start a new program instead")
        if self._left:
            raise BootstrapError("pympx: this rank has already left its job: exchange before finalize")
        if self._connected:
            return
        deadline = time.monotonic() + self._timeout
        try:
            if self.rank == 0:
                with self._listen(deadline) as listener:
                    self._admit_all(listener, deadline)
            else:
                self._peers[0] = self._reach_root(deadline)
        except BaseException:
            self._close()
            raise
        for peer in self._peers.values():
            peer.settimeout(None)
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._connected = True

    def _addresses(self) -> list[tuple[int, tuple[str, int]]]:
        try:
            found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise BootstrapError(f"pympx: MASTER_ADDR={self._host!r} cannot be resolved ({error}): name the host of rank 0") from None
        return [(int(family), address) for family, _, _, _, address in found]  # type: ignore[misc]

    def _listen(self, deadline: float) -> socket.socket:
        while True:
            reason: OSError | None = None
            for family, address in self._addresses():
                if address[0] in ("0.0.0.0", "::"):
                    raise BootstrapError(f"pympx: MASTER_ADDR={self._host!r} is no host's own address: name the host of rank 0")
                listener = socket.socket(family, socket.SOCK_STREAM)
                try:
                    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    listener.bind(address)
                    listener.listen(max(128, self.size))
                    listener.setblocking(False)
                    return listener
                except OSError as error:
                    listener.close()
                    reason = error
            if time.monotonic() > deadline or reason is None or reason.errno != errno.EADDRINUSE:  # the previous job may be leaving
                raise BootstrapError(
                    f"pympx: rank 0 cannot listen on {self._host}:{self._port} ({reason}): MASTER_ADDR must be an address of "
                    "rank 0's own host and the port free (PYMPX_PORT chooses another)"
                )
            time.sleep(0.05)

    def _admit_all(self, listener: socket.socket, deadline: float) -> None:
        with selectors.DefaultSelector() as selector, contextlib.ExitStack() as strangers:
            selector.register(listener, selectors.EVENT_READ)
            guests: dict[socket.socket, _Guest] = {}
            strangers.callback(lambda: _close_all(guests))
            while len(self._peers) < self.size - 1:
                now = time.monotonic()
                if now > deadline:
                    missing = [str(rank) for rank in range(1, self.size) if rank not in self._peers]
                    shown = ", ".join(missing[:8]) + (", ..." if len(missing) > 8 else "")
                    raise BootstrapError(
                        f"pympx: rank(s) {shown} of {self.size} did not reach {self._host}:{self._port} within {self._timeout} s: "
                        "were they started, with this MASTER_ADDR, MASTER_PORT and key?"
                    )
                late = [guest.connection for guest in guests.values() if now > guest.deadline]
                finished: list[socket.socket] = list(late)
                wait = min([deadline, *(guest.deadline for guest in guests.values())]) - now
                for event, _ in selector.select(max(0.0, wait) + 0.001):
                    if event.fileobj is listener:
                        with contextlib.suppress(OSError):
                            connection, _address = listener.accept()
                            connection.setblocking(False)
                            guests[connection] = _Guest(connection)
                            selector.register(connection, selectors.EVENT_READ)
                        continue
                    connection = event.fileobj  # type: ignore[assignment]
                    if self._hear(guests[connection]):
                        finished.append(connection)
                for connection in finished:
                    if connection not in guests:
                        continue
                    guest = guests.pop(connection)
                    selector.unregister(connection)
                    if self._peers.get(guest.rank) is not connection:
                        connection.close()

    def _hear(self, guest: _Guest) -> bool:
        """Take what arrived from a guest; return True when it was admitted or turned away."""
        try:
            data = guest.connection.recv(guest.wanted - len(guest.heard))
            if not data:
                return True
            guest.heard += data
            if guest.hello == b"" and guest.heard[: len(_MAGIC)] != _MAGIC[: len(guest.heard)]:
                return True
            if len(guest.heard) < guest.wanted:
                return False
            if guest.hello == b"":
                _, guest.rank, guest.size, _ = _HELLO.unpack(guest.heard)
                nonce = secrets.token_bytes(16)
                guest.hello = bytes(guest.heard) + nonce
                guest.heard.clear()
                guest.wanted = _PROOF.size
                guest.connection.sendall(_ANSWER.pack(nonce, self._proof(b"root", guest.hello)))
                return False
            if not hmac.compare_digest(bytes(guest.heard), self._proof(b"rank", guest.hello)):
                return True
            verdict = _WELCOME
            if guest.size != self.size or not 0 < guest.rank < self.size:
                verdict = _OTHER_SIZE
            elif guest.rank in self._peers:
                verdict = _TAKEN
            guest.connection.sendall(_VERDICT.pack(verdict))
            if verdict == _WELCOME:
                self._peers[guest.rank] = guest.connection
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def _proof(self, role: bytes, hello: bytes) -> bytes:
        return hmac.digest(self._secret, b"pympx bootstrap " + role + hello, "sha256")

    def _reach_root(self, deadline: float) -> socket.socket:
        reason = "no answer"
        while time.monotonic() < deadline:
            for family, address in self._addresses():
                connection = socket.socket(family, socket.SOCK_STREAM)
                try:
                    connection.settimeout(max(0.05, min(PROOF_TIMEOUT, deadline - time.monotonic())))
                    connection.connect(address)
                    if connection.getsockname() == connection.getpeername():
                        raise OSError("nobody listens there yet")  # the kernel gave us the very port that we look for
                    self._introduce(connection)
                    return connection
                except OSError as error:
                    reason = str(error)
                    connection.close()
                except BaseException:
                    connection.close()
                    raise
            time.sleep(0.02)
        raise BootstrapError(
            f"pympx: rank {self.rank} could not join rank 0 at {self._host}:{self._port} within {self._timeout} s ({reason}): "
            "is rank 0 started, and does MASTER_ADDR name its host for all ranks?"
        )

    def _introduce(self, connection: socket.socket) -> None:
        hello = _HELLO.pack(_MAGIC, self.rank, self.size, secrets.token_bytes(16))
        connection.sendall(hello)
        nonce, proof = _ANSWER.unpack(_receive(connection, _ANSWER.size))
        hello += nonce
        if not hmac.compare_digest(proof, self._proof(b"root", hello)):
            raise OSError("what listens there does not know this job's key")
        connection.sendall(self._proof(b"rank", hello))
        (verdict,) = _VERDICT.unpack(_receive(connection, 1))
        if verdict == _TAKEN:
            raise BootstrapError(f"pympx: another process has joined as rank {self.rank}: give every process its own RANK")
        if verdict != _WELCOME:
            raise BootstrapError(f"pympx: rank 0 was started with another WORLD_SIZE than {self.size}: set the same for all ranks")

    # ---- exchanges ----

    def _send(self, rank: int, blob: bytes) -> None:
        try:
            self._peers[rank].sendall(_LENGTH.pack(len(blob)) + blob)
        except OSError as error:
            raise _lost(rank, error) from None

    def _receive(self, rank: int) -> bytes:
        try:
            (length,) = _LENGTH.unpack(_receive(self._peers[rank], _LENGTH.size))
            if length > BLOB_LIMIT:
                raise BootstrapError(f"pympx: rank {rank} announced {length} bytes, the limit is {BLOB_LIMIT}: is it of this version?")
            return _receive(self._peers[rank], length)
        except OSError as error:
            raise _lost(rank, error) from None

    def allgather(self, blob: bytes) -> list[bytes]:
        if len(blob) > BLOB_LIMIT:
            raise BootstrapError(f"pympx: {len(blob)} bytes are too much for one exchange at start, the limit is {BLOB_LIMIT}")
        self._connect()
        if self.rank != 0:
            self._send(0, blob)
            return [self._receive(0) for _ in range(self.size)]
        blobs = [bytes(blob), *(self._receive(rank) for rank in range(1, self.size))]
        for rank in range(1, self.size):
            for each in blobs:
                self._send(rank, each)
        return blobs

    def barrier(self) -> None:
        self.allgather(b"")

    def job_key(self) -> bytes:
        if not self._key:
            drawn = self.allgather(secrets.token_bytes(32) if self.rank == 0 else b"")[0]
            if len(drawn) != 32:
                raise BootstrapError(f"pympx: rank 0 sent a job key of {len(drawn)} bytes, expected 32")
            self._key = hmac.digest(self._file_secret, b"pympx job key " + drawn, "sha256") if self._file_secret else drawn
        return self._key

    def abort(self, code: int, message: str = "") -> NoReturn:
        """End this rank with `code`. No launcher listens: the others learn it from closed connections, torchrun from the exit code."""
        leave(code, message, self._pid)

    def finalize(self) -> None:
        if os.getpid() == self._pid:
            self._close()
            self._left = True

    def _close(self) -> None:
        for peer in self._peers.values():
            peer.close()
        self._peers.clear()


class _Guest:
    """A connection to rank 0 that has not proved anything yet."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.deadline = time.monotonic() + PROOF_TIMEOUT
        self.heard = bytearray()
        self.wanted = _HELLO.size
        self.hello = b""
        self.rank = -1
        self.size = 0


def _close_all(connections: Iterable[socket.socket]) -> None:
    for connection in connections:
        connection.close()


def _receive(connection: socket.socket, length: int) -> bytes:
    """Return exactly `length` bytes, growing the buffer by what really arrived. Raises OSError at end-of-file."""
    data = bytearray()
    while len(data) < length:
        piece = connection.recv(min(length - len(data), 1 << 20))
        if not piece:
            raise ConnectionResetError("it closed the connection")
        data += piece
    return bytes(data)


def _lost(rank: int, error: OSError) -> BootstrapError:
    return BootstrapError(f"pympx: rank {rank} was lost during the exchange at start ({error}): look for its own error message")


def _port(environ: Mapping[str, str]) -> int:
    if "PYMPX_PORT" in environ:
        return number(environ, "PYMPX_PORT", 1, 65535)
    port = number(environ, "MASTER_PORT", 1, 65534) if "MASTER_PORT" in environ else 29500
    return port + (environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True")


def _read_secret(path: str) -> bytes:
    """Return the SHA-256 of the key file's content, blanks at its ends left out. Raises BootstrapError."""
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(65536).strip()
    except OSError as error:
        raise BootstrapError(f"pympx: PYMPX_JOB_KEY_FILE={path!r} cannot be read: {error.strerror}") from None
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        raise BootstrapError(f"pympx: PYMPX_JOB_KEY_FILE={path!r} is open to every user: chmod 600 it and draw a new key")
    if len(content) < 16:
        raise BootstrapError(f"pympx: PYMPX_JOB_KEY_FILE={path!r} holds {len(content)} bytes, at least 16 are needed: draw 32 random ones")
    return hashlib.sha256(content).digest()
