"""Rank 0 at the meeting place: guests that say anything are turned away, or have proved that they hold the secret; what admitted ranks
contribute is taken whole or refused in one line."""

from __future__ import annotations

import socket

from fuzzing import Input, instrumented, run

with instrumented("pympx.bootstrap"):
    from pympx.bootstrap import star
    from pympx.bootstrap.base import BootstrapError
    from pympx.bootstrap.env import Env

_ENVIRON = {"RANK": "0", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


class _Stranger:
    def __init__(self) -> None:
        self.socket, theirs = socket.socketpair()
        theirs.setblocking(False)
        self.socket.setblocking(False)
        self.guest = star._Guest(theirs)
        self.hello = b""
        self.heard = b""
        self.over = False

    def say(self, text: bytes) -> None:
        try:
            self.socket.send(text)
        except OSError:
            pass

    def listen(self) -> None:
        try:
            self.heard += self.socket.recv(4096)
        except OSError:
            pass

    def close(self) -> None:
        self.socket.close()
        self.guest.connection.close()


def one_input(data: Input) -> None:
    root = Env(_ENVIRON)
    strangers = [_Stranger() for _ in range(3)]
    genuine: set[int] = set()
    while data:
        one = strangers[data.number() % 3]
        kind = data.number() % 6
        if kind == 0:
            one.say(data.some(100))
        elif kind == 1:
            one.hello = data.spoil(star._HELLO.pack(star._MAGIC, data.number() % 5, 4, bytes(16)))
            one.say(one.hello)
        elif kind == 2:
            one.listen()
            proof = root._proof(b"rank", one.hello + one.heard[:16])
            said = data.spoil(proof)
            if said == proof and len(one.heard) >= 16:
                genuine.add(id(one))
            one.say(said)
        elif kind == 3:
            one.socket.close()
        if not one.over:
            one.over = root._hear(one.guest)
    for rank, connection in root._peers.items():
        owner = next(one for one in strangers if one.guest.connection is connection)
        assert id(owner) in genuine and 0 < rank < 4
    for one in strangers:
        assert one.guest.connection in root._peers.values() or len(one.heard) <= 48 + 1
    for one in strangers:
        one.socket.close()
    for rank in list(root._peers):
        try:
            while True:
                root._receive(rank)
        except BootstrapError as error:
            assert "\n" not in str(error)
    for one in strangers:
        one.close()


run(one_input)
