from .engine cimport Status

# Error classes, numbered as in MPI.h of the MPICH ABI; api/errors.py has them all.
cdef enum:
    ERR_BUFFER = 1
    ERR_COUNT = 2
    ERR_TYPE = 3
    ERR_TAG = 4
    ERR_COMM = 5
    ERR_RANK = 6
    ERR_ROOT = 7
    ERR_OP = 9
    ERR_ARG = 12
    ERR_TRUNCATE = 14
    ERR_OTHER = 15
    ERR_INTERN = 16
    ERR_REQUEST = 19
    ERR_NO_MEM = 34
    ERR_UNSUPPORTED_OPERATION = 44
    ERR_PROC_FAILED = 101
    ERR_REVOKED = 103

cdef int fail(int error_class, str message) except -1
cdef int fail_status(const Status *status, int source, unsigned long long capacity, str what) except -1
