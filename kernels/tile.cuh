// Matrix products in f32 by tiles in shared memory, and reductions over warps and blocks.
//
// A block computes 64 x 64 outputs, 16 of the inner dimension at a time; a thread holds 8 x 4 of them. The next tiles are
// fetched into registers while the present ones are multiplied, so one barrier a step is enough with two stages. Whatever
// lies outside an operand counts as 0. The order of every sum depends on the shapes alone.
#pragma once

#include "kernel.cuh"

constexpr int TILE = 64;
constexpr int DEPTH = 16;
constexpr int MICRO_M = 8;
constexpr int MICRO_N = 4;
// Elements of a tile that one thread fetches.
constexpr int SHARE = TILE * DEPTH / THREADS;

struct alignas(16) Tiles {
    // The padding keeps rows 16-byte aligned and spreads the stores of `Rows` over the banks.
    float left[2][DEPTH][TILE + 4];
    float right[2][DEPTH][TILE + 4];
};

// An operand whose inner dimension lies contiguous: element (row, k) at `base[row * stride + k]`.
struct Rows {
    const float* base;
    u64 stride;
    u32 depth;
    // The thread's rows; negative where there is none.
    int row[SHARE];

    // The place in the tile of the thread's element `i`.
    __device__ static int major(int i) { return threadIdx.x / DEPTH + i * (THREADS / DEPTH); }

    __device__ void fetch(float (&held)[SHARE], u32 first) {
        u32 k = first + threadIdx.x % DEPTH;
#pragma unroll
        for (int i = 0; i < SHARE; ++i) {
            held[i] = row[i] >= 0 && k < depth ? base[(u64)row[i] * stride + k] : 0.0f;
        }
    }

    __device__ static void place(const float (&held)[SHARE], float (*to)[TILE + 4]) {
#pragma unroll
        for (int i = 0; i < SHARE; ++i) {
            to[threadIdx.x % DEPTH][major(i)] = held[i];
        }
    }
};

// An operand whose outer dimension lies contiguous: element (column, k) at `base[k * stride + column]`, times `scale`.
struct Columns {
    const float* base;
    u64 stride;
    u32 depth;
    u32 column;
    u32 columns;
    float scale;
    // The sum over k of the thread's share of its column: two threads share a column.
    float total;

    __device__ void fetch(float (&held)[SHARE], u32 first) {
#pragma unroll
        for (int i = 0; i < SHARE; ++i) {
            u32 k = first + threadIdx.x / TILE + i * (THREADS / TILE);
            held[i] = column < columns && k < depth ? scale * base[(u64)k * stride + column] : 0.0f;
            total += held[i];
        }
    }

    __device__ static void place(const float (&held)[SHARE], float (*to)[TILE + 4]) {
#pragma unroll
        for (int i = 0; i < SHARE; ++i) {
            to[threadIdx.x / TILE + i * (THREADS / TILE)][threadIdx.x % TILE] = held[i];
        }
    }
};

// First row and column of the thread's 8 x 4 outputs within the tile.
__device__ inline int micro_row() { return threadIdx.x / (TILE / MICRO_N) * MICRO_M; }
__device__ inline int micro_column() { return threadIdx.x % (TILE / MICRO_N) * MICRO_N; }

// What one thread holds of a tile of outputs.
struct Micro {
    static constexpr int TILE_ROWS = TILE, TILE_COLUMNS = TILE;

    float part[MICRO_M][MICRO_N] = {};

    // Hands the tile over, to each thread some columns of some rows: `take(row, values)`, where `values` hands over those of a
    // row, `take(column, sum)`.
    template <class Take>
    __device__ void each_row(Take take) const {
#pragma unroll
        for (int m = 0; m < MICRO_M; ++m) {
            take(micro_row() + m, [&](auto take) {
#pragma unroll
                for (int n = 0; n < MICRO_N; ++n) take(micro_column() + n, part[m][n]);
            });
        }
    }
};

// held += left right^T over the whole inner dimension; `stage` goes on from one product of a block to its next.
template <class Left, class Right>
__device__ inline void multiply(Micro& held, Tiles& tiles, int& stage, Left& left, Right& right) {
    float held_left[SHARE], held_right[SHARE];
    left.fetch(held_left, 0);
    right.fetch(held_right, 0);
    for (u32 k = 0; k < left.depth; k += DEPTH) {
        Left::place(held_left, tiles.left[stage]);
        Right::place(held_right, tiles.right[stage]);
        __syncthreads();
        if (k + DEPTH < left.depth) {
            left.fetch(held_left, k + DEPTH);
            right.fetch(held_right, k + DEPTH);
        }
#pragma unroll
        for (int d = 0; d < DEPTH; ++d) {
            float a[MICRO_M], b[MICRO_N];
            *(float4*)&a[0] = *(const float4*)&tiles.left[stage][d][micro_row()];
            *(float4*)&a[4] = *(const float4*)&tiles.left[stage][d][micro_row() + 4];
            *(float4*)&b[0] = *(const float4*)&tiles.right[stage][d][micro_column()];
#pragma unroll
            for (int m = 0; m < MICRO_M; ++m) {
#pragma unroll
                for (int n = 0; n < MICRO_N; ++n) {
                    held.part[m][n] += a[m] * b[n];
                }
            }
        }
        stage ^= 1;
    }
}

__device__ inline float warp_sum(float value) {
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
    return value;
}

__device__ inline double warp_sum(double value) {
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
    return value;
}

__device__ inline float warp_max(float value) {
    for (int offset = 16; offset > 0; offset /= 2) value = fmaxf(value, __shfl_xor_sync(~0u, value, offset));
    return value;
}

// One halving step of `warp_sum_32`: lanes with the bit keep the upper half of the values, the others the lower.
template <int HALF>
__device__ inline void fold(float (&values)[32]) {
    bool upper = threadIdx.x & HALF;
#pragma unroll
    for (int i = 0; i < HALF; ++i) {
        float give = upper ? values[i] : values[i + HALF];
        float keep = upper ? values[i + HALF] : values[i];
        values[i] = keep + __shfl_xor_sync(~0u, give, HALF);
    }
}

// Sums 32 values over the warp; lane i gets the sum of value i.
__device__ inline float warp_sum_32(float (&values)[32]) {
    fold<16>(values);
    fold<8>(values);
    fold<4>(values);
    fold<2>(values);
    fold<1>(values);
    return values[0];
}

struct Partials {
    double warp[WARPS];
};

// The sum over the block, to thread 0. Ends with a barrier, so that `partials` can be used again.
__device__ inline double block_sum(Partials& partials, double value) {
    value = warp_sum(value);
    if (threadIdx.x % 32 == 0) partials.warp[threadIdx.x / 32] = value;
    __syncthreads();
    double sum = 0.0;
    for (int warp = 0; warp < WARPS; ++warp) sum += partials.warp[warp];
    __syncthreads();
    return sum;
}
