// What is done with few rows a task, and with a matrix of every task's own, takes as long as reading and writing the matrices. So
// a matrix is gone through once, 512 bytes of a row by a warp at once, several such on their way, and the rows are at hand.
#pragma once

#include "pieces.cuh"

// Rows a task may have: a kernel for up to 8 and one for up to 16.
constexpr u32 FEW = 8;
constexpr u32 SOME = 16;
// Numbers of a row of a matrix that a warp takes at once.
constexpr u32 STRIP = 32 * 4;

// The lane's four numbers of a strip in the arena: a piece, or, where rows do not lie at multiples of four, every 32nd.
template <bool FOURS>
struct Strip {
    static constexpr u32 COUNT = 4;

    u32 lane = threadIdx.x % 32;
    // Where the strip begins, and how many numbers are left of the row.
    u64 at;
    u32 left;

    __device__ Strip(u64 at, u32 left) : at(at), left(left) {}

    __device__ u32 place(u32 i) const { return FOURS ? lane * 4 + i : lane + i * 32; }

    // Zeros where there is nothing.
    __device__ void load(float (&to)[COUNT], const float* from) const {
        if constexpr (FOURS) {
            load_piece_or_zero(to, from + at + place(0), place(0) < left);
        } else {
#pragma unroll
            for (u32 i = 0; i < COUNT; ++i) to[i] = place(i) < left ? from[at + place(i)] : 0.0f;
        }
    }

    __device__ void store(float* to, const float (&from)[COUNT]) const {
        if constexpr (FOURS) {
            // One store, by name: behind branches the compiler does not put the four together. Nor are they soon read again.
            if (place(0) < left) __stcs((float4*)(to + at + place(0)), make_float4(from[0], from[1], from[2], from[3]));
        } else {
#pragma unroll
            for (u32 i = 0; i < COUNT; ++i) {
                if (place(i) < left) to[at + place(i)] = from[i];
            }
        }
    }
};

// The same of a whole strip in shared memory.
template <bool FOURS>
__device__ inline void load_held(float (&to)[4], const float* from) {
    u32 lane = threadIdx.x % 32;
    if constexpr (FOURS) {
        load_piece(to, from + lane * 4);
    } else {
#pragma unroll
        for (u32 i = 0; i < 4; ++i) to[i] = from[lane + i * 32];
    }
}

template <bool FOURS>
__device__ inline void hold_strip(float* to, const float (&from)[4]) {
    u32 lane = threadIdx.x % 32;
    if constexpr (FOURS) {
        store_piece(to + lane * 4, from);
    } else {
#pragma unroll
        for (u32 i = 0; i < 4; ++i) to[lane + i * 32] = from[i];
    }
}

// One number, as a strip hands over four.
struct Single {
    static constexpr u32 COUNT = 1;

    u64 at;

    __device__ void load(float (&to)[COUNT], const float* from) const { to[0] = from[at]; }
    __device__ void store(float* to, const float (&from)[COUNT]) const { to[at] = from[0]; }
};

// `COUNT` numbers that lie at a multiple of 16 bytes in shared memory.
template <u32 COUNT>
__device__ inline void load_fours(float (&to)[COUNT], const float* from) {
    static_assert(COUNT % 4 == 0, "pieces of four");
#pragma unroll
    for (u32 i = 0; i < COUNT; i += 4) {
        float4 piece = *(const float4*)(from + i);
        to[i] = piece.x;
        to[i + 1] = piece.y;
        to[i + 2] = piece.z;
        to[i + 3] = piece.w;
    }
}

template <u32 COUNT>
__device__ inline void store_fours(float* to, const float (&from)[COUNT]) {
    static_assert(COUNT % 4 == 0, "pieces of four");
#pragma unroll
    for (u32 i = 0; i < COUNT; i += 4) *(float4*)(to + i) = float4{from[i], from[i + 1], from[i + 2], from[i + 3]};
}
