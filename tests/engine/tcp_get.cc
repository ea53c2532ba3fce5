// tcp: gets of every length, refused keys, memory withdrawn while it is read, links cut under operations.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <netinet/in.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tcp_world.hh"
#include "wire.hh"

using namespace world;

namespace {

struct Registered {
    Registered(Side &owner, const void *addr, size_t len, unsigned access = MPX_ACCESS_REMOTE_READ) : owner(owner) {
        REQUIRE(table().mem_reg(owner.domain, const_cast<void *>(addr), len, MPX_MEM_HOST, access, &mem) == MPX_OK);
        packed.resize(owner.attr().rkey_packed_len);
        REQUIRE(table().rkey_pack(owner.domain, mem, packed.data(), packed.size()) == MPX_OK);
    }
    ~Registered() { drop(); }
    void drop() {
        if (mem) CHECK(table().mem_dereg(owner.domain, mem) == MPX_OK);
        mem = nullptr;
    }
    Side &owner;
    mpx_mem_h mem = nullptr;
    std::string packed;
};

mpx_rkey_h unpack(Side &s, const std::string &packed) {
    mpx_rkey_h rkey = nullptr;
    REQUIRE(table().rkey_unpack(s.domain, packed.data(), packed.size(), &rkey) == MPX_OK);
    return rkey;
}

uint64_t address_of(const void *p) { return reinterpret_cast<uint64_t>(p); }

// Gets into one buffer and waits; returns the completion's status.
mpx_status get(Side &a, Side &b, mpx_rkey_h rkey, const void *remote, void *local, size_t len) {
    Done done;
    const mpx_iov iov{local, len, nullptr};
    const mpx_status st = persist({&a, &b}, [&] { return a.iface->ops->get_zcopy(a.ep_of(b), &iov, 1, address_of(remote), rkey, &done); });
    REQUIRE(st == MPX_INPROGRESS);
    CHECK(done.calls == 0);
    REQUIRE(until(
        {&a, &b}, [&] { return done.calls > 0; }, 60));
    CHECK(done.calls == 1);
    return done.status;
}

void cut(const Side &server) {
    mpx::tcp::Address addr;
    memcpy(&addr, server.address.data(), sizeof addr);
    for (int fd = 3; fd < 256; ++fd) {
        sockaddr_in peer{};
        socklen_t len = sizeof peer;
        if (getpeername(fd, reinterpret_cast<sockaddr *>(&peer), &len) == 0 && peer.sin_port == addr.at[0].port) shutdown(fd, SHUT_RDWR);
    }
}

}  // namespace

TEST_CASE("gets of every length and alignment bring the right bytes and no others") {
    MESSAGE("seed " << seed());
    std::mt19937 rng(seed());
    Side a, b;
    connect(a, b);
    const size_t most = 100 << 20;
    const std::string source = pattern(most, seed());
    Registered reg(b, source.data(), source.size());
    mpx_rkey_h rkey = unpack(a, reg.packed);
    std::string dest(most + 64, '\0');
    std::vector<size_t> lengths = {0, 1, 7, 8, 9, 262143, 262144, 262145, most};
    for (int i = 0; i < 40; ++i) lengths.push_back(rng() % (size_t{1} << (rng() % 23)));
    for (const size_t len : lengths) {
        CAPTURE(len);
        const size_t offset = rng() % (most - len + 1), shift = rng() % 32;
        memset(dest.data(), '.', std::min(dest.size(), len + 64));
        CHECK(get(a, b, rkey, source.data() + offset, dest.data() + shift, len) == MPX_OK);
        CHECK(memcmp(dest.data() + shift, source.data() + offset, len) == 0);
        CHECK(dest.substr(0, shift) == std::string(shift, '.'));
        CHECK(dest.substr(shift + len, 32) == std::string(32, '.'));
    }
    table().rkey_release(a.domain, rkey);
}

TEST_CASE("many gets at once, scattered, with messages between them both ways") {
    MESSAGE("seed " << seed());
    std::mt19937 rng(seed());
    Side a, b;
    connect(a, b);
    const std::string source = pattern(8 << 20, 5);
    Registered ra(a, source.data(), source.size()), rb(b, source.data(), source.size());
    Side *sides[2] = {&a, &b};
    mpx_rkey_h keys[2] = {unpack(a, rb.packed), unpack(b, ra.packed)};
    struct Op {
        Done done;
        std::string dest;
        size_t offset;
    };
    std::vector<std::unique_ptr<Op>> ops;
    uint64_t sent[2] = {}, posted = 0;
    size_t order_errors = 0;
    uint64_t seen[2] = {};
    for (int i = 0; i < 2; ++i)
        sides[i]->on_message = [&, i](const Message &m) {
            order_errors += memcmp(m.hdr.data(), &seen[i], 8) != 0 || m.data != pattern(m.data.size(), static_cast<unsigned>(seen[i]));
            ++seen[i];
        };
    for (int step = 0; step < 4000; ++step) {
        const int i = static_cast<int>(rng() % 2);
        Side &s = *sides[i];
        mpx_ep *ep = s.ep_of(*sides[1 - i]);
        if (rng() % 3) {
            if (s.send(ep, 1, sent[i], pattern(rng() % 3000, static_cast<unsigned>(sent[i]))) == MPX_OK) ++sent[i];
        } else {
            auto op = std::make_unique<Op>();
            const size_t len = rng() % (size_t{1} << (rng() % 20));
            op->dest.assign(len, '.');
            op->offset = rng() % (source.size() - len);
            mpx_iov iov[5];
            size_t at = 0;
            for (auto &v : iov) {
                const size_t n = &v == &iov[4] ? len - at : rng() % (len - at + 1);
                v = {op->dest.data() + at, n, nullptr};
                at += n;
            }
            if (s.iface->ops->get_zcopy(ep, iov, 5, address_of(source.data() + op->offset), keys[i], &op->done) == MPX_INPROGRESS) {
                ops.push_back(std::move(op));
                ++posted;
            }
        }
        if (rng() % 4 == 0) sides[rng() % 2]->progress();
    }
    CHECK(until({&a, &b}, [&] {
        for (auto &op : ops)
            if (!op->done.calls) return false;
        return seen[0] == sent[1] && seen[1] == sent[0];
    }));
    CHECK(posted > 300);
    CHECK(order_errors == 0);
    for (auto &op : ops) {
        CHECK(op->done.calls == 1);
        CHECK(op->done.status == MPX_OK);
        CHECK(memcmp(op->dest.data(), source.data() + op->offset, op->dest.size()) == 0);
    }
    for (int i = 0; i < 2; ++i) table().rkey_release(sides[i]->domain, keys[i]);
}

TEST_CASE("a get that its key does not cover reads nothing; the link lives on") {
    Side a, b;
    connect(a, b);
    const std::string source = pattern(1000, 1);
    std::string dest(2000, '.');
    Registered reg(b, source.data(), source.size()), local(b, source.data(), source.size(), MPX_ACCESS_LOCAL);
    mpx_rkey_h rkey = unpack(a, reg.packed);
    CHECK(get(a, b, rkey, source.data(), dest.data(), 1001) == MPX_ERR_INVALID);
    CHECK(get(a, b, rkey, source.data() - 1, dest.data(), 1) == MPX_ERR_INVALID);
    CHECK(get(a, b, rkey, source.data() + 1001, dest.data(), 0) == MPX_ERR_INVALID);
    CHECK(get(a, b, rkey, reinterpret_cast<void *>(UINTPTR_MAX - 8), dest.data(), 16) == MPX_ERR_INVALID);
    mpx_rkey_h unreadable = unpack(a, local.packed);
    CHECK(get(a, b, unreadable, source.data(), dest.data(), 1) == MPX_ERR_INVALID);
    std::string forged = reg.packed;
    forged.back() = static_cast<char>(forged.back() ^ 1);
    mpx_rkey_h forged_key = unpack(a, forged);
    CHECK(get(a, b, forged_key, source.data(), dest.data(), 1) == MPX_ERR_INVALID);
    forged = reg.packed;
    forged[6] = 100;  // a slot that does not exist
    mpx_rkey_h no_slot = unpack(a, forged);
    CHECK(get(a, b, no_slot, source.data(), dest.data(), 1) == MPX_ERR_INVALID);
    CHECK(get(a, b, rkey, source.data() + 1000, dest.data(), 0) == MPX_OK);  // at the end, empty
    reg.drop();
    CHECK(get(a, b, rkey, source.data(), dest.data(), 1) == MPX_ERR_INVALID);
    Registered next(b, source.data(), source.size());  // the slot's next user does not answer to the old key
    CHECK(get(a, b, rkey, source.data(), dest.data(), 1) == MPX_ERR_INVALID);
    CHECK(dest == std::string(2000, '.'));
    CHECK(a.errors.empty());
    for (mpx_rkey_h k : {rkey, unreadable, forged_key, no_slot}) table().rkey_release(a.domain, k);
    void *addr = nullptr;
    mpx_mem_h mem = nullptr;
    CHECK(table().mem_reg(a.domain, dest.data(), 1, MPX_MEM_HOST, MPX_ACCESS_REMOTE_WRITE, &mem) == MPX_ERR_UNSUPPORTED);
    REQUIRE(table().mem_alloc(b.domain, 4096, &addr, &mem) == MPX_OK);
    memset(addr, 'm', 4096);
    std::string packed(b.attr().rkey_packed_len, '\0');
    REQUIRE(table().rkey_pack(b.domain, mem, packed.data(), packed.size()) == MPX_OK);
    rkey = unpack(a, packed);
    CHECK(get(a, b, rkey, addr, dest.data(), 1500) == MPX_OK);
    CHECK(dest.substr(0, 1500) == std::string(1500, 'm'));
    table().rkey_release(a.domain, rkey);
    table().mem_free(b.domain, addr, mem);
}

TEST_CASE("memory withdrawn while it is streamed is not read again; the get fails, the link lives") {
    Side a, b;
    connect(a, b);
    const size_t len = 64 << 20;
    auto *source = static_cast<char *>(mmap(nullptr, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    memset(source, 's', len);
    Registered reg(b, source, len);
    mpx_rkey_h rkey = unpack(a, reg.packed);
    std::string dest(len, '.'), second(100, '.');
    Done first, behind;
    const mpx_iov iov{dest.data(), len, nullptr}, iov2{second.data(), second.size(), nullptr};
    REQUIRE(a.iface->ops->get_zcopy(a.ep_of(b), &iov, 1, address_of(source), rkey, &first) == MPX_INPROGRESS);
    REQUIRE(a.iface->ops->get_zcopy(a.ep_of(b), &iov2, 1, address_of(source), rkey, &behind) == MPX_INPROGRESS);
    REQUIRE(until({&b}, [&] { return table().iface_bytes(b.iface, 0) > 600000; }));  // a does not read: b's socket is full, mid-piece
    reg.drop();
    munmap(source, len);  // a read of it from here on would kill this process
    CHECK(until({&a, &b}, [&] { return first.calls && behind.calls; }));
    CHECK(first.calls == 1);
    CHECK(first.status == MPX_ERR_INVALID);
    CHECK(behind.status == MPX_ERR_INVALID);
    CHECK(dest[0] == 's');
    CHECK(dest[len - 1] == '.');
    CHECK(a.send(a.ep_of(b), 1, 0, "still here") == MPX_OK);
    CHECK(until({&a, &b}, [&] { return b.inbox.size() == 1; }));
    CHECK(a.errors.empty());
    table().rkey_release(a.domain, rkey);
}

TEST_CASE("a small message is not stuck behind a long get") {
    Side a, b;
    connect(a, b);
    const std::string source(64 << 20, 's');
    Registered reg(b, source.data(), source.size());
    mpx_rkey_h rkey = unpack(a, reg.packed);
    std::string dest(source.size(), '.'), text(60000, 't');
    Done get_done, am_done;
    const mpx_iov iov{dest.data(), dest.size(), nullptr};
    REQUIRE(a.iface->ops->get_zcopy(a.ep_of(b), &iov, 1, address_of(source.data()), rkey, &get_done) == MPX_INPROGRESS);
    REQUIRE(until({&b}, [&] { return table().iface_bytes(b.iface, 0) > 600000; }));
    CHECK(b.send(b.ep_of(a), 1, 0, "small") == MPX_OK);  // into the buffer, behind the piece in progress
    const mpx_iov am{text.data(), text.size(), nullptr};
    CHECK(b.iface->ops->am_zcopy(b.ep_of(a), 2, nullptr, 0, &am, 1, &am_done) == MPX_ERR_NO_RESOURCE);
    uint64_t at_small = 0;
    a.on_message = [&](const Message &) { at_small = at_small ? at_small : table().iface_bytes(b.iface, 0); };
    mpx_status st = MPX_ERR_NO_RESOURCE;
    CHECK(until({&a, &b}, [&] {
        if (st == MPX_ERR_NO_RESOURCE) st = b.iface->ops->am_zcopy(b.ep_of(a), 2, nullptr, 0, &am, 1, &am_done);
        return get_done.calls && st != MPX_ERR_NO_RESOURCE;
    }));
    CHECK(st >= MPX_OK);
    CHECK(get_done.status == MPX_OK);
    CHECK(at_small > 0);
    CHECK(at_small < source.size() / 2);
    CHECK(dest == source);
    table().rkey_release(a.domain, rkey);
}

TEST_CASE("a cut link: one error, every completion with it, then the same error for all") {
    Side a, b;
    connect(a, b);
    const std::string source(32 << 20, 's');
    Registered reg(b, source.data(), source.size());
    mpx_rkey_h rkey = unpack(a, reg.packed);
    std::string dest(source.size(), '.');
    Done gets[3], am, flushed;
    mpx_ep *ep = a.ep_of(b);
    const mpx_iov iov{dest.data(), dest.size(), nullptr};
    for (Done &g : gets) REQUIRE(a.iface->ops->get_zcopy(ep, &iov, 1, address_of(source.data()), rkey, &g) == MPX_INPROGRESS);
    const std::string text(60000, 't');
    const mpx_iov am_iov{const_cast<char *>(text.data()), text.size(), nullptr};
    mpx_status st;
    do st = a.iface->ops->am_zcopy(ep, 1, nullptr, 0, &am_iov, 1, &am);
    while (st == MPX_OK);
    REQUIRE(st == MPX_INPROGRESS);
    REQUIRE(a.iface->ops->ep_flush(ep, &flushed) == MPX_INPROGRESS);
    cut(b);
    CHECK(until({&a}, [&] { return a.errors.size() == 1; }));
    for (Done &g : gets) CHECK(g.status == MPX_ERR_LINK_BROKEN);
    CHECK(am.status == MPX_ERR_LINK_BROKEN);
    CHECK(flushed.status == MPX_ERR_LINK_BROKEN);
    CHECK(until({&a, &b}, [&] { return b.errors.size() == 1; }));
    for (int i = 0; i < 1000; ++i) a.progress(), b.progress();
    for (Done &g : gets) CHECK(g.calls == 1);
    CHECK(am.calls == 1);
    CHECK(flushed.calls == 1);
    CHECK(a.errors.size() == 1);
    CHECK(b.errors.size() == 1);
    CHECK(a.send(ep, 1, 0, "x") == MPX_ERR_LINK_BROKEN);
    CHECK(a.iface->ops->get_zcopy(ep, &iov, 1, address_of(source.data()), rkey, &gets[0]) == MPX_ERR_LINK_BROKEN);
    CHECK(a.iface->ops->ep_flush(ep, &flushed) == MPX_ERR_LINK_BROKEN);
    table().rkey_release(a.domain, rkey);
}

TEST_CASE("after a fence no late byte lands; the completions follow in progress") {
    Side a, b;
    connect(a, b);
    const std::string source(4 << 20, 's');
    Registered reg(b, source.data(), source.size());
    mpx_rkey_h rkey = unpack(a, reg.packed);
    std::string dest(source.size(), '.');
    Done done;
    mpx_ep *ep = a.ep_of(b);
    const mpx_iov iov{dest.data(), dest.size(), nullptr};
    REQUIRE(a.iface->ops->get_zcopy(ep, &iov, 1, address_of(source.data()), rkey, &done) == MPX_INPROGRESS);
    REQUIRE(b.send(b.ep_of(a), 1, 0, "late") == MPX_OK);
    REQUIRE(until({&b}, [&] { return table().iface_bytes(b.iface, 0) > 600000; }));  // all of it waits in a's socket
    CHECK(table().ep_fence_off(ep) == MPX_OK);
    CHECK(done.calls == 0);
    CHECK(until({&a}, [&] { return a.errors.size() == 1; }));
    CHECK(done.calls == 1);
    CHECK(done.status == MPX_ERR_LINK_BROKEN);
    CHECK(dest == std::string(dest.size(), '.'));
    CHECK(a.inbox.empty());
    CHECK(table().ep_fence_off(ep) == MPX_OK);
    CHECK(a.errors.size() == 1);
    table().rkey_release(a.domain, rkey);
}

TEST_CASE("an ep destroyed with operations in flight completes them once, canceled, and frees their buffers") {
    Side a, b;
    connect(a, b);
    const std::string source(8 << 20, 's');
    Registered reg(b, source.data(), source.size());
    mpx_rkey_h rkey = unpack(a, reg.packed);
    Done get_done, am;
    mpx_ep *ep = a.ep_of(b);
    {
        std::string dest(source.size(), '.'), text(60000, 't');
        const mpx_iov iov{dest.data(), dest.size(), nullptr}, am_iov{text.data(), text.size(), nullptr};
        REQUIRE(a.iface->ops->get_zcopy(ep, &iov, 1, address_of(source.data()), rkey, &get_done) == MPX_INPROGRESS);
        REQUIRE(until({&b}, [&] { return table().iface_bytes(b.iface, 0) > 300000; }));
        while (table().iface_bytes(a.iface, 1) < 200000) a.progress();  // part of it has arrived
        mpx_status st;
        do st = a.iface->ops->am_zcopy(ep, 1, nullptr, 0, &am_iov, 1, &am);
        while (st == MPX_OK);
        REQUIRE(st == MPX_INPROGRESS);
        a.destroy(ep);
        CHECK(get_done.calls == 1);
        CHECK(get_done.status == MPX_ERR_CANCELED);
        CHECK(am.calls == 1);
        CHECK(am.status == MPX_ERR_CANCELED);
    }  // the buffers are gone; the sanitizer watches
    CHECK(until({&a, &b}, [&] { return b.errors.size() == 1; }));
    for (const Message &m : b.inbox) CHECK(m.data == std::string(60000, 't'));
    CHECK(get_done.calls == 1);
    CHECK(am.calls == 1);
    table().rkey_release(a.domain, rkey);
}
