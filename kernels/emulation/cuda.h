// CUDA on the CPU, for tests only: enough of the language for the kernels of this crate to compile as host C++ and run
// under a scheduler that looks for mistakes a GPU would hide (see emulation.cpp). It is slow, and no backend.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>

// Of what only this emulation does, with numbers that it has checked itself: with every access checked it would take most of the time.
#define UNCHECKED __attribute__((no_sanitize("address", "undefined")))

namespace emulation {

struct Dim {
    unsigned x, y, z;
};

struct Thread {
    Dim thread;
    // Shared memory this thread has named so far in this block: every thread names the same in the same order.
    size_t shared;
};

// Of the block that runs on this operating-system thread.
extern __thread Thread* current;
extern __thread Dim block_index, grid_size;

// Of a launch: the grid, threads a block, and bytes of shared memory beside what kernels declare.
struct Launched {
    unsigned grid[3];
    unsigned threads;
    unsigned shared;
};
// Runs `body` for every thread of every block; the kernel is for so many a block.
void launch(const char* kernel, const Launched& launched, unsigned threads, uint64_t seed, void (*body)(void*), void* context);
// Waits for every thread of the block at the same line.
void barrier(const char* file, int line);
struct Words {
    uint64_t word[3];
};
// Hands `words` to the warp, and waits until every lane has handed over its own.
void hand(const Words& words, const char* file, int line);
// What lane `lane` handed over last.
UNCHECKED const Words& handed(unsigned lane);
// A copy, or zeros, that arrives when the thread waits for the group of copies it belongs to; NaN until then.
void copy_later(void* to, const void* from, size_t bytes, bool inside, const char* file, int line);
// Ends a group of the thread's copies.
void end_copies();
// Waits for all but the last `pending` groups.
void await_copies(unsigned pending);
// Waits until `ready(what, value)`.
void wait_until(bool (*ready)(const void*, unsigned), const void* what, unsigned value, const char* file, int line);
// Something that happens beside the threads, in any order, and no sooner than when none of them can go on.
void beside(std::function<void()> work, const char* file, int line);
// Work of the thread's own that is done when it waits for the group it belongs to.
void work_later(std::function<void()> work);
void end_work();
void await_work(unsigned pending);
[[noreturn]] void mistaken(const char* what, const char* file, int line);
// The address in the block's shared memory, and what lies there.
unsigned shared_address(const void* pointer);
char* shared_bytes(unsigned address, size_t bytes, const char* file, int line);
// Shared memory of the block: the same address for every thread, NaN when the block begins.
void* shared_memory(size_t bytes);
// The same of what the launch has asked for, which is to be so much at least.
void* launched_memory(size_t bytes, size_t least, const char* file, int line);

// The value of another lane of the warp.
template <class T>
T shuffle(T value, unsigned lane, const char* file, int line) {
    Words words = {};
    std::memcpy(words.word, &value, sizeof value);
    hand(words, file, line);
    std::memcpy(&value, handed(lane % 32).word, sizeof value);
    return value;
}

}  // namespace emulation

#define __device__
#define __syncthreads() emulation::barrier(__FILE__, __LINE__)
#define __syncwarp() emulation::hand({}, __FILE__, __LINE__)
#define __shfl_sync(mask, value, lane) emulation::shuffle(value, lane, __FILE__, __LINE__)
#define __shfl_xor_sync(mask, value, lane) emulation::shuffle(value, (emulation::current->thread.x % 32) ^ (lane), __FILE__, __LINE__)
#define threadIdx (emulation::current->thread)
#define blockIdx (emulation::block_index)
#define gridDim (emulation::grid_size)

#define SHARED(Type, name) Type& name = *static_cast<Type*>(emulation::shared_memory(sizeof(Type)))

#define SHARED_NUMBERS(name, count) \
    float* name = static_cast<float*>(emulation::launched_memory((count) * sizeof(float), (count) * sizeof(float), __FILE__, __LINE__))

// A device's shared memory need not begin at a multiple of 1024 either.
#define SHARED_FROM_1024(Type, name)                                                                       \
    char* name##_room = static_cast<char*>(emulation::launched_memory(sizeof(Type) + 1024, sizeof(Type) + 1023, __FILE__, __LINE__)); \
    Type& name = *reinterpret_cast<Type*>(name##_room + (-emulation::shared_address(name##_room) & 1023))

#define KERNEL(name, Arguments) KERNEL_OF(name, Arguments, THREADS, 1)
// The kernel, and the entry the emulated driver calls.
#define KERNEL_OF(name, Arguments, threads, blocks)                                                                                       \
    static void name##_kernel(float* arena, const Arguments& op);                                                     \
    extern "C" void emulate_##name(float* arena, const void* op, const emulation::Launched* launched, uint64_t seed) { \
        struct Call {                                                                                                 \
            float* arena;                                                                                             \
            Arguments op;                                                                                             \
        } call = {arena, *static_cast<const Arguments*>(op)};                                                         \
        auto body = [](void* context) {                                                                               \
            Call* call = static_cast<Call*>(context);                                                                 \
            name##_kernel(call->arena, call->op);                                                                     \
        };                                                                                                            \
        emulation::launch(#name, *launched, threads, seed, body, &call);                                              \
    }                                                                                                                 \
    static void name##_kernel(float* arena, const Arguments& op)

// A block is alone.
#define KERNEL_OF_TEAMS(name, Arguments, threads, blocks, team) KERNEL_OF(name, Arguments, threads, blocks)

struct alignas(8) float2 {
    float x, y;
};

struct alignas(16) float4 {
    float x, y, z, w;
};

struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline void __stcs(float4* to, float4 value) { *to = value; }
template <class T>
T __ldcg(const T* from) {
    return *from;
}
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline unsigned atomicAdd(unsigned* to, unsigned value) { return __atomic_fetch_add(to, value, __ATOMIC_SEQ_CST); }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
