// Asynchronous copies to shared memory, and the tensor cores' products; wgmma.cuh has what Hopper adds. The emulation has its own
// (emulation/mma.h), to the same descriptions.
//
// A product is the warp's: D [16, 8] += A [16, depth] B [8, depth]^T. With g = lane / 4 and t = lane % 4 a lane holds
//   16-bit numbers, depth 16: a[i] = A[g + 8 (i % 2)][8 (i / 2) + 2t .. + 1],  b[i] = B[g][8i + 2t .. + 1], the first lower;
//   tf32, depth 8:            a[i] = A[g + 8 (i % 2)][4 (i / 2) + t],          b[i] = B[g][4i + t];
//   either way:               d[i] = D[g + 8 (i / 2)][2t + i % 2].
#pragma once

#include "kernel.cuh"

#ifdef INNERLOOP_EMULATE
#include "emulation/mma.h"
#else

// Begins to copy COUNT numbers, 1 or 4, both places aligned to that many; 0 in their stead where `inside` is false.
template <int COUNT>
__device__ inline void copy_async(float* to, const float* from, bool inside) {
    u32 at = (u32)__cvta_generic_to_shared(to);
    if (COUNT == 4) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(inside ? 16 : 0) : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(at), "l"(from), "r"(inside ? 4 : 0) : "memory");
    }
}

// Ends a group of the thread's copies.
__device__ inline void end_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until all but the last PENDING groups of the thread's copies have arrived.
template <int PENDING>
__device__ inline void await_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Two numbers to the nearest of 16 bits, ties to even.
__device__ inline u32 round_bf16(float lower, float upper) {
    u32 both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(upper), "f"(lower));
    return both;
}

__device__ inline u32 round_f16(float lower, float upper) {
    u32 both;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(upper), "f"(lower));
    return both;
}

// Back again, the lower first.
__device__ inline float2 pair_of_bf16(u32 both) { return {__uint_as_float(both << 16), __uint_as_float(both & 0xffff0000)}; }

__device__ inline float2 pair_of_f16(u32 both) {
    float2 pair;
    asm("{ .reg .b16 lower, upper; mov.b32 {lower, upper}, %2; cvt.f32.f16 %0, lower; cvt.f32.f16 %1, upper; }"
        : "=f"(pair.x), "=f"(pair.y)
        : "r"(both));
    return pair;
}

// A number to the nearest of 10 bits after the point, ties to even.
__device__ inline u32 round_tf32(float value) {
#if __CUDA_ARCH__ >= 900
    u32 bits;
    asm("cvt.rn.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
    return bits;
#else
    u32 bits = __float_as_uint(value);
    // Adding to NaN would make a number of it.
    return value == value ? (bits + 0xfff + (bits >> 13 & 1)) & ~0x1fffu : bits;
#endif
}

__device__ inline void mma_bf16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ inline void mma_f16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ inline void mma_tf32(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

#endif
