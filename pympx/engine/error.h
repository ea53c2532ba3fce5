// Errors that the engine reports. The skin turns them into MPI error classes and sentences.
#pragma once
#include <cstdint>

namespace mpx {

enum class Error : int32_t {
    kNone = 0,
    kTruncate,     // message longer than the receive buffer; the buffer holds its first bytes
    kProcFailed,   // the peer died, left, or its link broke
    kUnreachable,  // the transport cannot reach the peer
    kNoMemory,
    kCanceled,
    kReduceFailed,  // a user's reduction raised
    kRevoked,       // some member revoked the communicator
    kInternal,
};

}  // namespace mpx
