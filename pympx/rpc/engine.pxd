# What calls use of the engine beside what the bindings declare. See pympx/engine/engine.h.
from libc.stdint cimport int32_t, uint32_t, uint64_t
from libcpp cimport bool as cbool
from libcpp.vector cimport vector

from ..bindings.engine cimport Engine, Error, Request, Wait


cdef extern from "engine/engine.h" namespace "mpx" nogil:
    cdef cppclass Tally "mpx::Tally":
        uint32_t load()
    cdef cppclass Exchange "mpx::Exchange":
        Request *answer
        Request *message
        uint32_t number
    uint64_t match_word(uint32_t, int32_t)
    uint32_t kActiveEcho
    cdef cppclass CallEngine "mpx::Engine":
        void start_service() except +
        Exchange exchange(int32_t, uint32_t, uint32_t, void *, uint64_t, uint64_t, Tally *)
        Exchange try_exchange(int32_t, uint32_t, uint32_t, void *, uint64_t, uint64_t, Tally *)
        Wait wait_below(const Tally *, uint32_t)
        Wait wait_served(Request **, size_t, int, vector[uint64_t] *)
        Wait wait_at_most(Request *, int)
        void tell_served(uint64_t)
        cbool watch_request(Request *, uint64_t)
        Error send_active(int32_t, uint32_t, uint64_t, const void *, size_t) except +
        void abandon(Request *)

cdef extern from "rpc/book.h" namespace "mpx::rpc" nogil:
    uint32_t kActiveWithdraw
    cdef cppclass Book "mpx::rpc::Book":
        Book()
        void open(Engine &, int32_t) except +
        Tally *outstanding()
        cbool begin(int32_t, uint32_t)
