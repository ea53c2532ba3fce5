// Decoding schedules and walking them. See schedule.h.
#include "schedule.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "engine.h"

namespace mpx {

struct Execution {
    Schedule *schedule = nullptr;
    Binding binding;
    Request *request = nullptr;
    std::vector<uint32_t> waiting_for;  // dependencies left, per vertex
    std::vector<uint32_t> ready;
    std::vector<bool> started;
    std::unique_ptr<char, decltype(&std::free)> temporary{nullptr, &std::free};
    Engine *engine = nullptr;
    List<Request, &Request::sibling> requests;  // of vertices that run
    uint32_t running = 0;                       // started, not ended
    uint32_t ended = 0;
    bool advancing = false;
    Error error = Error::kNone;
    Status first_bad;
    Execution *next_idle = nullptr;

    char *at(int8_t buffer, int64_t offset) const {
        switch (buffer) {
            case Schedule::kSendBuffer: return const_cast<char *>(static_cast<const char *>(binding.send_buffer)) + offset;
            case Schedule::kReceiveBuffer: return static_cast<char *>(binding.receive_buffer) + offset;
            case Schedule::kTemporary: return temporary.get() + offset;
            default: return nullptr;  // an empty message
        }
    }
};

std::unique_ptr<Schedule> Schedule::decode(const int64_t *words, size_t count) {
    constexpr size_t kHeader = 3, kRecord = 10;
    const auto bad = [](const char *what) { throw std::invalid_argument(std::string("not a schedule: ") + what); };
    if (count < kHeader || words[0] < 0 || words[2] < 0) bad("header");
    const auto n = static_cast<size_t>(words[0]), edges = static_cast<size_t>(words[2]);
    if (words[1] < 0 || n > count / kRecord || edges > count || count != kHeader + n * kRecord + edges) bad("length");
    auto s = std::make_unique<Schedule>();
    s->temporary_bytes = static_cast<uint64_t>(words[1]);
    s->vertices.resize(n);
    s->dependencies.resize(n);
    const int64_t *edge = words + kHeader + n * kRecord;
    std::vector<std::vector<uint32_t>> after(n);
    for (size_t i = 0; i < n; i++) {
        const int64_t *w = words + kHeader + i * kRecord;
        if (w[0] < 0 || w[0] > kCopy || w[2] < 0 || w[2] > 255 || w[7] < 0 || w[8] < 0 || w[9] < 0) bad("vertex");
        if (static_cast<size_t>(w[8]) > edges || static_cast<size_t>(w[9]) > edges - static_cast<size_t>(w[8])) bad("dependencies");
        const auto place = [&](int64_t buffer, int64_t offset, int64_t first_buffer) {
            if (buffer == -1 && w[7] == 0) return;  // an empty message needs no place
            if (buffer < first_buffer || buffer > kTemporary || offset < 0) bad("place");
            if (buffer == kTemporary && (offset > words[1] || w[7] > words[1] - offset)) bad("a place beyond temporary memory");
        };
        if (w[0] != kRecv) place(w[3], w[4], kSendBuffer);
        if (w[0] != kSend) place(w[5], w[6], kReceiveBuffer);
        if (w[0] <= kRecv && (w[1] < 0 || w[1] > INT32_MAX)) bad("peer");
        s->vertices[i] = {static_cast<Kind>(w[0]),
                          static_cast<uint8_t>(w[2]),
                          static_cast<int8_t>(w[3]),
                          static_cast<int8_t>(w[5]),
                          static_cast<int32_t>(w[1]),
                          0,
                          0,
                          w[4],
                          w[6],
                          static_cast<uint64_t>(w[7])};
        s->dependencies[i] = static_cast<uint32_t>(w[9]);
        for (int64_t k = 0; k < w[9]; k++) {
            const int64_t d = edge[w[8] + k];
            if (d < 0 || static_cast<size_t>(d) >= i) bad("a dependency must name an earlier vertex");
            after[d].push_back(static_cast<uint32_t>(i));
        }
        if (w[9] == 0) s->roots.push_back(static_cast<uint32_t>(i));
    }
    for (size_t i = 0; i < n; i++) {
        s->vertices[i].first_successor = static_cast<uint32_t>(s->successors.size());
        s->vertices[i].successors = static_cast<uint32_t>(after[i].size());
        s->successors.insert(s->successors.end(), after[i].begin(), after[i].end());
    }
    return s;
}

Schedule::~Schedule() {
    while (Execution *x = idle_) {
        idle_ = x->next_idle;
        delete x;
    }
}

Request *Engine::start(Schedule &schedule, const Binding &binding) {
    Locked locked(*this);
    return start_locked(schedule, binding);
}

Request *Engine::try_start(Schedule &schedule, const Binding &binding, int polls) {
    std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock) return nullptr;
    Request *r = start_locked(schedule, binding);
    for (int i = 0; i < polls && !r->done.load(std::memory_order_relaxed) && parked_.empty(); i++) progress_locked();
    return r;
}

Request *Engine::start_locked(Schedule &schedule, const Binding &binding) {
    Request *r = allocate(Kind::kSchedule);
    Execution *x = schedule.idle_;
    if (x) schedule.idle_ = x->next_idle;
    else x = new Execution;
    x->schedule = &schedule;
    x->binding = binding;
    x->request = r;
    x->engine = this;
    x->waiting_for = schedule.dependencies;
    x->ready.assign(schedule.roots.rbegin(), schedule.roots.rend());
    x->started.assign(schedule.vertices.size(), false);
    x->running = x->ended = 0;
    x->error = Error::kNone;
    x->first_bad = {};
    if (schedule.temporary_bytes && !x->temporary) {
        x->temporary.reset(static_cast<char *>(std::aligned_alloc(64, (schedule.temporary_bytes + 63) / 64 * 64)));
        if (!x->temporary) {
            x->error = Error::kNoMemory;
            x->ready.clear();
        }
    }
    advance(*x);
    return r;
}

// Runs what is ready. Vertices may end inside run_vertex; then this same loop goes on with their successors.
void Engine::advance(Execution &x) {
    if (x.advancing) return;
    x.advancing = true;
    while (!x.ready.empty()) {
        const uint32_t vertex = x.ready.back();
        x.ready.pop_back();
        x.running++;
        x.started[vertex] = true;
        run_vertex(x, vertex);
    }
    x.advancing = false;
    if (x.running == 0) finish(x);
}

void Engine::run_vertex(Execution &x, uint32_t index) {
    const Schedule::Vertex &v = x.schedule->vertices[index];
    const Binding &b = x.binding;
    switch (v.kind) {
        case Schedule::kSend: {
            const int32_t rank = b.world[v.peer];
            const void *from = x.at(v.source_buffer, v.source_offset);
            if (!any_revoked() && send_now(peers_[rank], match_word(b.context, b.tag + v.slot), from, v.bytes))
                return vertex_ended(x, index, Error::kNone);
            Request *r = isend_locked(b.context, rank, b.tag + v.slot, from, v.bytes, SendMode::kStandard);
            if (r->done.load(std::memory_order_relaxed)) {
                const Error error = r->status.error;
                if (error != Error::kNone) x.first_bad = r->status;
                requests_.give_back(r);
                return vertex_ended(x, index, error);
            }
            r->owner = &x;
            r->vertex = index;
            r->on_done = on_vertex_done;
            x.requests.push_back(r);
            return;
        }
        case Schedule::kRecv: {
            Request *r =
                irecv_locked(b.context, b.world[v.peer], b.tag + v.slot, x.at(v.destination_buffer, v.destination_offset), v.bytes, false);
            r->owner = &x;
            r->vertex = index;
            x.requests.push_back(r);
            if (r->done.load(std::memory_order_relaxed)) return on_vertex_done(r);
            r->on_done = on_vertex_done;
            return;
        }
        case Schedule::kReduce: {
            const void *in = x.at(v.source_buffer, v.source_offset);
            void *inout = x.at(v.destination_buffer, v.destination_offset);
            if (b.python_op) {
                parked_.push_back({&x, index, b.python_op, in, inout, v.bytes});
                wake_sleepers();
                tell(kEverybody);
                return;
            }
            b.reduce(in, inout, v.bytes / b.element_size);
            return vertex_ended(x, index, Error::kNone);
        }
        case Schedule::kCopy:
            if (v.bytes) std::memmove(x.at(v.destination_buffer, v.destination_offset), x.at(v.source_buffer, v.source_offset), v.bytes);
            return vertex_ended(x, index, Error::kNone);
    }
}

void Engine::on_vertex_done(Request *r) {
    Execution &x = *static_cast<Execution *>(r->owner);
    const uint32_t vertex = r->vertex;
    const Error error = r->status.error;
    if (error != Error::kNone && x.error == Error::kNone) x.first_bad = r->status;
    x.requests.remove(r);
    x.engine->requests_.give_back(r);
    x.engine->vertex_ended(x, vertex, error);
    x.engine->advance(x);
}

// After an error nothing new starts and receives are withdrawn: their senders may have given up too. What still runs then holds the
// buffers, so the request is not done yet, but it is failed.
void Engine::vertex_ended(Execution &x, uint32_t vertex, Error error) {
    x.running--;
    x.ended++;
    if (error != Error::kNone && x.error == Error::kNone) {
        x.error = error;
        x.ready.clear();
        x.request->status = x.first_bad;
        x.request->status.error = error;
        withdraw_receives(x);
        tell_successors(x);
        x.request->failed.store(true, std::memory_order_release);
        wake_sleepers();
        tell(kEverybody);
    }
    if (x.error != Error::kNone) return;
    const Schedule::Vertex &v = x.schedule->vertices[vertex];
    for (uint32_t i = 0; i < v.successors; i++) {
        const uint32_t next = x.schedule->successors[v.first_successor + i];
        if (--x.waiting_for[next] == 0) x.ready.push_back(next);
    }
}

void Engine::withdraw_receives(Execution &x) {
    for (Request *r = x.requests.front(), *next; r; r = next) {
        next = decltype(x.requests)::next(r);
        if (r->stage != Stage::kPosted) continue;
        queue_of(r->context).withdraw(r);
        x.requests.remove(r);
        r->stage = Stage::kIdle;
        requests_.give_back(r);
        x.running--;
    }
}

// Ranks that wait for what we shall never send must not wait for ever.
void Engine::tell_successors(Execution &x) {
    const Binding &b = x.binding;
    for (size_t i = 0; i < x.started.size(); i++) {
        const Schedule::Vertex &v = x.schedule->vertices[i];
        if (v.kind != Schedule::kSend || x.started[i]) continue;
        Peer &p = peers_[b.world[v.peer]];
        if (p.doomed) continue;  // it hears why from who raised; from us it would hear less, and perhaps sooner
        open_ep(p);
        const CtsHeader failed_rank{static_cast<uint64_t>(x.first_bad.source), 0, 0};
        send_control(p, kAmGivenUp, match_word(b.context, b.tag + v.slot), &failed_rank);
    }
}

void Engine::finish(Execution &x) {
    Request *r = x.request;
    if (x.error != Error::kNone) r->status = x.first_bad;
    const Error error = x.error;
    x.next_idle = x.schedule->idle_;
    x.schedule->idle_ = &x;
    complete(r, error);
}

bool Engine::take_parked(Parked *out) {
    Locked locked(*this);
    if (parked_.empty()) return false;
    *out = parked_.back();
    parked_.pop_back();
    return true;
}

void Engine::finish_parked(const Parked &work, bool ok) {
    Locked locked(*this);
    vertex_ended(*work.execution, work.vertex, ok ? Error::kNone : Error::kReduceFailed);
    advance(*work.execution);
}

}  // namespace mpx
