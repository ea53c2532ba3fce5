"""A star of connections: rank 0 listens at a meeting place, the others connect to it, and every exchange goes through rank 0.

For launchers that give ranks a place but no store: `env` and `slurm` say where to meet (a `Meeting`) and what secret they share. The
connections are made at the first exchange, so the constructor opens nothing.

Both sides prove by HMAC-SHA256 over fresh nonces that they know the job's secret before either believes another byte. The job key is drawn
by rank 0; with a secret that nobody else knows (`private`) it is derived from that too, so what travels does not betray it, else it is sent
as it is and is worth what the meeting place is worth. After the proof the bytes are neither encrypted nor signed.

This object owns its sockets until `finalize`; one thread at a time may call it.
"""

from __future__ import annotations

import abc
import contextlib
import errno
import hashlib
import hmac
import ipaddress
import os
import secrets
import selectors
import socket
import stat
import struct
import time
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from .base import Bootstrap, BootstrapError
from .ending import leave
from .environment import number

#: Seconds that all ranks have to come together; PYMPX_JOIN_TIMEOUT overrides it.
JOIN_TIMEOUT = 60
#: Seconds that a stranger who connected to rank 0 has to prove that it belongs to the job.
PROOF_TIMEOUT = 5.0
#: Connections to rank 0 that have proved nothing yet; one more costs the oldest its place.
GUEST_LIMIT = 128
#: Bytes that one rank may contribute to one exchange.
BLOB_LIMIT = 256 << 20

#: what names the file of a job's secret
KEY_FILE = "PYMPX_JOB_KEY_FILE"
_MAGIC = b"pympxEB1"
_HELLO = struct.Struct("!8sII16s")  # magic, rank, size, client's nonce
_ANSWER = struct.Struct("!16s32s")  # server's nonce, server's proof
_PROOF = struct.Struct("!32s")
_VERDICT = struct.Struct("!B")
_LENGTH = struct.Struct("!Q")
_WELCOME, _TAKEN, _OTHER_SIZE = range(3)


class Meeting(abc.ABC):
    """Where rank 0 listens. The advice ends error messages: what to correct."""

    #: the place, for messages
    where: str
    #: when rank 0 cannot listen there; when others do not come; when rank 0 is not found
    advice_listen: str
    advice_missing: str
    advice_reach: str

    @abc.abstractmethod
    def addresses(self) -> list[tuple[int, Any]]:
        """Return (family, address) of stream sockets to bind or to connect, best first. Raises BootstrapError."""

    def distrust(self, connection: socket.socket) -> str:
        """Return why the other end of `connection` may not be spoken to at all; empty when it may."""
        return ""


class HostPort(Meeting):
    """A TCP port of the host `host`; `variable` is where the user can correct its name.

    Without a `private` secret only processes of the same host are spoken to: on a network everybody could guess what is not secret, and
    who joins a job can run what he likes in it.
    """

    def __init__(self, host: str, port: int, variable: str, *, private: bool) -> None:
        self._private = private
        self.where = f"{host}:{port}"
        self.advice_listen = f"{variable} must be an address of rank 0's own host and the port free (PYMPX_PORT chooses another)"
        self.advice_missing = f"were they started, with this {variable}, port and key?"
        if not private:
            self.advice_missing += f" On other hosts they need {KEY_FILE}"
        self.advice_reach = f"is rank 0 started, and does {variable} name its host for all ranks?"
        self._host, self._port, self._variable = host, port, variable

    def addresses(self) -> list[tuple[int, Any]]:
        try:
            found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise BootstrapError(f"pympx: {self._variable}={self._host!r} cannot be resolved ({error}): name the host of rank 0") from None
        for _, _, _, _, address in found:
            if address[0] in ("0.0.0.0", "::"):
                raise BootstrapError(f"pympx: {self._variable}={self._host!r} is no host's own address: name the host of rank 0")
        return [(int(family), address) for family, _, _, _, address in found]

    def distrust(self, connection: socket.socket) -> str:
        here, there = (ipaddress.ip_address(name[0].partition("%")[0]) for name in (connection.getsockname(), connection.getpeername()))
        if self._private or here == there or (here.is_loopback and there.is_loopback):
            return ""
        return f"it is on another host, and across hosts a job needs a secret: set {KEY_FILE} for all ranks"


class Star(Bootstrap):
    """Rank `rank` of `size`, which meet at `meeting` and share `secret`; `private`: nobody else can know it."""

    ends_others = False

    def __init__(self, rank: int, size: int, meeting: Meeting, secret: bytes, *, private: bool, timeout: int) -> None:
        self.rank, self.size = rank, size
        self._pid = os.getpid()
        self._meeting = meeting
        self._secret = secret
        self._private = private
        self._timeout = timeout
        self._peers: dict[int, socket.socket] = {}
        self._connected = size == 1
        self._left = False
        self._key = b""

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
            if peer.family != socket.AF_UNIX:
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._connected = True

    def _listen(self, deadline: float) -> socket.socket:
        while True:
            reason: OSError | None = None
            for family, address in self._meeting.addresses():
                listener = socket.socket(family, socket.SOCK_STREAM)
                try:
                    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    listener.bind(address)
                    listener.listen(max(4096, self.size))
                    listener.setblocking(False)
                    return listener
                except OSError as error:
                    listener.close()
                    reason = error
            if time.monotonic() > deadline or reason is None or reason.errno != errno.EADDRINUSE:  # the previous job may be leaving
                raise BootstrapError(f"pympx: rank 0 cannot listen on {self._meeting.where} ({reason}): {self._meeting.advice_listen}")
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
                        f"pympx: rank(s) {shown} of {self.size} did not reach {self._meeting.where} within {self._timeout} s: "
                        f"{self._meeting.advice_missing}"
                    )
                for guest in [guest for guest in guests.values() if now > guest.deadline]:
                    self._dismiss(guest, selector, guests)
                wait = min([deadline, *(guest.deadline for guest in guests.values())]) - now
                for event, _ in selector.select(max(0.0, wait) + 0.001):
                    if event.fileobj is listener:
                        self._receive_guests(listener, selector, guests)
                        continue
                    connection = event.fileobj
                    if connection in guests and self._hear(guests[connection]):
                        self._dismiss(guests[connection], selector, guests)

    def _dismiss(self, guest: _Guest, selector: selectors.BaseSelector, guests: dict[socket.socket, _Guest]) -> None:
        """It is no guest any more: a peer, or turned away."""
        del guests[guest.connection]
        selector.unregister(guest.connection)
        if self._peers.get(guest.rank) is not guest.connection:
            guest.connection.close()

    def _receive_guests(self, listener: socket.socket, selector: selectors.BaseSelector, guests: dict[socket.socket, _Guest]) -> None:
        """Take new connections, some at a time; too many cost the oldest guests their places."""
        with contextlib.suppress(OSError):  # no more now
            for _ in range(GUEST_LIMIT // 4):
                connection, _address = listener.accept()
                if self._meeting.distrust(connection):
                    connection.close()
                    continue
                if len(guests) >= GUEST_LIMIT:
                    self._dismiss(next(iter(guests.values())), selector, guests)
                connection.setblocking(False)
                guests[connection] = _Guest(connection)
                selector.register(connection, selectors.EVENT_READ)

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
            for family, address in self._meeting.addresses():
                connection = socket.socket(family, socket.SOCK_STREAM)
                try:
                    connection.settimeout(max(0.05, min(PROOF_TIMEOUT, deadline - time.monotonic())))
                    connection.connect(address)
                    if connection.getsockname() == connection.getpeername():
                        raise OSError("nobody listens there yet")  # the kernel gave us the very port that we look for
                    if distrust := self._meeting.distrust(connection):
                        raise BootstrapError(f"pympx: rank {self.rank} does not join rank 0 at {self._meeting.where}: {distrust}")
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
            f"pympx: rank {self.rank} could not join rank 0 at {self._meeting.where} within {self._timeout} s ({reason}): "
            f"{self._meeting.advice_reach}"
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
            self._key = hmac.digest(self._secret, b"pympx job key " + drawn, "sha256") if self._private else drawn
        return self._key

    def abort(self, code: int, message: str = "") -> NoReturn:
        """End this rank with `code`. No launcher takes orders: it learns of the exit code, the others of closed connections."""
        leave(code, message, self._pid)

    def finalize(self) -> None:
        if os.getpid() == self._pid:
            self._close()
            self._left = True

    def forked(self) -> None:
        self._close()

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


def join_timeout(environ: Mapping[str, str]) -> int:
    """Return the seconds that all ranks have to come together. Raises BootstrapError."""
    return number(environ, "PYMPX_JOIN_TIMEOUT", 1, 86400) if "PYMPX_JOIN_TIMEOUT" in environ else JOIN_TIMEOUT


def shared_secret(environ: Mapping[str, str]) -> bytes:
    """Return the SHA-256 of PYMPX_JOB_KEY_FILE's content, blanks at its ends left out; b"" when it is not set. Raises BootstrapError."""
    path = environ.get("PYMPX_JOB_KEY_FILE", "")
    if not path:
        return b""
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(65536).strip()
    except OSError as error:
        raise BootstrapError(f"pympx: PYMPX_JOB_KEY_FILE={path!r} cannot be read: {error.strerror}") from None
    if mode & (stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP):  # that a group may read it can be meant
        raise BootstrapError(f"pympx: PYMPX_JOB_KEY_FILE={path!r} is open to other users: chmod 600 it and draw a new key")
    if len(content) < 16:
        raise BootstrapError(f"pympx: PYMPX_JOB_KEY_FILE={path!r} holds {len(content)} bytes, at least 16 are needed: draw 32 random ones")
    return hashlib.sha256(content).digest()
