// Agreement among the living members of a communicator: what MPI_Comm_agree and MPI_Comm_shrink need (MPI 4.1 with ULFM, section 7).
//
// A leader, the lowest member that is not known to be gone, collects what every living member contributes, proposes the result, and
// commits it when all have it. If the leader dies, the next one asks everybody; a result that some member has as proposed is kept, so
// that nobody who returned has another one. Processes fail by stopping. Engine lock held throughout; records belong to the Engine.
#pragma once
#include <cstdint>
#include <map>
#include <set>
#include <vector>

#include "request.h"

namespace mpx {

// What members agree on. Sets are bit maps over the communicator's ranks.
struct Agreed {
    uint32_t flag = ~0u;         // bitwise AND
    uint32_t next_context = 0;   // maximum
    std::vector<uint8_t> gone;   // failed or left: union
    std::vector<uint8_t> acked;  // acknowledged by all: intersection

    void combine(const Agreed &);
};

inline bool has_bit(const std::vector<uint8_t> &bits, int32_t i) { return bits[i / 8] >> (i % 8) & 1; }
inline void set_bit(std::vector<uint8_t> &bits, int32_t i) { bits[i / 8] = static_cast<uint8_t>(bits[i / 8] | 1u << (i % 8)); }

// Where the caller of Engine::agree finds the result; must live until the request is done.
struct AgreementResult {
    uint32_t flag = 0;
    uint32_t next_context = 0;
    int32_t *flag_copy = nullptr;  // gets the flag too
    std::vector<uint8_t> gone;
};

struct Agreement {
    struct Contribution {
        Agreed value;
        bool proposed = false;  // a leader proposed it: it may have been committed somewhere
    };

    uint32_t context = 0;
    uint32_t number = 0;
    std::vector<int32_t> members;  // world ranks; empty until this process takes part
    Request *request = nullptr;    // of this process, until it is done
    AgreementResult *result = nullptr;
    bool heeds_failures = false;  // unacknowledged failures are an error
    Contribution own;
    bool decided = false;
    int32_t told = -1;                              // the leader that has our contribution
    std::vector<int32_t> askers;                    // leaders that asked before we took part
    bool asked = false;                             // as a leader that others may not expect
    bool proposing = false;                         // as leader
    std::map<int32_t, Contribution> contributions;  // by world rank
    std::set<int32_t> confirmed;                    // world ranks that have the proposal
};

}  // namespace mpx
