// A real transport in Python as a fast path that reaches only itself: over_python.py, which runs the suite inside its process, gives the
// calls that open, move and close it.
#include "looped.h"

namespace mpx {
namespace {

struct Calls {
    int (*open)(char *device, size_t capacity);  // a number for the others; negative: it failed and said why
    void (*move)(int number);
    void (*close)(int number);
    const mpx_transport *table;
} calls;

class Python : public Medium {
public:
    Python() {
        char device[256] = {};
        number_ = calls.open(device, sizeof device);
        if (number_ < 0) throw std::bad_alloc();
        device_ = device;
    }
    ~Python() override { calls.close(number_); }
    std::string device() override { return device_; }
    void move() override { calls.move(number_); }

private:
    int number_;
    std::string device_;
};

}  // namespace

std::unique_ptr<Medium> open_medium() { return std::make_unique<Python>(); }
const mpx_transport *trampoline_table() { return calls.table; }

}  // namespace mpx

extern "C" __attribute__((visibility("default"))) void use_python(int (*open)(char *, size_t), void (*move)(int), void (*close)(int),
                                                                  const mpx_transport *table) {
    mpx::calls = {open, move, close, table};
}
