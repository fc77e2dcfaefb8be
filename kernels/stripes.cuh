// Sums down the columns of some rows: a block takes 32 columns, and every fourth row is one thread's.
#pragma once

#include "tile.cuh"

constexpr int COLUMNS = 32;
constexpr int STRIPES = THREADS / COLUMNS;

struct StripeSums {
    float sum[STRIPES][COLUMNS];
};

// The sum over the stripes of the thread's column, in their order; every thread of the block calls it.
__device__ inline float stripe_total(StripeSums& shared, float sum) {
    u32 lane = threadIdx.x % COLUMNS;
    // What the sums before this left has been read.
    __syncthreads();
    shared.sum[threadIdx.x / COLUMNS][lane] = sum;
    __syncthreads();
    float total = 0.0f;
    for (int i = 0; i < STRIPES; ++i) total += shared.sum[i][lane];
    return total;
}
