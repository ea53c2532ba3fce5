"""A rank at the meeting place, before a root that answers anything: it proves nothing to who has not proved himself, and takes from a root
exactly what that said."""

from __future__ import annotations

import socket
from types import SimpleNamespace

from fuzzing import Input, instrumented, run

with instrumented("pympx.bootstrap"):
    from pympx.bootstrap import star
    from pympx.bootstrap.base import BootstrapError
    from pympx.bootstrap.env import Env

_ENVIRON = {"RANK": "2", "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
_NONCE = b"n" * 16
# so that a genuine answer can be known before it is asked for
vars(star).update(secrets=SimpleNamespace(token_bytes=lambda count: _NONCE[:count]))


def one_input(data: Input) -> None:
    rank = Env(_ENVIRON)
    hello = star._HELLO.pack(star._MAGIC, 2, 3, _NONCE)
    nonce = data.take(16).ljust(16, b"0")
    right = star._ANSWER.pack(nonce, rank._proof(b"root", hello + nonce))
    answer = data.spoil(right)
    said = answer + bytes([data.number() % 4])
    blobs = []
    while data:
        if data.number() % 4:
            blob = data.some(200)
            blobs.append(blob)
            said += star._LENGTH.pack(len(blob)) + blob
        elif data.number() % 2:
            said += data.spoil(star._LENGTH.pack(data.number(3))) + data.some(50)
        else:
            said += data.some(60)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(5)
        theirs.settimeout(5)
        ours.sendall(said)
        ours.shutdown(socket.SHUT_WR)
        try:
            rank._introduce(theirs)
            assert answer == right, "it believes who did not prove himself"
            rank._peers[0] = theirs
            rank._connected = True
            got = rank.allgather(b"x")
            assert len(got) == 3
            for blob in got:
                assert star._LENGTH.pack(len(blob)) + blob in said
            rank.allgather(b"y")
        except BootstrapError as error:
            assert "\n" not in str(error)
        except OSError:
            pass
        theirs.close()
        heard = ours.recv(1000)
        assert answer == right or len(heard) <= star._HELLO.size, "it proves itself to who did not"


run(one_input)
