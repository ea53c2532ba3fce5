"""A third party's transport, whole: messages over Unix datagram sockets, between ranks of one host. What CONTRIBUTING.md shows."""

from __future__ import annotations

import hmac
import select
import socket
from collections.abc import Iterator

from pympx.plugins import PeerLost, PythonTransport, TransportPlugin, hookimpl

_PROOF = 16  # bytes before each message, without which it is a stranger's


class UnixTransport(PythonTransport):
    """The kernel keeps datagrams whole and in order, says who sent them, and refuses more than a receiver's queue holds."""

    name = "unix"
    summary = "Unix datagram sockets, for ranks of one host"
    max_message = 32 << 10
    inter_node = False

    def open(self, job_key: bytes) -> bytes:
        self._key = job_key
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind("")  # Linux chooses a free name, outside of any file system
        address: bytes = self._socket.getsockname()
        return address

    def send(self, peer: bytes, message: bytes) -> bool:
        try:
            self._socket.sendmsg([self._proof(message), message], [], 0, peer)
        except BlockingIOError:
            return False
        except ConnectionError as error:
            raise PeerLost(peer, str(error)) from None
        return True

    def poll(self) -> Iterator[tuple[bytes, memoryview]]:
        while True:
            try:
                data, peer = self._socket.recvfrom(_PROOF + self.max_message)
            except BlockingIOError:
                return
            message = memoryview(data)[_PROOF:]
            if hmac.compare_digest(data[:_PROOF], self._proof(message)):
                yield peer, message

    def idle(self, seconds: float) -> None:
        select.select([self._socket], [], [], seconds)

    def close(self) -> None:
        self._socket.close()

    def _proof(self, message: bytes | memoryview) -> bytes:
        return hmac.digest(self._key, message, "sha256")[:_PROOF]


@hookimpl
def pympx_transport() -> TransportPlugin:
    return UnixTransport()
