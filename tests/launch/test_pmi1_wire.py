"""PMI-1 against a side that misbehaves: whatever arrives, the client raises BootstrapError, and the server stays on its feet."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pympx.bootstrap import pmi1, pmi1_wire
from pympx.bootstrap.base import BootstrapError
from pympx.bootstrap.pmi1 import Pmi1
from pympx.launcher.place import process_mapping
from pympx.launcher.pmi1_server import Pmi1Server

GREETING = [
    b"cmd=response_to_init rc=0 pmi_version=1 pmi_subversion=2\n",
    b"cmd=maxes rc=0 kvsname_max=256 keylen_max=64 vallen_max=1024\n",
    b"cmd=my_kvsname rc=0 kvsname=k\n",
]
EXCHANGE = [b"cmd=put_result rc=0\n", b"cmd=barrier_out rc=0\n", b"cmd=get_result rc=0 value=1.eA\n", b"cmd=get_result rc=0 value=1.eQ\n"]


@contextlib.contextmanager
def server_that_says(data: bytes) -> Iterator[dict[str, str]]:
    """A launcher that sends `data` whatever it is asked, then ends; yields the environment of its rank 0 of 2."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with contextlib.suppress(OSError):
            ours.sendall(data)
            ours.shutdown(socket.SHUT_WR)
            while ours.recv(65536):
                pass

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield {"PMI_FD": str(theirs.fileno()), "PMI_RANK": "0", "PMI_SIZE": "2"}
    finally:
        # the client owns the descriptor while it lives, and closes it when it cannot join
        ours.close()
        theirs.detach()
        thread.join(10)
        assert not thread.is_alive()


def converse(environ: dict[str, str]) -> list[bytes]:
    fd = int(environ["PMI_FD"])
    inode = os.fstat(fd).st_ino
    try:
        job = Pmi1(environ)
        return job.allgather(b"x")
    finally:
        with contextlib.suppress(OSError):
            if os.fstat(fd).st_ino == inode:
                os.close(fd)


def test_right_answers_are_understood() -> None:
    with server_that_says(b"".join(GREETING + EXCHANGE)) as environ:
        assert converse(environ) == [b"x", b"y"]


@pytest.mark.parametrize(
    ("index", "line"),
    [
        (0, b"cmd=response_to_init rc=-1 msg=too_old\n"),
        (0, b"cmd=response_to_init rc=0 pmi_version=2 pmi_subversion=0\n"),
        (0, b"cmd=response_to_init rc=0\n"),
        (0, b"cmd=response_to_init rc=0 pmi_version=1 pmi_subversion=99999999999999999999\n"),
        (0, b"    14cmd=x;rc=0;\n"),
        (0, b"x" * (pmi1_wire.LINE_LIMIT + 1)),
        (1, b"cmd=maxes rc=0 kvsname_max=256 keylen_max=64\n"),
        (1, b"cmd=maxes rc=0 kvsname_max=256 keylen_max=64 vallen_max=8\n"),
        (1, b"cmd=maxes rc=0 kvsname_max=256 keylen_max=4 vallen_max=1024\n"),
        (1, b"cmd=maxes rc=0 kvsname_max=256 keylen_max=64 vallen_max=-1024\n"),
        (2, b"cmd=my_kvsname rc=0\n"),
        (3, b"cmd=put_result rc=-1 msg=full\n"),
        (4, b"cmd=barrier_out rc=1\n"),
        (4, b"\xff\xfe\n"),
        (5, b"cmd=get_result rc=0\n"),
        (5, b"cmd=get_result rc=0 value=1000000000.eA\n"),
        (5, b"cmd=get_result rc=0 value=0.eA\n"),
        (5, b"cmd=get_result rc=0 value=-1.eA\n"),
        (5, b"cmd=get_result rc=0 value=1.e\n"),
        (5, b"cmd=get_result rc=0 value=1.e!\n"),
        (5, b"cmd=get_result rc=0 value=2.eA\n"),
        (6, b"\n"),
    ],
)
def test_wrong_answers_raise(index: int, line: bytes) -> None:
    lines = GREETING + EXCHANGE
    lines[index] = line
    with server_that_says(b"".join(lines)) as environ, pytest.raises(BootstrapError) as caught:
        converse(environ)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@settings(max_examples=150, deadline=None, print_blob=True)
@given(st.data())
def test_mangled_answers_never_hang_or_surprise(data: st.DataObject) -> None:
    """Bytes of a right conversation replaced, cut out or put in: it is understood or raises BootstrapError."""
    text = bytearray(b"".join(GREETING + EXCHANGE))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, max(0, len(text) - 1)))
        length = data.draw(st.integers(0, 20))
        text[at : at + length] = data.draw(st.binary(max_size=20) | st.sampled_from([b"\n", b" ", b"=", b"rc=1", b"99999999", b"cmd="]))
    with server_that_says(bytes(text)) as environ:
        try:
            blobs = converse(environ)
        except BootstrapError as error:
            assert "\n" not in str(error)
        else:
            assert len(blobs) == 2


def test_finalize_passes_over_a_late_reply() -> None:
    lines = [*GREETING, b"cmd=barrier_out rc=0\n", b"cmd=finalize_ack rc=0\n"]
    with server_that_says(b"".join(lines)) as environ:
        job = Pmi1(environ)
        job.finalize()
        with pytest.raises(BootstrapError, match="already left"):
            job.barrier()


def test_silent_server_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pmi1, "HANDSHAKE_TIMEOUT", 0.2)
    ours, theirs = socket.socketpair()
    with ours, pytest.raises(BootstrapError, match="did not answer"):
        Pmi1({"PMI_FD": str(theirs.detach()), "PMI_RANK": "0", "PMI_SIZE": "2"})


@given(st.binary(max_size=300))
def test_any_line_parses_or_raises(line: bytes) -> None:
    try:
        words = pmi1_wire.parse(line)
    except BootstrapError as error:
        assert "\n" not in str(error)
    else:
        assert words["cmd"]


@given(st.binary(max_size=4000))
def test_encoding_is_reversible_and_safe(blob: bytes) -> None:
    text = pmi1_wire.encode(blob)
    assert not set(text) & set(" =;\\\n\r\0")
    assert pmi1_wire.decode(text) == blob


@given(st.text(max_size=100))
def test_any_text_decodes_or_raises(text: str) -> None:
    with contextlib.suppress(BootstrapError):
        pmi1_wire.decode(text)


@given(st.lists(st.binary(max_size=40)), st.data())
def test_lines_are_cut_whatever_the_pieces(lines: list[bytes], data: st.DataObject) -> None:
    lines = [line.replace(b"\n", b"") for line in lines]
    stream = b"".join(line + b"\n" for line in lines)
    reader, got = pmi1_wire.LineReader(), []
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        reader.feed(stream[:cut])
        stream = stream[cut:]
        while (line := reader.next_line()) is not None:
            got.append(line)
    assert got == lines


WORDS = st.sampled_from(
    [b"cmd=init", b"cmd=put", b"cmd=get", b"cmd=barrier_in", b"cmd=finalize", b"cmd=abort", b"cmd=get_maxes", b"cmd=dance", b"cmd="]
    + [b"mcmd=spawn", b"kvsname=k", b"key=a", b"key=", b"value=v", b"value=" + b"v" * 2000, b"exitcode=7", b"exitcode=x"]
    + [b" ", b"\n", b"\n", b"\xff", b"="]
)


@settings(suppress_health_check=[HealthCheck.too_slow], print_blob=True)
@given(st.lists(st.tuples(st.integers(0, 2), WORDS | st.binary(max_size=30)), max_size=60))
def test_server_survives_anything(pieces: list[tuple[int, bytes]]) -> None:
    sent: list[bytes] = []
    server = Pmi1Server(3, "k", lambda _rank, data: sent.append(data), process_mapping([3]))
    for rank, piece in pieces:
        if not server.feed(rank, piece + b" "):
            server.left(rank)
    for reply in sent:
        assert reply.endswith(b"\n") and reply.count(b"\n") == 1
        pmi1_wire.parse(reply[:-1])


def test_server_releases_a_barrier_once_all_are_in() -> None:
    sent: list[tuple[int, bytes]] = []
    server = Pmi1Server(3, "k", lambda rank, data: sent.append((rank, data)), process_mapping([3]))
    for rank in (2, 0, 0):
        server.feed(rank, b"cmd=barrier_in\n")
    assert sent == []
    server.feed(1, b"cmd=barrier_in\n")
    assert sent == [(rank, b"cmd=barrier_out rc=0\n") for rank in range(3)]
