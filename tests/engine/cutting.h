// Cuts the tcp connections of this process, whoever uses them, from any thread: by plain system calls, so that a thread sanitizer does not
// take the cut itself for a mistake.
#pragma once
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <vector>

namespace mpx::test {

// Both ends of each connection.
inline std::vector<int> connections() {
    std::vector<int> found;
    for (int fd = 3; fd < 256; fd++) {
        sockaddr_in at{};
        socklen_t length = sizeof at;
        if (syscall(SYS_getpeername, fd, &at, &length) == 0 && at.sin_family == AF_INET) found.push_back(fd);
    }
    return found;
}

enum class Cut { kShut, kReset, kForget };

// Ends a connection: both sides read the end; or the peer reads a reset; or this side forgets it and the peer is not told (that needs a
// privilege; without it as kReset).
inline void cut_connection(int fd, Cut how) {
    if (how == Cut::kShut) {
        syscall(SYS_shutdown, fd, SHUT_RDWR);
        return;
    }
    const int on = 1;
    if (how == Cut::kForget) syscall(SYS_setsockopt, fd, IPPROTO_TCP, TCP_REPAIR, &on, sizeof on);
    sockaddr nowhere{};
    nowhere.sa_family = AF_UNSPEC;
    syscall(SYS_connect, fd, &nowhere, sizeof nowhere);
}

}  // namespace mpx::test
