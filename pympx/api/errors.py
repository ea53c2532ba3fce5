"""Error classes and the Exception that carries them (MPI 4.1, section 9.4)."""

from __future__ import annotations

from typing import Any

from ..bindings import errors as _errors

#: error class -> (value, sentence)
CLASSES: dict[str, tuple[int, str]] = {
    "SUCCESS": (0, "no error"),
    "ERR_BUFFER": (1, "invalid buffer"),
    "ERR_COUNT": (2, "invalid count"),
    "ERR_TYPE": (3, "invalid datatype"),
    "ERR_TAG": (4, "invalid tag"),
    "ERR_COMM": (5, "invalid communicator"),
    "ERR_RANK": (6, "invalid rank"),
    "ERR_ROOT": (7, "invalid root"),
    "ERR_GROUP": (8, "invalid group"),
    "ERR_OP": (9, "invalid operation"),
    "ERR_TOPOLOGY": (10, "invalid topology"),
    "ERR_DIMS": (11, "invalid dimensions"),
    "ERR_ARG": (12, "invalid argument"),
    "ERR_UNKNOWN": (13, "unknown error"),
    "ERR_TRUNCATE": (14, "message truncated"),
    "ERR_OTHER": (15, "other error"),
    "ERR_INTERN": (16, "internal error"),
    "ERR_IN_STATUS": (17, "error code is in the status"),
    "ERR_PENDING": (18, "operation is pending"),
    "ERR_REQUEST": (19, "invalid request"),
    "ERR_ACCESS": (20, "permission denied"),
    "ERR_AMODE": (21, "invalid access mode"),
    "ERR_BAD_FILE": (22, "invalid file name"),
    "ERR_CONVERSION": (23, "data conversion failed"),
    "ERR_DUP_DATAREP": (24, "data representation is defined already"),
    "ERR_FILE_EXISTS": (25, "file exists"),
    "ERR_FILE_IN_USE": (26, "file is in use"),
    "ERR_FILE": (27, "invalid file"),
    "ERR_INFO": (28, "invalid info"),
    "ERR_INFO_KEY": (29, "info key is too long"),
    "ERR_INFO_VALUE": (30, "info value is too long"),
    "ERR_INFO_NOKEY": (31, "info has no such key"),
    "ERR_IO": (32, "input or output failed"),
    "ERR_NAME": (33, "name is not published"),
    "ERR_NO_MEM": (34, "out of memory"),
    "ERR_NOT_SAME": (35, "argument differs between ranks"),
    "ERR_NO_SPACE": (36, "no space left"),
    "ERR_NO_SUCH_FILE": (37, "no such file"),
    "ERR_PORT": (38, "invalid port"),
    "ERR_QUOTA": (39, "quota exceeded"),
    "ERR_READ_ONLY": (40, "read-only file or file system"),
    "ERR_SERVICE": (41, "invalid service name"),
    "ERR_SPAWN": (42, "spawning failed"),
    "ERR_UNSUPPORTED_DATAREP": (43, "unsupported data representation"),
    "ERR_UNSUPPORTED_OPERATION": (44, "unsupported operation"),
    "ERR_WIN": (45, "invalid window"),
    "ERR_BASE": (46, "invalid base"),
    "ERR_LOCKTYPE": (47, "invalid lock type"),
    "ERR_KEYVAL": (48, "invalid attribute key"),
    "ERR_RMA_CONFLICT": (49, "conflicting accesses to a window"),
    "ERR_RMA_SYNC": (50, "wrong synchronization of a window"),
    "ERR_SIZE": (51, "invalid size"),
    "ERR_DISP": (52, "invalid displacement"),
    "ERR_ASSERT": (53, "invalid assertion"),
    "ERR_RMA_RANGE": (55, "access outside the window"),
    "ERR_RMA_ATTACH": (56, "memory cannot be attached"),
    "ERR_RMA_SHARED": (57, "memory cannot be shared"),
    "ERR_RMA_FLAVOR": (58, "wrong flavor of window"),
    "ERR_SESSION": (59, "invalid session"),
    "ERR_PROC_ABORTED": (60, "a process was aborted"),
    "ERR_VALUE_TOO_LARGE": (61, "value is too large"),
    "ERR_ERRHANDLER": (62, "invalid error handler"),
    "ERR_PROC_FAILED": (71, "a process failed"),
    "ERR_PROC_FAILED_PENDING": (72, "a process failed, the operation is pending"),
    "ERR_REVOKED": (73, "the communicator is revoked"),
    "ERR_LASTCODE": (0x3FFFFFFF, "last error code"),
}
_SENTENCES = {value: (name, sentence) for name, (value, sentence) in CLASSES.items()}


class Exception(RuntimeError):  # noqa: A001 - mpi4py's name
    """An error of an MPI call. Compares with, and converts to, its error class.

    `ierr`: error class. `message`: what happened, where, what to do.
    """

    def __init__(self, ierr: int = 0, message: str = "", /) -> None:
        super().__init__(ierr)
        self.ob_mpi = int(ierr)
        self.message = message

    def __str__(self) -> str:
        name = _SENTENCES.get(self.ob_mpi, ("", ""))[0]
        return f"MPI_{name}: {self.message}" if self.message else self.Get_error_string()

    def __int__(self) -> int:
        return self.ob_mpi

    def __bool__(self) -> bool:
        return self.ob_mpi != 0

    def __hash__(self) -> int:
        return hash(self.ob_mpi)

    def __eq__(self, other: object) -> bool:
        return self.ob_mpi == int(other) if isinstance(other, (int, Exception)) else NotImplemented

    def __lt__(self, other: Any) -> bool:
        return self.ob_mpi < int(other)

    def __le__(self, other: Any) -> bool:
        return self.ob_mpi <= int(other)

    def __gt__(self, other: Any) -> bool:
        return self.ob_mpi > int(other)

    def __ge__(self, other: Any) -> bool:
        return self.ob_mpi >= int(other)

    def Get_error_code(self) -> int:
        """Return the error code; here always its class."""
        return self.ob_mpi

    def Get_error_class(self) -> int:
        """Return the error class."""
        return self.ob_mpi

    def Get_error_string(self) -> str:
        """Return the sentence for the error class."""
        name, sentence = _SENTENCES.get(self.ob_mpi, ("ERR_UNKNOWN", "unknown error code"))
        return f"MPI_{name}: {sentence}"

    error_code = property(Get_error_code, doc="Error code.")
    error_class = property(Get_error_class, doc="Error class.")
    error_string = property(Get_error_string, doc="Sentence for the error class.")


class UnsupportedError(Exception, NotImplementedError):
    """A name of MPI that pympx does not implement yet."""


def _make(ierr: int, message: str) -> Exception:
    return Exception(ierr, message)


_errors.register(_make)
