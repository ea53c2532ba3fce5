"""Raises MPI.Exception from the skin; api/errors.py registers the class."""
from .engine cimport Error, Status

exception_class = RuntimeError
explain_failure = None


def register(cls):
    """Set the class that errors are raised as: called as cls(error_class, message)."""
    global exception_class
    exception_class = cls


def register_explanation(explain):
    """Set what says why a peer failed: called with its rank in COMM_WORLD, returns a sentence, or the empty string."""
    global explain_failure
    explain_failure = explain


cdef int fail(int error_class, str message) except -1:
    raise exception_class(error_class, message)


cdef int fail_status(const Status *status, int source, unsigned long long capacity, str what) except -1:
    """Raise what a request ended with. source: the peer's rank in the communicator."""
    if status.error == Error.kTruncate:
        fail(ERR_TRUNCATE, f"{what}: message of {status.full_size} bytes from rank {source} tag {status.tag}, "
                           f"buffer holds {capacity}; its first {status.bytes} bytes were received")
    if status.error == Error.kProcFailed:
        fail(ERR_PROC_FAILED, f"{what}: {explain_failure(status.source) or f'rank {source} failed or left'}")
    if status.error == Error.kUnreachable:
        fail(ERR_PROC_FAILED, f"{what}: {explain_failure(status.source) or f'rank {source} cannot be reached'}")
    if status.error == Error.kRevoked:
        fail(ERR_REVOKED, f"{what}: the communicator was revoked")
    if status.error == Error.kNoMemory:
        fail(ERR_NO_MEM, f"{what}: no memory for a message of {status.full_size} bytes from rank {source}")
    if status.error == Error.kReduceFailed:
        fail(ERR_OP, f"{what}: the user's reduction function raised an exception")
    return fail(ERR_INTERN, f"{what}: internal error {<int>status.error}")
