// What every kernel file begins with: the entry macro, and the argument structures that several families share.
//
// A kernel gets the arena and one structure by value; regions are offsets into the arena, in elements. Each structure has
// a twin in src/device/cuda/ with the same fields in the same order; the size is asserted on both sides.
#pragma once

#include <type_traits>

#ifdef INNERLOOP_EMULATE
#include "emulation/cuda.h"
#else
#define KERNEL(name, Arguments) \
    extern "C" __global__ void __launch_bounds__(THREADS) name(float* arena, const __grid_constant__ Arguments op)
#define SHARED(Type, name) __shared__ Type name
// As many numbers as the launch asks for, from a multiple of 16 bytes on.
#define SHARED_NUMBERS(name, count) extern __shared__ __align__(16) float name[]
// With other numbers of threads a block and of blocks a multiprocessor.
#define KERNEL_OF(name, Arguments, threads, blocks) \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(float* arena, const __grid_constant__ Arguments op)
// As clusters of so many blocks, where there are clusters.
#if __CUDA_ARCH__ >= 900
#define KERNEL_OF_TEAMS(name, Arguments, threads, blocks, team)                     \
    extern "C" __global__ void __launch_bounds__(threads, blocks) __cluster_dims__(team, 1, 1) \
        name(float* arena, const __grid_constant__ Arguments op)
#else
#define KERNEL_OF_TEAMS(name, Arguments, threads, blocks, team) KERNEL_OF(name, Arguments, threads, blocks)
#endif
// Of a size that the launch names, 1023 bytes beyond the type's; it begins at a multiple of 1024.
#define SHARED_FROM_1024(Type, name)             \
    extern __shared__ unsigned char name##_room[]; \
    Type& name = *(Type*)(name##_room + (-(u32)__cvta_generic_to_shared(name##_room) & 1023))
#endif

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// Threads a block, of every kernel that does not name others.
constexpr int THREADS = 128;
constexpr int WARPS = THREADS / 32;
// The offset of a region that is not there.
constexpr u64 NOWHERE = ~0ull;
// Blocks of rows (roles, see src/device/mod.rs) an operation may have.
constexpr int BLOCKS = 4;

// The activation whose derivative multiplies an output, and the block of its values for each output block.
struct Gate {
    u64 values;
    u32 activation;
    u32 block[BLOCKS];
    // Rows of all tasks in one block.
    u32 block_rows;

    // The row of the values that gates output row `row`.
    __device__ u64 row(u32 row) const { return (u64)block[row / block_rows] * block_rows + row % block_rows; }
};
static_assert(sizeof(Gate) == 32, "mirrored in Rust");
