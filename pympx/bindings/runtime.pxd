from .engine cimport Engine, Request

cdef Engine *engine            # NULL until the first communication, and after Finalize
cdef int start() except -1     # ensures an engine
cdef int wait_for(Request *request) except -1
cdef int wait_any_of(Request **requests, size_t count) except -1
cdef int after_wait(int outcome, double deadline) except -1
cdef double deadline() noexcept
cdef bint run_parked() except -1
cdef object reducer            # runs a user's reduction: (Reduction, address of in, address of inout, bytes)
cdef list pumps                # of transports without native progress; None, nearly always: there are none
cdef bint pump() except -1     # moves their messages; call it before leaving to the program
cdef int drain() except -1     # waits until what was sent has been handed on; for calls that may wait
cdef int polls                 # how long a hot call polls with the GIL held
