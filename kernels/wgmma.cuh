// What Hopper adds: tiles that an engine copies to shared memory, the barriers they arrive at, and products of a warpgroup (four
// warps, the first a multiple of four) that run on their own. For sm_90a alone; the emulation has its own (emulation/wgmma.h).
//
// A tile is 64 rows of 64 numbers of 16 bits, one row 128 bytes. In shared memory, at a multiple of 1024, the eight 16-byte
// pieces of row r lie permuted: piece c at c ^ r % 8. This is the 128-byte swizzle of copies and products alike.
//
// A product is D [64, N] += A [64, 16] B [N, 16]^T. With g = lane / 4, t = lane % 4 and w = warp % 4 a lane holds
//   d[4j + i] = D[16w + g + 8 (i / 2)][8j + 2t + i % 2],
// and of A, where that comes from registers, two numbers in each, the first lower:
//   a[i] = A[16w + g + 8 (i % 2)][8 (i / 2) + 2t .. + 1].
// Its operands are described in 64 bits: where they begin, bits 0-13; two distances, 16-29 and 32-45, all three in units of 16
// bytes; the swizzle, 62-63, 1 for that of 128 bytes. Where the inner dimension lies contiguous, a tile is 64 of the outer one:
// the second distance is that between groups of 8 of them, the first is not looked at. Where the outer one does, a tile is 64 of
// each: the first distance is that between tiles, the second that between groups of 8 of the inner dimension.
#pragma once

#include "kernel.cuh"

// Of numbers of 16 bits.
constexpr int PANEL = 64, ROW_BYTES = PANEL * 2, PANEL_BYTES = PANEL * ROW_BYTES;

// A count of arrivals and of bytes, in shared memory.
typedef u64 Barrier;

// A matrix in the arena as the copy engine takes it: rows of 16-bit numbers, copied by tiles. Made by the driver.
struct alignas(64) TensorMap {
    u64 opaque[16];
};

// What a product's operands are described by.
__device__ inline u64 describe(u32 begin, bool outer_contiguous) {
    u64 first = outer_contiguous ? PANEL_BYTES / 16 : 1, second = 1024 / 16;
    return (begin & 0x3ffff) >> 4 | first << 16 | second << 32 | 1ull << 62;
}

// How far apart, in a description, are steps of 16 of the inner dimension.
__device__ constexpr u32 step_of(bool outer_contiguous) { return outer_contiguous ? 16 * 128 / 16 : 16 * 2 / 16; }

#ifdef INNERLOOP_EMULATE
#include "emulation/wgmma.h"
#define WARPGROUPS
#elif defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define WARPGROUPS

__device__ inline u32 shared_address(const void* pointer) { return (u32)__cvta_generic_to_shared(pointer); }

// It completes a phase with so many arrivals, and all bytes that were expected in it.
__device__ inline void begin_barrier(Barrier& barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)), "r"(arrivals) : "memory");
}

// Lets the copy engine see barriers that were begun; before the block's own barrier.
__device__ inline void show_barriers() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ inline void arrive(Barrier& barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&barrier)) : "memory");
}

// Arrives, and lets the phase wait for so many bytes.
__device__ inline void arrive_expecting(Barrier& barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&barrier)), "r"(bytes)
                 : "memory");
}

// Waits until the phase of this parity, of which the first is 0, is complete: the one before it counts as 1.
__device__ inline void await_phase(Barrier& barrier, u32 parity) {
    asm volatile(
        "{\n.reg .pred done;\n"
        "again:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra again;\n}" ::"r"(
            shared_address(&barrier)),
        "r"(parity)
        : "memory");
}

// Which of its cluster's blocks this is.
__device__ inline u32 rank_in_cluster() {
    u32 rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// Waits for all threads of the cluster that have not ended. What was stored is not shown: barriers that were begun are, by
// `show_barriers`.
__device__ inline void await_cluster() {
    asm volatile("barrier.cluster.arrive.relaxed;\nbarrier.cluster.wait;" ::: "memory");
}

// Arrives at the barrier that lies at the same place in another block of the cluster. To release more than what the tensor cores
// have read, at the cluster's scope, would take a fence of the whole GPU.
__device__ inline void arrive_at(Barrier& barrier, u32 rank) {
    asm volatile(
        "{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [there];\n}" ::"r"(shared_address(&barrier)),
        "r"(rank)
        : "memory");
}

// As `copy_tile`, to the same place in the first BLOCKS blocks of the cluster, with an arrival at each one's barrier.
template <int BLOCKS>
__device__ inline void copy_tile_to_all(void* to, const TensorMap& map, int column, int row, Barrier& barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster"
        " [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(shared_address(to)),
        "l"(&map), "r"(column), "r"(row), "r"(shared_address(&barrier)), "h"((unsigned short)((1 << BLOCKS) - 1))
        : "memory");
}

// Begins to write a tile from (column, row) of a plane on, as far as the matrix reaches.
__device__ inline void write_tile(const TensorMap& map, const void* from, int column, int row, int plane) {
    asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%1, %2, %3}], [%4];" ::"l"(&map), "r"(column),
                 "r"(row), "r"(plane), "r"(shared_address(from))
                 : "memory");
}

// Ends a group of tiles that the thread has begun to write.
__device__ inline void end_writes() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Waits until all but the last PENDING groups were read.
template <int PENDING>
__device__ inline void await_writes() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory");
}

// Lets the copy engine see what the thread has stored; before a barrier.
__device__ inline void show_stores() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Waits for the four warps of warpgroup `number`.
__device__ inline void await_warpgroup(int number) { asm volatile("bar.sync %0, 128;" ::"r"(number + 1) : "memory"); }

// Stores four matrices of 8 x 8 numbers of 16 bits, the columns of each in turn, 16 bytes each, to the address that lane
// 8 matrix + column names. A lane holds of each the numbers of row lane / 4 and columns lane % 4 * 2 .. + 1, the first lower.
__device__ inline void store_columns(void* to, const u32 (&matrix)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(to)),
                 "r"(matrix[0]), "r"(matrix[1]), "r"(matrix[2]), "r"(matrix[3])
                 : "memory");
}

// Begins to copy the tile from (column, row) on, which arrives at the barrier; 0 where there is nothing.
__device__ inline void copy_tile(void* to, const TensorMap& map, int column, int row, Barrier& barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
                     shared_address(to)),
                 "l"(&map), "r"(column), "r"(row), "r"(shared_address(&barrier))
                 : "memory");
}

__device__ inline void prefetch_map(const TensorMap& map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// Nothing that is done with d moves past this.
template <int N>
__device__ inline void keep_in_order(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// Before the first product of a group, which adds to d: registers that were written are ready.
template <int N>
__device__ inline void begin_products(float (&d)[N]) {
    keep_in_order(d);
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
// Ends a group of products.
__device__ inline void end_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits for all but the last PENDING groups, which add to d as well.
template <int PENDING, int N>
__device__ inline void await_products(float (&d)[N]) {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
    keep_in_order(d);
}

// Takes more registers than a block's equal share, or fewer: for every thread of a warpgroup.
template <int COUNT>
__device__ inline void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT>
__device__ inline void leave_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}

#define D8(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define D32(i) D8(i), D8(i + 8), D8(i + 16), D8(i + 24)
#define N16(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p) \
    "%" #a ",%" #b ",%" #c ",%" #d ",%" #e ",%" #f ",%" #g ",%" #h ",%" #i ",%" #j ",%" #k ",%" #l ",%" #m ",%" #n ",%" #o ",%" #p
#define NAMES_64 \
    N16(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15) "," \
    N16(16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31)
#define NAMES_128 \
    NAMES_64 "," \
    N16(32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47) "," \
    N16(48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63)
#define NAMES_160 NAMES_128 "," N16(64, 65, 66, 67, 68, 69, 70, 71, 72, 73, 74, 75, 76, 77, 78, 79)
#define NAMES_256 \
    NAMES_160 "," \
    N16(80, 81, 82, 83, 84, 85, 86, 87, 88, 89, 90, 91, 92, 93, 94, 95) "," \
    N16(96, 97, 98, 99, 100, 101, 102, 103, 104, 105, 106, 107, 108, 109, 110, 111) "," \
    N16(112, 113, 114, 115, 116, 117, 118, 119, 120, 121, 122, 123, 124, 125, 126, 127)
#define PRODUCT(N, type, operands, adds, ...)                                                                         \
    template <bool A_OUTER, bool B_OUTER>                                                                             \
    __device__ inline void multiply_##type(float (&d)[N / 2], u64 a, u64 b, bool add) {                               \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " adds ", 0;\n"                                                \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." #type "." #type " {" NAMES_##N "}, " operands "\n}" \
                     : __VA_ARGS__                                                                                    \
                     : "l"(a), "l"(b), "r"((u32)add), "n"(A_OUTER), "n"(B_OUTER));                                    \
    }
PRODUCT(64, bf16, "%32, %33, p, 1, 1, %35, %36;", "%34", D32(0))
PRODUCT(128, bf16, "%64, %65, p, 1, 1, %67, %68;", "%66", D32(0), D32(32))
PRODUCT(160, bf16, "%80, %81, p, 1, 1, %83, %84;", "%82", D32(0), D32(32), D8(64), D8(72))
PRODUCT(256, bf16, "%128, %129, p, 1, 1, %131, %132;", "%130", D32(0), D32(32), D32(64), D32(96))
PRODUCT(64, f16, "%32, %33, p, 1, 1, %35, %36;", "%34", D32(0))
PRODUCT(128, f16, "%64, %65, p, 1, 1, %67, %68;", "%66", D32(0), D32(32))
PRODUCT(160, f16, "%80, %81, p, 1, 1, %83, %84;", "%82", D32(0), D32(32), D8(64), D8(72))
PRODUCT(256, f16, "%128, %129, p, 1, 1, %131, %132;", "%130", D32(0), D32(32), D32(64), D32(96))
#undef PRODUCT

// The same with A from registers, which are not to be written to before the product is waited for; added to D.
#define PRODUCT(N, type, operands, ...)                                                                                \
    template <bool B_OUTER>                                                                                            \
    __device__ inline void multiply_held_##type(float (&d)[N / 2], const u32 (&a)[4], u64 b) {                         \
        asm volatile("{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\n"                                                       \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." #type "." #type " {" NAMES_##N "}, " operands "\n}" \
                     : __VA_ARGS__                                                                                     \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(B_OUTER));                              \
    }
PRODUCT(128, bf16, "{%64, %65, %66, %67}, %68, p, 1, 1, %69;", D32(0), D32(32))
PRODUCT(256, bf16, "{%128, %129, %130, %131}, %132, p, 1, 1, %133;", D32(0), D32(32), D32(64), D32(96))
PRODUCT(128, f16, "{%64, %65, %66, %67}, %68, p, 1, 1, %69;", D32(0), D32(32))
PRODUCT(256, f16, "{%128, %129, %130, %131}, %132, p, 1, 1, %133;", D32(0), D32(32), D32(64), D32(96))
#undef PRODUCT
#undef NAMES_64
#undef NAMES_128
#undef NAMES_160
#undef NAMES_256
#undef N16
#undef D32
#undef D8

#endif
