// What a run is to suffer: parsed from "no_resource=0.1,burst=0.0002,...", printed nowhere, changed by nobody.
#pragma once
#include <cstdint>
#include <string>

namespace mpx::fault {

struct Settings {
    double no_resource = 0;   // chance that an operation begins a burst, in which its ep takes nothing
    double burst_s = 500e-6;  // the longest burst
    double late = 0;          // chance that a completion is delivered late
    double hold = 0;          // chance that an incoming message is held back; those behind it wait with it
    double delay_s = 1e-3;    // the longest delay of either
    uint64_t break_at = 0;    // the operation of a link, counted from 1, that finds it broken; 0: none
    int64_t break_ep = -1;    // only that ep of each iface, counted from 0 in the order of their making; -1: each
    uint64_t seed = 1;
};

// Throws std::invalid_argument with a reason that names the word at fault.
Settings parse(const std::string &text);

}  // namespace mpx::fault
