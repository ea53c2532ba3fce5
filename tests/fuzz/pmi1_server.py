"""The launcher's PMI-1 server against ranks that say anything: it hangs up on them or answers in lines, and serves the others on."""

from __future__ import annotations

from fuzzing import Input, instrumented, run

with instrumented("pympx.bootstrap", "pympx.launcher"):
    from pympx.bootstrap import pmi1_wire
    from pympx.launcher.pmi1_server import Pmi1Server

_COMMANDS = (
    b"init",
    b"get_maxes",
    b"get_appnum",
    b"get_my_kvsname",
    b"get_universe_size",
    b"put",
    b"get",
    b"barrier_in",
    b"finalize",
    b"abort",
)


def _line(data: Input) -> bytes:
    kind = data.number() % 4
    if kind == 0:
        return data.some(400)
    line = b"cmd=" + _COMMANDS[data.number() % len(_COMMANDS)]
    if kind > 1:
        line += b" kvsname=kvs key=" + data.some(80) + b" value=" + data.some(1100)
    if data.number() % 4 == 0:
        line += b" exitcode=" + data.some(20)
    return line + b"\n"


def one_input(data: Input) -> None:
    said: dict[int, list[bytes]] = {0: [], 1: [], 2: []}
    server = Pmi1Server(3, "kvs", lambda rank, line: said[rank].append(line), "(vector,(0,1,3))")
    open_ = {0: True, 1: True}
    while data:
        rank = data.number() % 2
        line = _line(data)
        cut = data.number() % (len(line) + 1)
        for piece in (line[:cut], line[cut:]):
            if open_[rank] and not server.feed(rank, piece):
                open_[rank] = False
                server.left(rank)
    for lines in said.values():
        for line in lines:
            assert line.endswith(b"\n") and line.count(b"\n") == 1
            pmi1_wire.parse(line[:-1])
    said[2].clear()
    assert server.feed(2, b"cmd=init pmi_version=1 pmi_subversion=1\ncmd=put kvsname=kvs key=good.2 value=Zm9v\n")
    assert server.feed(2, b"cmd=get kvsname=kvs key=good.2\n")
    assert [pmi1_wire.parse(line[:-1])["cmd"] for line in said[2]] == ["response_to_init", "put_result", "get_result"]
    if said[2][1] == b"cmd=put_result rc=0\n":
        assert said[2][2] == b"cmd=get_result rc=0 value=Zm9v\n"


run(one_input)
