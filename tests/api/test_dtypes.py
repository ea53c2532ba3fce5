"""Every NumPy dtype that MPI has a type for, sent, received and reduced."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pympx import MPI

INTEGERS = ["b", "B", "h", "H", "i", "I", "l", "L", "q", "Q"]
FLOATS = ["f", "d", "g"]
COMPLEX = ["F", "D", "G"]


def values(code: str, n: int, seed: int) -> Any:
    r = np.random.default_rng(seed)
    if code == "?":
        return r.integers(0, 2, n).astype("?")
    if code in COMPLEX:
        return (r.integers(-4, 5, n) + 1j * r.integers(-4, 5, n)).astype(code)
    return r.integers(0 if code in "BHILQ" else -4, 5, n).astype(code)


@pytest.mark.ranks([1, 2, 3])
@pytest.mark.parametrize("code", [*INTEGERS, *FLOATS, *COMPLEX, "?"])
def test_send_and_reduce(comm: Any, code: str) -> None:
    rank, size = comm.rank, comm.size
    for n in (1, 5, 1000):
        everybody = [values(code, n, 100 * n + r) for r in range(size)]
        got = np.zeros(n, code)
        comm.Sendrecv(everybody[rank], (rank + 1) % size, 0, got, (rank - 1) % size, 0)
        assert np.array_equal(got, everybody[(rank - 1) % size])
        stacked = np.stack(everybody)
        cases: dict[Any, Any] = {}
        if code != "?":
            cases[MPI.SUM] = stacked.sum(0, dtype=code)
            cases[MPI.PROD] = stacked.prod(0, dtype=code)
        if code in (*INTEGERS, *FLOATS):
            cases[MPI.MIN], cases[MPI.MAX] = stacked.min(0), stacked.max(0)
        if code in (*INTEGERS, "?"):
            cases[MPI.LAND], cases[MPI.LOR] = stacked.all(0).astype(code), stacked.any(0).astype(code)
            cases[MPI.LXOR] = (stacked.astype(bool).sum(0) % 2).astype(code)
        if code in INTEGERS:
            cases[MPI.BAND] = np.bitwise_and.reduce(stacked, 0)
            cases[MPI.BOR] = np.bitwise_or.reduce(stacked, 0)
            cases[MPI.BXOR] = np.bitwise_xor.reduce(stacked, 0)
        for op, expected in cases.items():
            result = np.zeros(n, code)
            comm.Allreduce(everybody[rank], result, op)
            if size == 1:
                expected = everybody[0]  # no operation was applied
            assert np.array_equal(result, expected), op


LOCATED = [("FLOAT_INT", "f"), ("DOUBLE_INT", "d"), ("LONG_INT", "l"), ("TWOINT", "i"), ("SHORT_INT", "h")]


@pytest.mark.ranks([1, 2, 3, 4])
@pytest.mark.parametrize(("name", "code"), LOCATED)
def test_locations(comm: Any, name: str, code: str) -> None:
    pair = np.dtype([("value", code), ("place", "i")], align=True)
    datatype = getattr(MPI, name)
    assert pair.itemsize == datatype.Get_size() or pair.itemsize == datatype.Get_extent()[1]
    n = 50
    everybody = np.zeros((comm.size, n), pair)
    everybody["value"] = [values(code, n, r) for r in range(comm.size)]
    everybody["place"] = np.arange(comm.size)[:, None] * 3
    for op, choose in ((MPI.MAXLOC, np.argmax), (MPI.MINLOC, np.argmin)):
        result = np.zeros(n, pair)
        comm.Allreduce([everybody[comm.rank].copy(), datatype], [result, datatype], op)
        where = choose(everybody["value"], axis=0)
        assert np.array_equal(result["place"], where * 3)
        assert np.array_equal(result["value"], np.take_along_axis(everybody["value"], where[None], 0)[0])


@pytest.mark.ranks(2)
@pytest.mark.parametrize("dtype", ["f2", "M8[s]", "m8[us]", "S5", "U3", ">i4", "V12", [("a", "i4"), ("b", "f8")]])
def test_other_dtypes_arrive_as_they_are(comm: Any, dtype: Any) -> None:
    """By Send where the buffer protocol has them, always by send."""
    array = np.frombuffer(np.random.default_rng(1).integers(32, 96, 1000, dtype=np.uint8).tobytes(), np.uint8)
    size = np.dtype(dtype).itemsize
    text = str(dtype).startswith("U")
    data = np.array(["abc"] * 10, dtype) if text else np.frombuffer(array[: 10 * size].tobytes(), np.uint8).view(dtype)
    if comm.rank == 0:
        comm.send(data, 1)
        comm.Send([data.view(np.uint8), MPI.BYTE], 1)
    else:
        assert comm.recv(source=0).tobytes() == data.tobytes()
        got = np.zeros(10 * size, np.uint8)
        comm.Recv(got, 0)
        assert got.tobytes() == data.tobytes()
