"""What a communicator offers to programs that survive failed ranks: User Level Failure Mitigation, as mpi4py names it.

W. Bland, A. Bouteiller, T. Herault, G. Bosilca, J. Dongarra: Post-failure recovery of MPI communication capability (IJHPCA 27, 2013).
The agreement itself is the engine's: engine/agreement.h.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .. import runtime
from ..bindings import request as _request
from ..bindings.comm import Agreement
from .group import Group
from .request import Request

if TYPE_CHECKING:
    from .comm import Comm


def group_of_failed(comm: Comm) -> Group:
    """See Comm.Get_failed."""
    world = comm._world_ranks()
    return Group._of([world[rank] for rank in comm._failed()], runtime.bootstrap().rank)


def acknowledge(comm: Comm, count: int | None) -> int:
    """See Comm.Ack_failed."""
    return comm._acknowledge_failed(comm.size if count is None else count)


def agree(comm: Comm, flag: int) -> int:
    """See Comm.Agree. Raises OverflowError for a flag that is no C int."""
    agreement = Agreement()
    comm._agree(agreement, _as_unsigned(flag), 0, True, "Agree").Wait()
    return agreement.flag


def start_agree(comm: Comm, flag: Any) -> Request:
    """See Comm.Iagree. Raises TypeError for what is no buffer, ValueError for one of another size."""
    agreement = Agreement()
    return comm._agree(agreement, _as_unsigned(agreement.into(flag)), 0, True, "Iagree")


def start_shrink(comm: Comm, shrunk: Comm, next_context: int, take_context: Callable[[int], int]) -> Request:
    """Start an agreement on who lives; then `shrunk` is defined as the communicator of those."""
    agreement = Agreement()

    def define() -> None:
        world = comm._world_ranks()
        living = [world[rank] for rank in agreement.living(len(world))]
        shrunk._define(take_context(agreement.next_context), living, living.index(runtime.bootstrap().rank))

    request = comm._agree(agreement, 0, next_context, False, "Shrink")
    _request.call_after(request, define)
    return request


def _as_unsigned(flag: int) -> int:
    if not -(1 << 31) <= flag < 1 << 31:
        raise OverflowError(f"Agree: flag {flag} does not fit into a C int")
    return flag & 0xFFFFFFFF
