"""Error classes (MPI 4.1, section 9.4), numbered as in MPICH, whose extensions have the numbers from 101 on."""

from __future__ import annotations

SUCCESS = 0
ERR_BUFFER = 1
ERR_COUNT = 2
ERR_TYPE = 3
ERR_TAG = 4
ERR_COMM = 5
ERR_RANK = 6
ERR_ROOT = 7
ERR_GROUP = 8
ERR_OP = 9
ERR_TOPOLOGY = 10
ERR_DIMS = 11
ERR_ARG = 12
ERR_UNKNOWN = 13
ERR_TRUNCATE = 14
ERR_OTHER = 15
ERR_INTERN = 16
ERR_IN_STATUS = 17
ERR_PENDING = 18
ERR_REQUEST = 19
ERR_ACCESS = 20
ERR_AMODE = 21
ERR_BAD_FILE = 22
ERR_CONVERSION = 23
ERR_DUP_DATAREP = 24
ERR_FILE_EXISTS = 25
ERR_FILE_IN_USE = 26
ERR_FILE = 27
ERR_INFO = 28
ERR_INFO_KEY = 29
ERR_INFO_VALUE = 30
ERR_INFO_NOKEY = 31
ERR_IO = 32
ERR_NAME = 33
ERR_NO_MEM = 34
ERR_NOT_SAME = 35
ERR_NO_SPACE = 36
ERR_NO_SUCH_FILE = 37
ERR_PORT = 38
ERR_QUOTA = 39
ERR_READ_ONLY = 40
ERR_SERVICE = 41
ERR_SPAWN = 42
ERR_UNSUPPORTED_DATAREP = 43
ERR_UNSUPPORTED_OPERATION = 44
ERR_WIN = 45
ERR_BASE = 46
ERR_LOCKTYPE = 47
ERR_KEYVAL = 48
ERR_RMA_CONFLICT = 49
ERR_RMA_SYNC = 50
ERR_SIZE = 51
ERR_DISP = 52
ERR_ASSERT = 53
ERR_RMA_RANGE = 55
ERR_RMA_ATTACH = 56
ERR_RMA_SHARED = 57
ERR_RMA_FLAVOR = 58
ERR_SESSION = 75
ERR_PROC_ABORTED = 76
ERR_VALUE_TOO_LARGE = 77
ERR_ABI = 78
ERR_ERRHANDLER = 80
ERR_PROC_FAILED = 101
ERR_PROC_FAILED_PENDING = 102
ERR_REVOKED = 103
ERR_LASTCODE = 0x3fffffff

_SENTENCES = {
    "SUCCESS": "no error",
    "ERR_BUFFER": "invalid buffer",
    "ERR_COUNT": "invalid count",
    "ERR_TYPE": "invalid datatype",
    "ERR_TAG": "invalid tag",
    "ERR_COMM": "invalid communicator",
    "ERR_RANK": "invalid rank",
    "ERR_ROOT": "invalid root",
    "ERR_GROUP": "invalid group",
    "ERR_OP": "invalid operation",
    "ERR_TOPOLOGY": "invalid topology",
    "ERR_DIMS": "invalid dimensions",
    "ERR_ARG": "invalid argument",
    "ERR_UNKNOWN": "unknown error",
    "ERR_TRUNCATE": "message truncated",
    "ERR_OTHER": "other error",
    "ERR_INTERN": "internal error",
    "ERR_IN_STATUS": "error code is in the status",
    "ERR_PENDING": "operation is pending",
    "ERR_REQUEST": "invalid request",
    "ERR_ACCESS": "permission denied",
    "ERR_AMODE": "invalid access mode",
    "ERR_BAD_FILE": "invalid file name",
    "ERR_CONVERSION": "data conversion failed",
    "ERR_DUP_DATAREP": "data representation is defined already",
    "ERR_FILE_EXISTS": "file exists",
    "ERR_FILE_IN_USE": "file is in use",
    "ERR_FILE": "invalid file",
    "ERR_INFO": "invalid info",
    "ERR_INFO_KEY": "info key is too long",
    "ERR_INFO_VALUE": "info value is too long",
    "ERR_INFO_NOKEY": "info has no such key",
    "ERR_IO": "input or output failed",
    "ERR_NAME": "name is not published",
    "ERR_NO_MEM": "out of memory",
    "ERR_NOT_SAME": "argument differs between ranks",
    "ERR_NO_SPACE": "no space left",
    "ERR_NO_SUCH_FILE": "no such file",
    "ERR_PORT": "invalid port",
    "ERR_QUOTA": "quota exceeded",
    "ERR_READ_ONLY": "read-only file or file system",
    "ERR_SERVICE": "invalid service name",
    "ERR_SPAWN": "spawning failed",
    "ERR_UNSUPPORTED_DATAREP": "unsupported data representation",
    "ERR_UNSUPPORTED_OPERATION": "unsupported operation",
    "ERR_WIN": "invalid window",
    "ERR_BASE": "invalid base",
    "ERR_LOCKTYPE": "invalid lock type",
    "ERR_KEYVAL": "invalid attribute key",
    "ERR_RMA_CONFLICT": "conflicting accesses to a window",
    "ERR_RMA_SYNC": "wrong synchronization of a window",
    "ERR_SIZE": "invalid size",
    "ERR_DISP": "invalid displacement",
    "ERR_ASSERT": "invalid assertion",
    "ERR_RMA_RANGE": "access outside the window",
    "ERR_RMA_ATTACH": "memory cannot be attached",
    "ERR_RMA_SHARED": "memory cannot be shared",
    "ERR_RMA_FLAVOR": "wrong flavor of window",
    "ERR_SESSION": "invalid session",
    "ERR_PROC_ABORTED": "a process was aborted",
    "ERR_VALUE_TOO_LARGE": "value is too large",
    "ERR_ABI": "invalid use of the ABI",
    "ERR_ERRHANDLER": "invalid error handler",
    "ERR_PROC_FAILED": "a process failed",
    "ERR_PROC_FAILED_PENDING": "a process failed, the operation is pending",
    "ERR_REVOKED": "the communicator is revoked",
    "ERR_LASTCODE": "last error code",
}
#: error class -> (value, sentence)
CLASSES: dict[str, tuple[int, str]] = {name: (globals()[name], sentence) for name, sentence in _SENTENCES.items()}
