// See mappings.h.
#include "mappings.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <string_view>
#include <utility>

namespace mpx {
namespace {

// Of linux/fs.h since 6.11.
struct ProcmapQuery {
    uint64_t size, query_flags, query_addr;
    uint64_t vma_start, vma_end, vma_flags, vma_page_size, vma_offset, inode;
    uint32_t dev_major, dev_minor, vma_name_size, build_id_size;
    uint64_t vma_name_addr, build_id_addr;
};
static_assert(sizeof(ProcmapQuery) == 104);
constexpr unsigned long kProcmapQuery = _IOWR('f', 17, ProcmapQuery);
constexpr uint64_t kShared = 8;

// The fields of a line of /proc/self/maps: start-end, permissions, offset, device, inode, and a name if it has one.
bool parse(std::string_view line, Mapping *out) {
    const auto word = [&line] {
        const size_t end = std::min(line.find(' '), line.size());
        const std::string_view found = line.substr(0, end);
        line.remove_prefix(std::min(line.find_first_not_of(' ', end), line.size()));
        return found;
    };
    const std::string_view range = word(), permissions = word();
    word(), word();
    const std::string_view inode = word();
    const char *const end = range.data() + range.size();
    const auto [dash, error] = std::from_chars(range.data(), end, out->start, 16);
    if (error != std::errc() || dash == end || std::from_chars(dash + 1, end, out->end, 16).ec != std::errc()) return false;
    const bool anonymous = inode == "0" && (line.empty() || line == "[heap]" || line == "[stack]" || line.starts_with("[anon:"));
    out->ordinary = anonymous && permissions.ends_with('p');
    return true;
}

}  // namespace

Mappings::Mappings() : fd_(open("/proc/self/maps", O_RDONLY | O_CLOEXEC)) {}

void Mappings::close() {
    if (fd_ >= 0) ::close(std::exchange(fd_, -1));
}

bool Mappings::at(uintptr_t address, Mapping *out) {
    if (can_ask_) {
        const int found = ask(address, out);
        if (found >= 0) return found;
        can_ask_ = false;
    }
    return read(address, out) > 0;
}

int Mappings::ask(uintptr_t address, Mapping *out) const {
    ProcmapQuery q{};
    q.size = sizeof q;
    q.query_addr = address;
    if (ioctl(fd_, kProcmapQuery, &q)) return errno == ENOENT ? 0 : -1;
    *out = {q.vma_start, q.vma_end, !(q.vma_flags & kShared) && !q.inode && !q.dev_major && !q.dev_minor};
    return 1;
}

int Mappings::read(uintptr_t address, Mapping *out) const {
    char buffer[8192];  // a line has a path, at most
    size_t held = 0;
    if (lseek(fd_, 0, SEEK_SET) != 0) return -1;
    for (;;) {
        const ssize_t n = ::read(fd_, buffer + held, sizeof buffer - 1 - held);
        if (n <= 0) return n == 0 ? 0 : -1;
        held += static_cast<size_t>(n);
        char *line = buffer;
        for (char *end; (end = static_cast<char *>(std::memchr(line, '\n', held - (line - buffer)))); line = end + 1) {
            if (!parse({line, static_cast<size_t>(end - line)}, out)) return -1;
            if (address < out->end) return address >= out->start;
        }
        held -= line - buffer;
        std::memmove(buffer, line, held);
    }
}

}  // namespace mpx
