// A tile of a weight gradient, weight [outputs, inputs] and bias [outputs]: the sum over rows of p^T [q, 1].
#pragma once

#include "tile.cuh"

// An array of a layer's parameters, its bias right behind its weight: where the first task's begin (NOWHERE where there is
// none), and how far it is to the next task's.
struct PerTask {
    u64 offset;
    u64 stride;

    __device__ bool exists() const { return offset != NOWHERE; }
    __device__ float* of(float* arena, u32 task) const { return arena + offset + task * stride; }
};

// One rate, or one for each parameter of a layer, shared by the tasks.
struct Rates {
    // NOWHERE where `all` is for all.
    u64 each;
    float all;
    u32 unused;

    __device__ float of(const float* arena, u64 at) const { return each == NOWHERE ? all : arena[each + at]; }
};

// The rows that the gradients of a layer are made of, task by task: [blocks * tasks * rows, outputs] and [.., inputs].
struct GradientRows {
    u64 delta;
    u64 values;
    u32 tasks;
    u32 rows;
    u32 blocks;
    u32 inputs;
    u32 outputs;
    // The value of the column of `values` that stands for the bias.
    float bias;
};

struct alignas(16) GradientTiles {
    Tiles tiles;
    // The bias parts of the upper half of the threads: two threads share a row.
    float bias[TILE];
};

// What one thread holds of its block's tile. Grid: x the tiles of outputs of every group of rows, y the tiles of inputs.
struct Gradient {
    u32 inputs;
    u32 outputs;
    u32 group;
    u32 first_row;
    u32 first_column;
    int stage = 0;
    float bias = 0.0f;
    float sum[MICRO_M][MICRO_N] = {};

    __device__ Gradient(u32 inputs, u32 outputs) : inputs(inputs), outputs(outputs) {
        u32 tiles = (outputs + TILE - 1) / TILE;
        group = blockIdx.x / tiles;
        first_row = blockIdx.x % tiles * TILE;
        first_column = blockIdx.y * TILE;
    }

    // Adds scale * p^T [q, column] over `rows` rows: `column` is the value of the column that stands for the bias.
    __device__ void add(Tiles& tiles, const float* p, const float* q, u32 rows, float scale, float column) {
        u32 lane = threadIdx.x % TILE;
        Columns left = {p, outputs, rows, first_row + lane, outputs, scale, 0.0f};
        Columns right = {q, inputs, rows, first_column + lane, inputs, 1.0f, 0.0f};
        multiply(sum, tiles, stage, left, right);
        bias += column * left.total;
    }

    // The same over all blocks of rows: those of group g of block b begin at row (b * groups + g) * rows.
    __device__ void add_blocks(Tiles& tiles, const float* p, const float* q, u32 blocks, u32 groups, u32 rows,
                               float scale, float column) {
        for (u32 block = 0; block < blocks; ++block) {
            u64 row = (u64)(block * groups + group) * rows;
            add(tiles, p + row * outputs, q + row * inputs, rows, scale, column);
        }
    }

    // Hands the gradient over, an element a call: `take(at, value)`, `at` counted from the weight's first element; the bias
    // begins at `bias_at`.
    template <class Take>
    __device__ void finish(float (&shared)[TILE], u64 bias_at, Take take) const {
#pragma unroll
        for (int m = 0; m < MICRO_M; ++m) {
            u32 row = first_row + micro_row() + m;
            if (row >= outputs) continue;
#pragma unroll
            for (int n = 0; n < MICRO_N; ++n) {
                u32 column = first_column + micro_column() + n;
                if (column >= inputs) continue;
                take((u64)row * inputs + column, sum[m][n]);
            }
        }
        if (blockIdx.y != 0) return;
        if (threadIdx.x >= TILE) shared[threadIdx.x - TILE] = bias;
        __syncthreads();
        u32 row = first_row + threadIdx.x;
        if (threadIdx.x < TILE && row < outputs) take(bias_at + row, bias + shared[threadIdx.x]);
    }
};

// Hands over the gradient of every task, an element a call: `take(task, at, value)`. Grid: that of `Gradient`, a task a group.
template <class Take>
__device__ void each_gradient(const float* arena, GradientTiles& shared, const GradientRows& from, Take take) {
    Gradient gradient(from.inputs, from.outputs);
    gradient.add_blocks(shared.tiles, arena + from.delta, arena + from.values, from.blocks, from.tasks, from.rows, 1.0f,
                        from.bias);
    u64 bias_at = (u64)from.inputs * from.outputs;
    gradient.finish(shared.bias, bias_at, [&](u64 at, float value) { take(gradient.group, at, value); });
}
