// Rows of the steps before, as they lie: numbers of the arena, or their copies in 16 bits behind it.
#pragma once

#include "mma.cuh"
#include "pieces.cuh"

// `PIECE` numbers at once.
template <u32 PIECE_>
struct Plain {
    static constexpr u32 PIECE = PIECE_;

    // Where row `row` begins, of rows that begin at `rows`.
    __device__ static u64 place(u64 rows, u64 row, u32 width) { return rows + row * width; }
    // Zeros where there is nothing.
    __device__ static void load(float (&to)[PIECE], const float* arena, u64 at, bool inside) {
        load_piece_or_zero(to, arena + at, inside);
    }
};

// Copies of rows a multiple of eight wide. `rows` is in numbers of 32 bits, a place in numbers of 16.
template <bool BF16>
struct Copied {
    static constexpr u32 PIECE = 4;

    __device__ static u64 place(u64 rows, u64 row, u32 width) { return 2 * rows + row * width; }
    __device__ static void load(float (&to)[PIECE], const float* arena, u64 at, bool inside) {
        u64 piece = 0;
        if (inside) piece = *(const u64*)((const unsigned short*)arena + at);
        float2 first = pair((u32)piece), second = pair((u32)(piece >> 32));
        to[0] = first.x;
        to[1] = first.y;
        to[2] = second.x;
        to[3] = second.y;
    }

private:
    __device__ static float2 pair(u32 both) { return BF16 ? pair_of_bf16(both) : pair_of_f16(both); }
};
using CopiedBf16 = Copied<true>;
using CopiedF16 = Copied<false>;
