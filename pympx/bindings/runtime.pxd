from .engine cimport Engine, Request

cdef Engine *engine            # NULL until the first communication, and after Finalize
cdef int start() except -1     # ensures an engine
cdef int wait_for(Request *request) except -1
cdef int wait_any_of(Request **requests, size_t count) except -1
cdef int after_wait(int outcome, double deadline) except -1
cdef double deadline() noexcept
cdef bint run_parked() except -1
cdef int polls                 # how long a hot call polls with the GIL held
