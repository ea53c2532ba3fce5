// Collectives as data: a schedule is an immutable graph of SEND, RECV, REDUCE and COPY; an execution walks it once.
//
// Ownership: a Schedule belongs to the skin's cache and outlives its executions, which it pools. Engine lock held throughout.
// The encoding that decode() reads is that of pympx/collectives/schedule.py.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "reduce.h"
#include "request.h"

namespace mpx {

class Engine;
struct Execution;

class Schedule {
public:
    enum Kind : uint8_t { kSend = 0, kRecv = 1, kReduce = 2, kCopy = 3 };
    enum Buffer : int8_t { kSendBuffer = 0, kReceiveBuffer = 1, kTemporary = 2 };  // -1: none
    struct Vertex {
        Kind kind;
        uint8_t slot;
        int8_t source_buffer;
        int8_t destination_buffer;
        int32_t peer;
        uint32_t first_successor;
        uint32_t successors;
        int64_t source_offset;
        int64_t destination_offset;
        uint64_t bytes;
    };

    // Throws std::invalid_argument for words that are not a schedule.
    static std::unique_ptr<Schedule> decode(const int64_t *words, size_t count);
    ~Schedule();

    std::vector<Vertex> vertices;
    std::vector<uint32_t> successors;
    std::vector<uint32_t> dependencies;  // how many, per vertex
    std::vector<uint32_t> roots;
    uint64_t temporary_bytes = 0;

private:
    friend class Engine;
    Execution *idle_ = nullptr;
};

// What a run of a schedule is bound to.
struct Binding {
    uint32_t context = 0;
    int32_t tag = 0;                 // base; the slot is added
    const int32_t *world = nullptr;  // communicator rank -> world rank
    const void *send_buffer = nullptr;
    void *receive_buffer = nullptr;
    uint64_t element_size = 1;
    ReduceFn reduce = nullptr;  // predefined operation, or
    void *python_op = nullptr;  // the skin's handle of a user's, run by whoever waits with the GIL
};

// A reduction that needs Python. Taken by the skin from Engine::take_parked, given back by Engine::finish_parked.
struct Parked {
    Execution *execution;
    uint32_t vertex;
    void *python_op;
    const void *in;
    void *inout;
    uint64_t bytes;
};

}  // namespace mpx
