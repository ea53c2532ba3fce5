"""Calls between ranks: what travels, what comes back, what cannot be; in all orders and many at once."""

from __future__ import annotations

import concurrent.futures
import functools
import operator
import os
import secrets
import threading
import time
from typing import Any

import numpy as np
import pytest

from pympx import MPI, rpc

COUNTS: dict[Any, int] = {}
GATE = threading.Event()


def add(a: Any, b: Any = 0) -> Any:
    return a + b


def echo(value: Any) -> Any:
    return value


def arguments(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
    return args, kwargs


def count(key: Any) -> int:
    COUNTS[key] = COUNTS.get(key, 0) + 1
    return COUNTS[key]


def counted(key: Any) -> int:
    return COUNTS.get(key, 0)


def fail(kind: type[BaseException], text: str) -> None:
    raise kind(text)


def wait_at_gate(key: str) -> int:
    GATE.wait(30)
    GATE.clear()
    return count(key)


class Awkward(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")


def fail_awkwardly() -> None:
    raise Awkward(1, 2)


def not_picklable() -> Any:
    return lambda: None


def down(n: int) -> int:
    """A chain of nested calls around the ring, n deep."""
    if n == 0:
        return 0
    below: int = rpc.call(peer(MPI.COMM_WORLD), down, n - 1).result()
    return below + 1


class Counter:
    def __init__(self, start: int) -> None:
        self.value = start

    def plus(self, n: int) -> int:
        return self.value + n


@rpc.export
def who() -> int:
    return MPI.COMM_WORLD.rank


@rpc.export("twice")
def _twice(value: Any) -> Any:
    return 2 * value


def peer(comm: Any) -> int:
    return int((comm.rank + 1) % comm.size)


@pytest.mark.ranks([1, 2, 3])
def test_functions_by_reference_by_name_and_in_the_pickle(comm: Any) -> None:
    to = peer(comm)
    assert rpc.call(to, add, 2).result() == 2
    assert rpc.call(to, add, 2, b=3).result() == 5
    assert rpc.call(to, "who").result() == rpc.call(to, who).result() == to
    assert rpc.call(to, "twice", [1]).result() == [1, 1]
    assert rpc.call(to, operator.mul, 6, 7).result() == 42
    assert rpc.call(to, len, "four").result() == 4
    assert rpc.call(to, Counter(40).plus, 2).result() == 42
    assert rpc.call(to, functools.partial(add, 1), 2).result() == 3
    assert rpc.call(to, Counter, 5).result().value == 5
    assert rpc.call(to, os.getpid).result() == comm.sendrecv(os.getpid(), (comm.rank - 1) % comm.size, source=to)
    assert rpc.call(to, arguments).result() == ((), {})
    assert rpc.call(to, arguments, rank=1, function=2, deadline=3).result() == ((), {"rank": 1, "function": 2, "deadline": 3})
    comm.Barrier()


@pytest.mark.ranks([1, 2])
@pytest.mark.parametrize("length", [0, 1, 63, 64, 4000, 4096, 70_000, 3 << 20])
def test_values_of_all_kinds_and_sizes(comm: Any, length: int) -> None:
    block = np.random.default_rng(length).bytes(length)
    array = np.frombuffer(block, np.uint8)
    values: list[Any] = [block, bytearray(block), array, [array, block, array[::2]], (block, None), {"a": block}]
    for value in values:
        got = rpc.call(peer(comm), echo, value).result()
        if isinstance(value, np.ndarray):
            assert np.array_equal(got, value) and got.dtype == value.dtype
        elif isinstance(value, list):
            assert all(np.array_equal(a, b) for a, b in zip(got, value, strict=True))
        else:
            assert got == value and type(got) is type(value)
    for none in (None, False, 0, "", ()):
        assert rpc.call(peer(comm), echo, none).result() == none
    comm.Barrier()


@pytest.mark.ranks(2)
def test_what_a_function_raises_the_call_raises(comm: Any) -> None:
    to = peer(comm)
    call = rpc.call(to, fail, KeyError, "there")
    with pytest.raises(KeyError, match="there") as caught:
        call.result()
    assert f"on rank {to}" in str(caught.value.__cause__) and "in fail" in str(caught.value.__cause__)
    assert "calls.pyx" not in str(caught.value.__cause__)
    assert call.exception() is caught.value
    with pytest.raises(SystemExit):
        rpc.call(to, fail, SystemExit, "3").result()
    with pytest.raises(rpc.RemoteError, match="Awkward: 1 and 2"):
        rpc.call(to, fail_awkwardly).result()
    with pytest.raises(Exception, match="pickle"):
        rpc.call(to, not_picklable).result()
    with pytest.raises(TypeError, match="unexpected keyword"):
        rpc.call(to, add, 1, c=2).result()  # type: ignore[call-arg]
    assert rpc.call(to, add, 1, 1).result() == 2
    comm.Barrier()


@pytest.mark.ranks(2)
def test_what_cannot_be_called_raises_at_once_and_says_why(comm: Any) -> None:
    def nested() -> None: ...

    for function in (nested, lambda: 1):
        with pytest.raises(TypeError, match="define it at the top of a module, or export it"):
            rpc.call(0, function)
    with pytest.raises(TypeError, match="not int"):
        rpc.call(0, 3)  # type: ignore[call-overload]
    for rank in (-1, 2, 1 << 30):
        with pytest.raises(MPI.Exception, match=f"rank {rank} is not from 0 to 1") as caught:
            rpc.call(rank, add, 1)
        assert caught.value.Get_error_class() == MPI.ERR_RANK
    with pytest.raises(LookupError, match=r"no function is exported as 'nobody' here; exported are: .*twice"):
        rpc.call(peer(comm), "nobody").result()
    with pytest.raises(ValueError, match="another function is exported as 'twice'"):
        rpc.export("twice")(add)
    with pytest.raises(ValueError, match="deadline"):
        rpc.to(0, deadline=0)
    with pytest.raises(Exception, match="pickle"):
        rpc.call(0, echo, lambda: 1)
    assert rpc.call(0, who).result() == 0
    comm.Barrier()


@pytest.mark.ranks([1, 2, 3])
def test_nested_calls_round_the_ring(comm: Any) -> None:
    depth = 30
    assert rpc.call(peer(comm), down, depth).result() == depth
    comm.Barrier()
    if comm.rank == 0:  # no hang, and nothing is lost
        with pytest.raises(RecursionError, match="calls nest more than 64 deep on rank"):
            rpc.call(peer(comm), down, 65 * comm.size).result()
        assert rpc.call(peer(comm), down, depth).result() == depth
    comm.Barrier()


@pytest.mark.ranks(3)
def test_calls_of_all_to_all_are_executed_once_each_in_order(comm: Any) -> None:
    rounds = 300
    calls = [(to, i, rpc.call(to, count, (comm.rank, i))) for i in range(rounds) for to in range(comm.size)]
    assert all(call.result() == 1 for _, _, call in calls)
    comm.Barrier()
    assert COUNTS and all(COUNTS[source, i] == 1 for source in range(comm.size) for i in range(rounds))
    order = [i for source, i in (key for key in COUNTS if isinstance(key, tuple)) if source == peer(comm)]
    assert order == sorted(order)
    comm.Barrier()
    COUNTS.clear()
    comm.Barrier()


@pytest.mark.ranks(2)
def test_ten_thousand_in_flight(comm: Any) -> None:
    n = 10_000
    if comm.rank == 0:
        blocked = rpc.call(1, wait_at_gate, "many")  # nothing behind it begins
        calls = [rpc.call(1, echo, i) for i in range(n)]
        assert not calls[0].done() and not blocked.done()
        comm.send(None, 1)
        assert [call.result() for call in calls] == list(range(n)) and blocked.result() == 1
    else:
        comm.recv(source=0)
        GATE.set()
    comm.Barrier()
    COUNTS.clear()


@pytest.mark.ranks(2)
def test_notifications(comm: Any, caplog: pytest.LogCaptureFixture) -> None:
    to = peer(comm)
    comm.Barrier()  # both hear the log
    for _ in range(100):
        rpc.notify(to, count, "told")
    rpc.notify(to, count, np.zeros(1).tobytes() * 100_000)
    rpc.notify(to, fail, ValueError, "nobody waits")
    assert rpc.call(to, counted, "told").result() == 100  # in order
    comm.Barrier()
    text = "\n".join(record.getMessage() for record in caplog.records)
    assert f"notification of rank {1 - comm.rank}: test_calls:fail raised" in text
    comm.Barrier()
    COUNTS.clear()


@pytest.mark.ranks(2)
def test_cancel_says_whether_the_call_never_will_be_executed(comm: Any) -> None:
    comm.Barrier()
    if comm.rank == 0:
        running = rpc.call(1, wait_at_gate, "running")
        waiting = [rpc.call(1, count, ("waiting", i)) for i in range(50)]
        seed = int(os.environ.get("PYMPX_TEST_SEED", secrets.randbits(32)))
        print(f"seed: PYMPX_TEST_SEED={seed}")
        chosen = np.random.default_rng(seed).permutation(50)[:20].tolist()
        comm.recv(source=1)  # it has begun
        assert not running.cancel() and not running.cancelled()
        for i in chosen:
            assert waiting[i].cancel() and waiting[i].cancelled() and waiting[i].done() and waiting[i].cancel()
            with pytest.raises(concurrent.futures.CancelledError):
                waiting[i].result()
        comm.send(None, 1)
        assert running.result() == 1 and not running.cancel()
        for i, call in enumerate(waiting):
            if i not in chosen:
                assert call.result() == 1
        for i in range(50):
            assert rpc.call(1, counted, ("waiting", i)).result() == (i not in chosen)
    else:
        _until_begun()
        comm.send(None, 0)
        comm.recv(source=0)
        GATE.set()
    comm.Barrier()
    COUNTS.clear()


def _until_begun() -> None:
    """Wait until the serving thread is in wait_at_gate."""
    import sys

    thread = next(t for t in threading.enumerate() if t.name == "pympx-rpc")
    while True:
        frame = sys._current_frames().get(thread.ident or 0)
        while frame is not None:
            if frame.f_code is wait_at_gate.__code__:
                return
            frame = frame.f_back
        time.sleep(0.001)


@pytest.mark.ranks(2)
def test_deadlines(comm: Any) -> None:
    comm.Barrier()
    if comm.rank == 0:
        blocked = rpc.call(1, wait_at_gate, "blocked")
        comm.recv(source=1)
        late = rpc.to(1, deadline=0.05).call(count, "late")
        heard: list[Any] = []
        alone = rpc.to(1, deadline=0.02).call(count, "alone")
        alone.add_done_callback(heard.append)
        with pytest.raises(rpc.DeadlineExceeded, match="it was not begun, and will not be"):
            late.result()
        with pytest.raises(TimeoutError, match=r"no answer from rank 1 to wait_at_gate within 0.01 s; the call goes on"):
            blocked.result(0.01)
        comm.send(None, 1)
        assert blocked.result() == 1
        assert rpc.call(1, counted, "late").result() == rpc.call(1, counted, "alone").result() == 0
        assert concurrent.futures.wait([alone], 10).done and heard == [alone]
        assert isinstance(alone.exception(), rpc.DeadlineExceeded)
        again = rpc.to(1, deadline=1.0).call(wait_at_gate, "begun")
        with pytest.raises(rpc.DeadlineExceeded, match="it was begun; what became of it is not known here"):
            again.result()
        assert rpc.to(0, deadline=60).call(add, 1, 2).result() == 3
        comm.send(None, 1)
        assert rpc.call(1, counted, "begun").result() == 1
    else:
        for _ in range(2):
            _until_begun()
            if _ == 0:
                comm.send(None, 0)
            comm.recv(source=0)
            GATE.set()
    comm.Barrier()
    COUNTS.clear()


class Slow:
    """Pickled while other threads call."""

    def __init__(self, until: threading.Event) -> None:
        self.until = until

    def __reduce__(self) -> Any:
        self.until.wait(30)
        return (int, ())


@pytest.mark.ranks(2)
def test_a_call_that_was_executed_is_never_said_to_be_cancelled(comm: Any) -> None:
    """Whichever threads call, and although what was pickled first leaves last."""
    comm.Barrier()
    if comm.rank == 0:
        for i in range(20):
            event = threading.Event()
            first: list[rpc.Call[Any]] = []
            thread = threading.Thread(target=lambda e=event, f=first: f.append(rpc.call(1, echo, Slow(e))))
            thread.start()
            later = rpc.call(1, count, ("later", i))
            while not rpc.call(1, counted, ("later", i)).result():
                pass
            event.set()
            thread.join()
            assert first[0].result() == 0  # begun after `later`
            assert not later.cancel() and later.result() == 1

        def work(number: int) -> None:
            for i in range(100):
                call = rpc.call(1, count, (number, i))
                cancelled = i % 3 == 0 and call.cancel()
                assert cancelled or call.result() == 1
                assert rpc.call(1, counted, (number, i)).result() == (not cancelled)

        with concurrent.futures.ThreadPoolExecutor(6) as threads:
            list(threads.map(work, range(6)))
    comm.Barrier()
    COUNTS.clear()


@pytest.mark.ranks(2)
def test_two_thousand_deadlines_at_once(comm: Any) -> None:
    comm.Barrier()
    if comm.rank == 0:
        blocked = rpc.call(1, wait_at_gate, "blocked")
        comm.recv(source=1)
        calls = [rpc.to(1, deadline=0.1).call(count, "late") for _ in range(2000)]
        done, left = concurrent.futures.wait(calls, 30)
        assert len(done) == 2000 and not left
        assert all(isinstance(call.exception(), rpc.DeadlineExceeded) for call in calls)
        comm.send(None, 1)
        assert blocked.result() == 1 and rpc.call(1, counted, "late").result() == 0
    else:
        _until_begun()
        comm.send(None, 0)
        comm.recv(source=0)
        GATE.set()
    comm.Barrier()
    COUNTS.clear()


@pytest.mark.ranks(2)
def test_calls_are_futures(comm: Any) -> None:
    to = peer(comm)
    calls = [rpc.call(to, add, i, i) for i in range(50)]
    assert all(isinstance(call, concurrent.futures.Future) for call in calls)
    done, left = concurrent.futures.wait(calls[:20], 30)
    assert len(done) == 20 and not left
    assert sorted(call.result() for call in concurrent.futures.as_completed(calls, 30)) == [2 * i for i in range(50)]
    heard: list[Any] = []
    event = threading.Event()
    for call in (rpc.call(to, add, 1), calls[0]):
        call.add_done_callback(heard.append)
        call.add_done_callback(lambda _: event.set())
        assert event.wait(30)
        event.clear()
    assert [call.result() for call in heard] == [1, 0]
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        shared = rpc.call(to, add, 5)
        assert {f.result() for f in [threads.submit(shared.result) for _ in range(4)]} == {5}
        assert list(threads.map(lambda i: rpc.call(to, add, i, 1).result(), range(200))) == list(range(1, 201))
    assert "finished" in repr(calls[0]) and "add on rank" in repr(calls[0])
    comm.Barrier()


@pytest.mark.ranks(2)
def test_results_that_nobody_takes(comm: Any) -> None:
    for _ in range(2000):
        rpc.call(peer(comm), echo, b"x" * 10_000)
    for _ in range(20):
        rpc.call(peer(comm), echo, np.zeros(100_000))
    assert rpc.call(peer(comm), add, 1).result() == 1
    comm.Barrier()


@pytest.mark.ranks([1, 2])
def test_ping(comm: Any) -> None:
    assert all(0 < rpc.ping(rank) < 10 for rank in range(comm.size) for _ in range(100))
    comm.Barrier()
