"""The PMI-1 client against a launcher that answers anything: it joins and exchanges, or raises BootstrapError in one line."""

from __future__ import annotations

import socket

from fuzzing import Input, instrumented, run

with instrumented("pympx.bootstrap"):
    from pympx.bootstrap import pmi1
    from pympx.bootstrap.base import BootstrapError

_JOIN = b"cmd=response_to_init rc=0 pmi_version=1 pmi_subversion=2\ncmd=maxes rc=0 kvsname_max=256 keylen_max=64 vallen_max=1024\n"
_NAMES = (b"response_to_init", b"maxes", b"my_kvsname", b"put_result", b"get_result", b"barrier_out", b"finalize_ack", b"set", b"initack")
_WORDS = (b"rc", b"value", b"kvsname", b"msg", b"pmi_version", b"keylen_max", b"vallen_max", b"rank", b"size", b"pmi_subversion")
_VALUES = (b"0", b"1", b"-1", b"2.aGVsbG8", b"1.YQ", b".YQ", b"1048576.", b"9999999999", b"k", b"")


def _line(data: Input) -> bytes:
    kind = data.number() % 8
    if kind == 0:
        return data.some(300)
    if kind == 1:
        return b"cmd=put_result rc=0\n" * (data.number() % 20)
    words = [b"cmd=" + _NAMES[data.number() % len(_NAMES)]]
    for _ in range(data.number() % 4):
        value = _VALUES[data.number() % len(_VALUES)] if data.number() % 4 else data.some(40)
        words.append(_WORDS[data.number() % len(_WORDS)] + b"=" + value)
    line = b" ".join(words) + b"\n"
    return data.spoil(line) if kind == 2 else line


def one_input(data: Input) -> None:
    ours, theirs = socket.socketpair()
    mode = data.number()
    said = b""
    environ = {"PMI_FD": str(theirs.fileno()), "PMI_RANK": "1", "PMI_SIZE": "3"}
    if mode & 1:
        environ = {"PMI_PORT": "nowhere:1", "PMI_ID": "4"}
        said = b"cmd=initack rc=0\ncmd=set size=3\ncmd=set rank=1\ncmd=set debug=0\n"
    if mode & 2:
        said += _JOIN + b"cmd=my_kvsname rc=0 kvsname=k\n"
    while data:
        said += _line(data)
    with ours:
        ours.setblocking(False)
        try:
            ours.send(said)
        except BlockingIOError:
            return
        ours.shutdown(socket.SHUT_WR)
        client = None
        fd = theirs.detach()
        pmi1._connect = lambda _address: fd  # type: ignore[assignment]
        try:
            client = pmi1.Pmi1(environ)
            assert 0 <= client.rank < client.size
            if mode & 4:
                assert len(client.job_key()) == 32
            if mode & 8:
                assert len(client.allgather(b"x" * 1000)) == client.size
            client.barrier()
        except BootstrapError as error:
            assert "\n" not in str(error)
        finally:
            if client is not None:
                client._close()


run(one_input)
