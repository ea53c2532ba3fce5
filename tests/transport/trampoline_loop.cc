// What Python would do between a trampoline's queues, in C++: each turn offers what waits to a wire of kWire messages, and takes from it
// what the trampoline has room for. So back-pressure, order, content and attribution of the trampoline itself are under test.
#include <deque>

#include "looped.h"

namespace mpx {
namespace {

constexpr size_t kWire = 8;

TrampolineTraits traits(const std::string &address) { return {"loop", address, 64 << 10, 1e-6, 1e9, false}; }

class Wire : public Medium {
public:
    std::string device() override { return trampoline_.device(); }
    void move() override {
        for (size_t lane = 0; lane < trampoline_.lanes(); ++lane)
            for (const std::vector<char> *m; wire_.size() < kWire && (m = trampoline_.front(lane)); trampoline_.pop(lane))
                wire_.emplace_back(trampoline_.address(lane), *m);
        for (; !wire_.empty() && trampoline_.room(); wire_.pop_front())
            trampoline_.put(wire_.front().first.data(), wire_.front().first.size(), wire_.front().second.data(),
                            wire_.front().second.size());
    }

private:
    static inline int number_ = 0;
    Trampoline trampoline_{traits("loop " + std::to_string(++number_))};
    std::deque<std::pair<std::string, std::vector<char>>> wire_;
};

}  // namespace

std::unique_ptr<Medium> open_medium() { return std::make_unique<Wire>(); }

const mpx_transport *trampoline_table() {
    static Trampoline first(traits(""));
    return first.table();
}

}  // namespace mpx
