"""Awaiting requests, calls and messages in asyncio, trio and anyio."""

from __future__ import annotations

import asyncio
import functools
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import numpy as np
import pytest
import trio

from pympx import MPI, rpc

RUNNERS: dict[str, Callable[[Callable[[], Awaitable[Any]]], Any]] = {
    "asyncio": lambda main: asyncio.run(main()),  # type: ignore[arg-type]
    "trio": trio.run,
    "anyio on asyncio": functools.partial(anyio.run, backend="asyncio"),
    "anyio on trio": functools.partial(anyio.run, backend="trio"),
}


def twice(value: Any) -> Any:
    return 2 * value


def fail() -> None:
    raise KeyError("there")


@pytest.fixture(params=RUNNERS)
def run(request: pytest.FixtureRequest) -> Callable[[Callable[[], Awaitable[Any]]], Any]:
    return RUNNERS[request.param]


@pytest.mark.ranks([1, 2, 3])
def test_requests_of_all_kinds(comm: Any, run: Callable[..., Any]) -> None:
    right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size

    async def main() -> None:
        for i in range(100):
            send = comm.isend((i, comm.rank), right)
            assert await comm.irecv(source=left) == (i, left)
            await send
        mine, theirs = np.full(300_000, comm.rank), np.empty(300_000, int)
        send = comm.Isend(mine, right)
        assert await comm.Irecv(theirs, left) is None
        await send
        assert (theirs == left).all()
        await comm.Isendrecv(mine, right, 1, theirs, left, 1)
        kept = comm.Recv_init(theirs, left)
        for i in range(5):
            kept.Start()
            await comm.Isend(mine[i:], right)
            await kept
        kept.Free()
        flag = np.array([1 << comm.rank | 8], np.int32)
        await comm.Iagree(flag)
        assert flag[0] == (8 | (comm.size == 1))
        await MPI.REQUEST_NULL

    run(main)
    comm.Barrier()


@pytest.mark.ranks(2)
def test_calls_and_what_they_raise(comm: Any, run: Callable[..., Any]) -> None:
    async def main() -> None:
        to = 1 - comm.rank
        assert await rpc.call(to, twice, 21) == 42
        calls = [rpc.call(to, twice, i) for i in range(200)]
        assert [await call for call in calls] == list(range(0, 400, 2))
        with pytest.raises(KeyError, match="there"):
            await rpc.call(to, fail)

    run(main)
    comm.Barrier()


@pytest.mark.ranks(2)
def test_messages_as_they_come(comm: Any, run: Callable[..., Any]) -> None:
    n = 200

    async def main() -> None:
        status = MPI.Status()
        got = []
        if comm.rank == 0:
            async for message in comm.messages(source=1, tag=7, status=status):
                assert (status.source, status.tag) == (1, 7)
                got.append(message)
                if len(got) == n:
                    break
            assert got == [{"number": i} for i in range(n)]
        else:
            for i in range(n):
                await comm.issend({"number": i}, 0, 7) if i % 10 == 0 else await comm.isend({"number": i}, 0, 7)

    run(main)
    comm.Barrier()


@pytest.mark.ranks(2)
def test_other_tasks_run_while_one_waits(comm: Any) -> None:
    async def main() -> None:
        if comm.rank == 1:
            await comm.irecv(source=0, tag=1)
            await comm.isend("late", 0, 2)
            return
        turns = 0

        async def others() -> None:
            nonlocal turns
            for _ in range(50):
                turns += 1
                await asyncio.sleep(0)
            await comm.isend(None, 1, 1)

        late, _ = await asyncio.gather(_value(comm.irecv(source=1, tag=2)), others())
        assert late == "late" and turns == 50

    asyncio.run(main())
    comm.Barrier()


async def _value(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


@pytest.mark.ranks(2)
def test_a_cancelled_wait_loses_no_message(comm: Any) -> None:
    async def main() -> None:
        if comm.rank == 1:
            await comm.irecv(source=0, tag=1)
            for i in range(3):
                await comm.isend(i, 0, 2)
            return
        messages = comm.messages(source=1, tag=2)
        for _ in range(5):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(anext(messages), 0.005)
        task = asyncio.ensure_future(anext(messages))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="another task waits"):
            await anext(messages)
        task.cancel()
        await asyncio.sleep(0)
        request = comm.irecv(source=1, tag=3)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(_value(request), 0.005)
        request.cancel()
        request.wait()
        await comm.isend(None, 1, 1)
        assert [await anext(messages) for _ in range(3)] == [0, 1, 2]
        call = rpc.call(1, twice, 4)
        waiting = asyncio.ensure_future(_value(call))
        await asyncio.sleep(0)
        waiting.cancel()
        assert call.result() == 8 and await call == 8

    asyncio.run(main())
    comm.Barrier()


@pytest.mark.ranks(2)
def test_a_thousand_tasks_wait_and_cost_nothing(comm: Any) -> None:
    n = 1000

    async def main() -> None:
        if comm.rank == 0:
            tasks = [asyncio.ensure_future(_value(comm.irecv(source=1, tag=tag))) for tag in range(n)]
            await asyncio.sleep(0.1)
            begun, start = time.monotonic(), os.times()
            await asyncio.sleep(1)
            spent = os.times()
            cpu = spent.user + spent.system - start.user - start.system
            assert cpu < 0.02 * (time.monotonic() - begun) + 0.02, cpu  # os.times counts hundredths
            comm.send(None, 1)
            assert await asyncio.gather(*tasks) == list(range(n))
        else:
            comm.recv(source=0)
            for tag in reversed(range(n)):
                comm.send(tag, 0, tag)

    asyncio.run(main())
    comm.Barrier()


@pytest.mark.ranks(1)
def test_without_a_loop_it_says_so(comm: Any) -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        comm.irecv(source=0, tag=9).__await__().send(None)
