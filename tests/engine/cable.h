// A network of this process's own, whose loopback device is the cable that a test pulls.
#pragma once
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>

namespace mpx::test {

inline bool set_cable(bool up) {
    const int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    ifreq r{};
    strcpy(r.ifr_name, "lo");
    r.ifr_flags = static_cast<short>(up ? IFF_UP | IFF_LOOPBACK : IFF_LOOPBACK);
    const bool ok = ioctl(fd, SIOCSIFFLAGS, &r) == 0;
    close(fd);
    return ok;
}

// False where no network namespace may be made.
inline bool own_network() { return (unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0 || unshare(CLONE_NEWNET) == 0) && set_cable(true); }

}  // namespace mpx::test
