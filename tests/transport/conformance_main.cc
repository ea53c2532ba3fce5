// conformance --transport=/path/to/_fastpath.so [--layer=/path/to/_fastpath.so [--settings=TEXT]] [--loopback] [--seed=N] [--seconds=N]
//             [doctest's options]; PYMPX_TEST_LONG=1 repeats more
//
// Runs every test of the transport contract against one fast path; ends with a table of what was exercised per capability, and fails when
// an advertised capability was exercised by no test.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <fstream>
#include <random>

#include "harness.h"

namespace mpx::conform {
namespace {

// Capabilities that a run on one host cannot show.
constexpr uint64_t kDeclaredOnly = MPX_CAP_INTER_NODE;

int report() {
    int missing = 0;
    std::printf("\ncapability        advertised  exercised\n");
    for (int bit = 0; bit < 64; ++bit) {
        const uint64_t cap = uint64_t{1} << bit;
        if (cap_names(cap).find("unknown") != std::string::npos && !has(cap)) continue;
        const bool declared_only = cap & kDeclaredOnly;
        const uint64_t times = times_exercised(cap);
        std::printf("%-17s %-11s %llu%s\n", cap_names(cap).c_str(), has(cap) ? "yes" : "no", static_cast<unsigned long long>(times),
                    has(cap) && declared_only ? " (cannot be shown on one host)" : "");
        if (has(cap) && !declared_only && !times) {
            std::fprintf(stderr, "advertised, but exercised by no test: %s\n", cap_names(cap).c_str());
            ++missing;
        }
    }
    return missing;
}

bool option(const char *arg, const char *name, const char **value) {
    const size_t n = std::strlen(name);
    if (std::strncmp(arg, name, n) != 0) return false;
    *value = arg + n;
    return true;
}

int run(int argc, char **argv) {
    Options &o = options();
    o.seed = std::random_device{}();
    bool filtered = false;
    std::vector<char *> rest{argv[0]};
    for (int i = 1; i < argc; ++i) {
        const char *value = nullptr;
        if (option(argv[i], "--transport=", &value)) o.library = value;
        else if (option(argv[i], "--layer=", &value)) o.layer = value;
        else if (option(argv[i], "--settings=", &value)) o.settings = value;
        else if (option(argv[i], "--seed=", &value)) o.seed = std::strtoull(value, nullptr, 10);
        else if (option(argv[i], "--seconds=", &value)) o.seconds = static_cast<unsigned>(std::strtoul(value, nullptr, 10));
        else if (std::strcmp(argv[i], "--loopback") == 0) o.loopback = true;
        else {
            rest.push_back(argv[i]);
            filtered |= argv[i][0] == '-' && std::strstr(argv[i], "test-") != nullptr;
        }
    }
    const char *form = std::getenv("PYMPX_TEST_LONG");
    if (form && std::strcmp(form, "1") == 0) o.rounds = 20, o.seconds *= 10;
    if (o.library.empty()) {
        std::fprintf(stderr, "usage: %s --transport=/path/to/_fastpath.so [--loopback] [--seed=N] [--seconds=N]\n", argv[0]);
        return 2;
    }
    std::printf("conformance of %s (%s), seed %llu\n", table().name, o.library.c_str(), static_cast<unsigned long long>(o.seed));
    std::printf("advertised: %s\n", cap_names(attributes().caps).c_str());
    doctest::Context context(static_cast<int>(rest.size()), rest.data());
    const int failed = context.run();
    if (context.shouldExit() || filtered) return failed;
    const bool bad = report() || failed;
    if (const char *path = std::getenv("PYMPX_TEST_RECORD"))
        std::ofstream(path, std::ios::app) << "{\"test\": \"conformance\", \"transport\": \"" << table().name
                                           << "\", \"rounds\": " << o.rounds << ", \"seed\": " << o.seed
                                           << ", \"passed\": " << (bad ? "false" : "true") << "}\n";
    return bad ? 1 : 0;
}

}  // namespace
}  // namespace mpx::conform

// LeakSanitizer's tracer was seen to crash at the end of this program, which forks and uses dlopen, after all tests had passed. The tests
// of the engine and of each transport look for leaks.
extern "C" const char *__asan_default_options() { return "detect_leaks=0"; }  // NOLINT(bugprone-reserved-identifier)

// The suite inside another process, such as Python's.
extern "C" __attribute__((visibility("default"))) int conformance_main(int argc, char **argv) {
    try {
        return mpx::conform::run(argc, argv);
    } catch (const std::exception &e) {
        std::fprintf(stderr, "conformance: %s\n", e.what());
        return 2;
    }
}

int main(int argc, char **argv) { return conformance_main(argc, argv); }
