// Numbers by pieces of four, where they lie at multiples of 16 bytes, and plain loops of which a thread takes several numbers.
//
// Memory is slow to answer and wide: what keeps it busy is how much has been asked for. All regions lie in one arena, so a load
// is never moved before a store; what is to be on its way at the same time is loaded first, and used after.
#pragma once

#include "kernel.cuh"

// `COUNT` consecutive numbers, 4 at a multiple of 16 bytes or 1.
template <u32 COUNT>
__device__ inline void load_piece(float (&to)[COUNT], const float* from) {
    static_assert(COUNT == 1 || COUNT == 4, "one load");
    if constexpr (COUNT == 4) {
        float4 piece = *(const float4*)from;
        to[0] = piece.x;
        to[1] = piece.y;
        to[2] = piece.z;
        to[3] = piece.w;
    } else {
        to[0] = *from;
    }
}

template <u32 COUNT>
__device__ inline void store_piece(float* to, const float (&from)[COUNT]) {
    static_assert(COUNT == 1 || COUNT == 4, "one store");
    if constexpr (COUNT == 4) {
        *(float4*)to = float4{from[0], from[1], from[2], from[3]};
    } else {
        *to = from[0];
    }
}

// The same, or zeros where there is nothing.
template <u32 COUNT>
__device__ inline void load_piece_or_zero(float (&to)[COUNT], const float* from, bool inside) {
#pragma unroll
    for (u32 i = 0; i < COUNT; ++i) to[i] = 0.0f;
    if (inside) load_piece(to, from);
}

// Whether all of these offsets are multiples of a piece of four.
template <class... Offsets>
__device__ inline bool in_fours(Offsets... offsets) {
    return ((offsets | ...) & 3) == 0;
}

// Numbers a thread takes of a plain loop.
constexpr u32 OWN = 8;
// Numbers a block takes.
constexpr u32 SPAN = THREADS * OWN;

// The thread's numbers among `length`: of a block's span two pieces of four, or, in the last block and where the regions do not lie
// at multiples of four, every 128th number.
struct Span {
    u64 first;
    u64 length;
    bool fours;

    __device__ Span(u64 length, bool fours)
        : first((u64)blockIdx.x * SPAN), length(length), fours(fours && first + SPAN <= length) {}

    // Zeros where there is nothing.
    __device__ void load(float (&to)[OWN], const float* from) const {
        if (fours) {
#pragma unroll
            for (u32 k = 0; k < OWN; k += 4) {
                float4 piece = *(const float4*)(from + at_four(k));
                to[k] = piece.x;
                to[k + 1] = piece.y;
                to[k + 2] = piece.z;
                to[k + 3] = piece.w;
            }
        } else {
#pragma unroll
            for (u32 k = 0; k < OWN; ++k) to[k] = at_one(k) < length ? from[at_one(k)] : 0.0f;
        }
    }

    __device__ void store(float* to, const float (&from)[OWN]) const {
        if (fours) {
#pragma unroll
            for (u32 k = 0; k < OWN; k += 4) {
                *(float4*)(to + at_four(k)) = float4{from[k], from[k + 1], from[k + 2], from[k + 3]};
            }
        } else {
#pragma unroll
            for (u32 k = 0; k < OWN; ++k) {
                if (at_one(k) < length) to[at_one(k)] = from[k];
            }
        }
    }

    // In 16 bits, as `round` makes pairs of them.
    template <class Round>
    __device__ void store_pairs(u32* to, const float (&from)[OWN], Round round) const {
        if (fours) {
#pragma unroll
            for (u32 k = 0; k < OWN; k += 4) {
                *(u64*)(to + at_four(k) / 2) = round(from[k], from[k + 1]) | (u64)round(from[k + 2], from[k + 3]) << 32;
            }
        } else {
#pragma unroll
            for (u32 k = 0; k < OWN; ++k) {
                if (at_one(k) < length) ((unsigned short*)to)[at_one(k)] = (unsigned short)round(from[k], 0.0f);
            }
        }
    }

private:
    // Where the thread's numbers `k` to `k + 3` lie, and its number `k` by itself.
    __device__ u64 at_four(u32 k) const { return first + k * THREADS + threadIdx.x * 4; }
    __device__ u64 at_one(u32 k) const { return first + k * THREADS + threadIdx.x; }
};
