// Sums down the rows of a region.
#pragma once

#include "tile.cuh"

struct SumRows {
    u64 from;
    u64 to;
    u64 width;
    u32 rows;
    float scale;
    // Whether to add to what is there.
    u32 begun;
    u32 unused;
};
static_assert(sizeof(SumRows) == 40, "mirrored in Rust");

// Rows that a thread has on their way at once.
constexpr u32 AT_ONCE = 8;

// The sum of every `step`th row from row `first` on, of one column.
__device__ inline float sum_down(const float* column, u64 width, u32 first, u32 rows, u32 step) {
    float sum = 0.0f;
#pragma unroll 1
    for (u32 row = first; row < rows; row += AT_ONCE * step) {
        float value[AT_ONCE];
#pragma unroll
        for (u32 k = 0; k < AT_ONCE; ++k) value[k] = row + k * step < rows ? column[(row + k * step) * width] : 0.0f;
#pragma unroll
        for (u32 k = 0; k < AT_ONCE; ++k) sum += value[k];
    }
    return sum;
}

// What becomes of a column's sum.
__device__ inline void finish_sum(const SumRows& op, float* out, float sum) {
    *out = op.begun ? *out + op.scale * sum : op.scale * sum;
}

// Columns a block sums, and threads that share the rows of each.
constexpr u32 TALL_COLUMNS = 32;
constexpr u32 TALL_SHARES = 32;

struct TallSums {
    float sum[TALL_SHARES][TALL_COLUMNS + 1];
};

// The sum of a warp's column: the block's 32 columns, of which a warp has one, and all threads share the rows.
__device__ inline float sum_tall(const float* arena, const SumRows& op, TallSums& shared) {
    u32 lane = threadIdx.x % 32, share = threadIdx.x / 32;
    u64 i = (u64)blockIdx.x * TALL_COLUMNS + lane;
    shared.sum[share][lane] = i < op.width ? sum_down(arena + op.from + i, op.width, share, op.rows, TALL_SHARES) : 0.0f;
    __syncthreads();
    return warp_sum(shared.sum[lane][share]);
}
