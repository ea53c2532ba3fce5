"""An exception inside a user's reduction on one rank."""

from __future__ import annotations

import pytest
from fault_support import Ranks


@pytest.mark.parametrize("size", [2, 3, 4])
def test_it_is_raised_where_it_happened_and_nobody_gets_a_wrong_result(transport: str, size: int) -> None:
    """Its rank catches it and goes on with messages, then leaves; who still needed its part raises, naming it or who raised."""
    text = """
    def fragile(a, b, datatype):
        if rank == 1:
            raise ZeroDivisionError("on purpose")
        np.frombuffer(b, "f8")[:] += np.frombuffer(a, "f8")

    op = MPI.Op.Create(fragile, commute=True)
    other = comm.Dup()
    result = np.zeros(3)
    try:
        other.Allreduce(np.full(3, rank + 1.0), result, op)
    except ZeroDivisionError as error:
        assert rank == 1 and str(error) == "on purpose"
        say("raised")
    except MPI.Exception as error:
        assert rank != 1 and error.Get_error_class() == MPI.ERR_PROC_FAILED, error
        say("told")
    else:
        assert rank != 1 and (result == size * (size + 1) / 2).all(), result
        say("result")
    if rank == 1:
        listen()
        comm.Sendrecv(np.ones(5), 1, 1, np.zeros(5), 1, 1)
    """
    with Ranks(size, transport, text) as job:
        job.expect(1, "raised")
        job.tell(1)
        assert all(job.hear(rank) in ("told", "result") for rank in range(size) if rank != 1)
        job.finish(*range(size))
