// What is mapped at an address of this process, as the kernel says. Threads: one at a time. Ownership: a descriptor of /proc/self/maps.
#pragma once
#include <cstdint>

namespace mpx {

struct Mapping {
    uintptr_t start, end;
    bool ordinary;  // private and anonymous: only calls of this process change what lies behind its addresses
};

class Mappings {
public:
    Mappings();
    ~Mappings() { close(); }
    Mappings(const Mappings &) = delete;
    Mappings &operator=(const Mappings &) = delete;

    bool at(uintptr_t address, Mapping *out);  // false: nothing is mapped there
    // The two ways: ask for one mapping (Linux 6.11; -1 before), or read the list. 1: found.
    int ask(uintptr_t address, Mapping *out) const;
    int read(uintptr_t address, Mapping *out) const;
    void close();

private:
    int fd_;
    bool can_ask_ = true;
};

}  // namespace mpx
