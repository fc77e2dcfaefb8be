// The scheduler of emulated blocks, and guarded memory. A test tool, not a backend.
//
// Blocks run one by one in an order drawn from a seed; each CUDA thread is a fiber. Within a block, warps and the lanes of
// a warp run in drawn orders, anew after every barrier, each until it waits or ends. So a missing barrier shows as NaN
// (shared memory begins as NaN) or as a result that depends on the seed. Waiting at different lines, or where others have
// ended, stops the program with a message, as does an access outside the arena. In a sanitized build (see build.rs) so
// does one outside the regions that the operation named, inside the arena too.

#include "cuda.h"

#include <csignal>
#include <cstdio>
#include <memory>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// Elsewhere than on x86-64, or where a build asks for it (CXXFLAGS=-DINNERLOOP_UCONTEXT), by the C library's slower means.
#if !defined(__x86_64__) || defined(INNERLOOP_UCONTEXT)
#define UCONTEXT
#include <ucontext.h>
#endif

namespace emulation {

__thread Thread* current;
__thread Dim block_index, grid_size;

namespace {

#ifdef __SANITIZE_ADDRESS__
constexpr bool SANITIZED = true;
constexpr size_t STACK = 256 << 10;
void forbid(const void* memory, size_t bytes) { __asan_poison_memory_region(memory, bytes); }
void allow(const void* memory, size_t bytes) { __asan_unpoison_memory_region(memory, bytes); }
// Around every switch: the stack that is left, and the one that is entered.
void leave(void** left, const void* stack, size_t bytes) { __sanitizer_start_switch_fiber(left, stack, bytes); }
void arrive(void* left, const void** from, size_t* bytes) { __sanitizer_finish_switch_fiber(left, from, bytes); }
#else
constexpr bool SANITIZED = false;
constexpr size_t STACK = 64 << 10;
void forbid(const void*, size_t) {}
void allow(const void*, size_t) {}
void leave(void**, const void*, size_t) {}
void arrive(void*, const void**, size_t*) {}
#endif

constexpr unsigned WARP = 32;
constexpr size_t OUTERMOST = 4 << 10;
constexpr unsigned char CANARY = 0xA5;

[[noreturn]] void fail(const char* what, const char* file, int line);

#ifndef UCONTEXT
using Place = void*;
// Saves the callee-saved registers and the stack in `*from`, and goes on at `to`.
extern "C" void innerloop_switch(Place* from, Place to);
asm(R"(
.text
.globl innerloop_switch
.hidden innerloop_switch
.type innerloop_switch, @function
innerloop_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size innerloop_switch, .-innerloop_switch
)");
void go(Place* from, Place* to) { innerloop_switch(from, *to); }
void prepare(Place* place, char* stack, void (*entry)()) {
    void** top = reinterpret_cast<void**>(stack + STACK);
    // Seven words below a 16-byte boundary: `ret` takes `entry` and leaves the stack as a call would.
    top -= 2;
    *top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    *place = top;
}
#else
using Place = ucontext_t;
void go(Place* from, Place* to) { swapcontext(from, to); }
void prepare(Place* place, char* stack, void (*entry)()) {
    getcontext(place);
    place->uc_stack.ss_sp = stack;
    place->uc_stack.ss_size = STACK;
    place->uc_link = nullptr;
    makecontext(place, entry, 0);
}
#endif

enum class State { Ready, Barrier, Exchange, Until, Ended };

// One that has yet to arrive.
struct Copy {
    void* to;
    const void* from;
    size_t bytes;
    bool inside;
    unsigned group;
};

// Of a thread, or beside the threads.
struct Work {
    std::function<void()> work;
    unsigned group;
};

struct Fiber {
    Thread thread;
    Place place;
    std::unique_ptr<char[]> stack{new char[STACK]};
    // What the sanitizer keeps while another stack runs.
    void* left = nullptr;
    State state;
    // Where it waits.
    const char* file;
    int line;
    // Handed to the warp: two, so that a quick lane's next value does not overwrite what a slow one has yet to read.
    Words words[2];
    unsigned exchanges;
    std::vector<Copy> copies;
    // Groups of copies that have ended.
    unsigned groups;
    std::vector<Work> works;
    unsigned work_groups;
    // What it waits for.
    bool (*ready)(const void*, unsigned);
    const void* what;
    unsigned value;
};

struct Allocation {
    std::unique_ptr<char[]> bytes;
    size_t size;
};
// Around shared memory: wide enough for an index that is off by a whole tile.
constexpr size_t GUARD = 1024;

// What one operating-system thread runs.
struct Scheduler {
    const char* kernel = "";
    std::vector<std::unique_ptr<Fiber>> fibers;
    std::vector<Allocation> shared;
    std::vector<Work> beside;
    Place main;
    void* main_left = nullptr;
    const void* main_stack = nullptr;
    size_t main_bytes = 0;
    Fiber* running = nullptr;
    void (*body)(void*) = nullptr;
    void* context = nullptr;
    uint64_t random = 0;
    // Shared memory that the launch has asked for.
    size_t launched_bytes = 0;

    // SplitMix64 (Steele et al. 2014).
    uint64_t draw() {
        uint64_t z = random += 0x9e3779b97f4a7c15;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
        z = (z ^ z >> 27) * 0x94d049bb133111eb;
        return z ^ z >> 31;
    }

    std::vector<unsigned> order(unsigned count) {
        std::vector<unsigned> order(count);
        for (unsigned i = 0; i < count; ++i) {
            unsigned j = draw() % (i + 1);
            order[i] = order[j];
            order[j] = i;
        }
        return order;
    }

    void resume(Fiber& fiber) {
        running = &fiber;
        current = &fiber.thread;
        leave(&main_left, fiber.stack.get(), STACK);
        go(&main, &fiber.place);
        arrive(main_left, nullptr, nullptr);
    }

    void wait(State state, const char* file, int line) {
        running->state = state;
        running->file = file;
        running->line = line;
        leave(&running->left, main_stack, main_bytes);
        go(&running->place, &main);
        arrive(running->left, &main_stack, &main_bytes);
    }

    // All of `count` fibers wait in `state` at one line, or none does.
    bool together(unsigned first, unsigned count, State state) {
        const Fiber* waiting = nullptr;
        for (unsigned i = first; i < first + count; ++i) {
            if (fibers[i]->state == state) waiting = fibers[i].get();
        }
        if (!waiting) return false;
        for (unsigned i = first; i < first + count; ++i) {
            const Fiber& other = *fibers[i];
            if (other.state != state || other.file != waiting->file || other.line != waiting->line) {
                fail("some threads wait here and others do not", waiting->file, waiting->line);
            }
        }
        for (unsigned i = first; i < first + count; ++i) fibers[i]->state = State::Ready;
        return true;
    }

    // Whether a thread can go on that waited for something to become so.
    bool wake(unsigned threads) {
        bool woken = false;
        for (unsigned i = 0; i < threads; ++i) {
            Fiber& fiber = *fibers[i];
            if (fiber.state != State::Until || !fiber.ready(fiber.what, fiber.value)) continue;
            fiber.state = State::Ready;
            woken = true;
        }
        return woken;
    }

    // Does one of the things beside the threads, if there is any.
    bool do_beside() {
        if (beside.empty()) return false;
        std::swap(beside[draw() % beside.size()], beside.back());
        Work next = std::move(beside.back());
        beside.pop_back();
        next.work();
        return true;
    }

    void run_block(unsigned threads);
};

thread_local Scheduler own;
// The same, without asking whether it has been made, which every access of the other does.
__thread Scheduler* scheduler;

[[noreturn]] void fail(const char* what, const char* file, int line) {
    fprintf(stderr, "emulated kernel %s, block (%u, %u, %u): %s (%s:%d)\n", scheduler->kernel, block_index.x,
            block_index.y, block_index.z, what, file, line);
    abort();
}

void enter() {
    arrive(nullptr, &scheduler->main_stack, &scheduler->main_bytes);
    for (;;) {
        scheduler->body(scheduler->context);
        scheduler->wait(State::Ended, "", 0);
    }
}

void Scheduler::run_block(unsigned threads) {
    for (Allocation& allocation : shared) std::memset(allocation.bytes.get() + GUARD, 0xff, allocation.size);
    for (unsigned i = 0; i < threads; ++i) {
        Fiber& fiber = *fibers[i];
        fiber.thread = {{i, 0, 0}, 0};
        fiber.state = State::Ready;
        fiber.exchanges = 0;
        fiber.copies.clear();
        fiber.groups = 0;
        fiber.works.clear();
        fiber.work_groups = 0;
        // What ended there has left its frames, but for the outermost, which never returns.
        allow(fiber.stack.get() + STACK - OUTERMOST, OUTERMOST);
        prepare(&fiber.place, fiber.stack.get(), enter);
    }
    do {
        for (unsigned warp : order(threads / WARP)) {
            do {
                for (unsigned lane : order(WARP)) {
                    Fiber& fiber = *fibers[warp * WARP + lane];
                    if (fiber.state == State::Ready) resume(fiber);
                }
            } while (together(warp * WARP, WARP, State::Exchange));
        }
    } while (wake(threads) || do_beside() || together(0, threads, State::Barrier));
    for (unsigned i = 0; i < threads; ++i) {
        const Fiber& fiber = *fibers[i];
        if (fiber.state == State::Until) fail("a thread waits for what nobody does", fiber.file, fiber.line);
        if (!fiber.works.empty()) fail("a thread ends before its products", "products", 0);
    }
    for (const Allocation& allocation : shared) {
        for (size_t i = 0; !SANITIZED && i < GUARD; ++i) {
            unsigned char before = allocation.bytes[i], after = allocation.bytes[GUARD + allocation.size + i];
            if (before != CANARY || after != CANARY) fail("wrote outside shared memory", "shared", 0);
        }
    }
}

void say_where(const char* what) {
    char text[200];
    int length = snprintf(text, sizeof text, "emulated kernel %s, block (%u, %u, %u), thread %u: %s\n", scheduler ? scheduler->kernel : "",
                          block_index.x, block_index.y, block_index.z, current ? current->thread.x : 0, what);
    (void)!write(2, text, length);
}

void on_fault(int number) {
    // Restoring the default first: the access faults again when this returns, and ends the program.
    signal(number, SIG_DFL);
    say_where(number == SIGILL ? "undefined behaviour" : "an access outside the arena");
}

}  // namespace

void launch(const char* kernel, const Launched& launched, unsigned threads, uint64_t seed, void (*body)(void*), void* context) {
    scheduler = &own;
    scheduler->kernel = kernel;
    if (launched.threads != threads) fail("launched with another number of threads a block", kernel, 0);
    scheduler->launched_bytes = launched.shared;
    const unsigned* grid = launched.grid;
    scheduler->body = body;
    scheduler->context = context;
    scheduler->random = seed;
    scheduler->shared.clear();
    while (scheduler->fibers.size() < threads) scheduler->fibers.push_back(std::make_unique<Fiber>());
    grid_size = {grid[0], grid[1], grid[2]};
    for (unsigned block : scheduler->order(grid[0] * grid[1] * grid[2])) {
        block_index = {block % grid[0], block / grid[0] % grid[1], block / grid[0] / grid[1]};
        scheduler->run_block(threads);
    }
}

void barrier(const char* file, int line) { scheduler->wait(State::Barrier, file, line); }

void hand(const Words& words, const char* file, int line) {
    Fiber& fiber = *scheduler->running;
    fiber.words[fiber.exchanges++ % 2] = words;
    scheduler->wait(State::Exchange, file, line);
}

UNCHECKED const Words& handed(unsigned lane) {
    const Fiber& fiber = *scheduler->running;
    return scheduler->fibers[fiber.thread.thread.x / WARP * WARP + lane]->words[(fiber.exchanges - 1) % 2];
}

void copy_later(void* to, const void* from, size_t bytes, bool inside, const char* file, int line) {
    if ((uintptr_t)to % bytes != 0 || (uintptr_t)from % bytes != 0) fail("a copy that is not aligned", file, line);
    std::memset(to, 0xff, bytes);
    Fiber& fiber = *scheduler->running;
    fiber.copies.push_back({to, from, bytes, inside, fiber.groups});
}

void end_copies() { ++scheduler->running->groups; }

void await_copies(unsigned pending) {
    Fiber& fiber = *scheduler->running;
    size_t arrived = 0;
    for (const Copy& copy : fiber.copies) {
        if (copy.group + pending >= fiber.groups) break;
        if (copy.inside) {
            std::memcpy(copy.to, copy.from, copy.bytes);
        } else {
            std::memset(copy.to, 0, copy.bytes);
        }
        ++arrived;
    }
    fiber.copies.erase(fiber.copies.begin(), fiber.copies.begin() + arrived);
}

void wait_until(bool (*ready)(const void*, unsigned), const void* what, unsigned value, const char* file, int line) {
    if (ready(what, value)) return;
    Fiber& fiber = *scheduler->running;
    fiber.ready = ready;
    fiber.what = what;
    fiber.value = value;
    scheduler->wait(State::Until, file, line);
}

void beside(std::function<void()> work, const char*, int) { scheduler->beside.push_back({std::move(work), 0}); }

void work_later(std::function<void()> work) {
    scheduler->running->works.push_back({std::move(work), scheduler->running->work_groups});
}

void end_work() { ++scheduler->running->work_groups; }

void await_work(unsigned pending) {
    Fiber& fiber = *scheduler->running;
    size_t done = 0;
    for (; done < fiber.works.size() && fiber.works[done].group + pending < fiber.work_groups; ++done) fiber.works[done].work();
    fiber.works.erase(fiber.works.begin(), fiber.works.begin() + done);
}

void mistaken(const char* what, const char* file, int line) { fail(what, file, line); }

// That of the first allocation begins behind what a device keeps for itself, at no multiple of 1024.
constexpr unsigned SHARED_BEGIN = 1024 + 16;

unsigned shared_address(const void* pointer) {
    const char* at = static_cast<const char*>(pointer);
    return SHARED_BEGIN + (unsigned)(at - (scheduler->shared[0].bytes.get() + GUARD));
}

UNCHECKED char* shared_bytes(unsigned address, size_t bytes, const char* file, int line) {
    const Allocation& allocation = scheduler->shared[0];
    if (address < SHARED_BEGIN || address + bytes > SHARED_BEGIN + allocation.size) {
        fail("an address outside shared memory", file, line);
    }
    return allocation.bytes.get() + GUARD + (address - SHARED_BEGIN);
}

void* shared_memory(size_t bytes) {
    size_t index = current->shared++;
    if (index == scheduler->shared.size()) {
        Allocation allocation{std::unique_ptr<char[]>(new char[bytes + 2 * GUARD]), bytes};
        std::memset(allocation.bytes.get(), CANARY, bytes + 2 * GUARD);
        std::memset(allocation.bytes.get() + GUARD, 0xff, bytes);
        forbid(allocation.bytes.get(), GUARD);
        forbid(allocation.bytes.get() + GUARD + bytes, GUARD);
        scheduler->shared.push_back(std::move(allocation));
    }
    return scheduler->shared[index].bytes.get() + GUARD;
}

void* launched_memory(size_t bytes, size_t least, const char* file, int line) {
    if (scheduler->launched_bytes < least) fail("launched with less shared memory", file, line);
    return shared_memory(bytes);
}

}  // namespace emulation

// Memory of the emulated driver: zeroed, its end right before a page that cannot be touched, and such a page before it.
extern "C" void* emulate_allocate(size_t bytes) {
    static const bool installed = [] {
        struct sigaction action = {};
        action.sa_handler = emulation::on_fault;
        action.sa_flags = SA_ONSTACK;
#ifdef __SANITIZE_ADDRESS__
        // The sanitizer reports before it ends the program.
        __asan_set_error_report_callback(
            [](const char*) { emulation::say_where("outside what the operation named, see above"); });
#endif
        return sigaction(SIGSEGV, &action, nullptr) == 0 && sigaction(SIGILL, &action, nullptr) == 0;
    }();
    size_t page = sysconf(_SC_PAGESIZE);
    size_t room = (bytes + page - 1) / page * page;
    void* base = mmap(nullptr, room + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED || !installed) return nullptr;
    char* inside = static_cast<char*>(base) + page;
    if (room > 0 && mprotect(inside, room, PROT_READ | PROT_WRITE) != 0) return nullptr;
    emulation::forbid(inside, room);
    return inside + room - bytes;
}

// In a sanitized build: whether these bytes may be accessed.
extern "C" void emulate_allow(void* memory, size_t bytes, bool allowed) {
    if (allowed) {
        emulation::allow(memory, bytes);
    } else {
        emulation::forbid(memory, bytes);
    }
}

extern "C" void emulate_free(void* memory, size_t bytes) {
    size_t page = sysconf(_SC_PAGESIZE);
    size_t room = (bytes + page - 1) / page * page;
    char* base = static_cast<char*>(memory) + bytes - room - page;
    emulation::allow(base, room + 2 * page);
    munmap(base, room + 2 * page);
}

#ifdef __SANITIZE_ADDRESS__
extern "C" const char* __asan_default_options() { return "detect_leaks=0:detect_stack_use_after_return=0"; }
#endif
