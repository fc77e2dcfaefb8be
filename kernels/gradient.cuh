// A tile of a weight gradient, weight [outputs, inputs] and bias [outputs]: the sum over rows of p^T [q, 1].
#pragma once

#include "pieces.cuh"
#include "tile.cuh"

// An array of a layer's parameters, its bias right behind its weight: where the first task's begin (NOWHERE where there is
// none), and how far it is to the next task's.
struct PerTask {
    u64 offset;
    u64 stride;

    __device__ bool exists() const { return offset != NOWHERE; }
    __device__ float* of(float* arena, u32 task) const { return arena + offset + task * stride; }
    // Whether every task's lies at a multiple of a piece of four, where there is one.
    __device__ bool in_fours() const { return !exists() || ::in_fours(offset, stride); }
};

// One rate, or one for each parameter of a layer, shared by the tasks.
struct Rates {
    // Where they lie, or the one for all; NOWHERE where that is `all`.
    u64 place;
    float all;
    u32 single;

    __device__ float of(const float* arena, u64 at) const { return single ? one(arena) : arena[place + at]; }
    __device__ float one(const float* arena) const { return place == NOWHERE ? all : arena[place]; }
    __device__ bool in_fours() const { return single || ::in_fours(place); }
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
    // The value of the column of `values` that stands for the bias, and where a factor of it lies; NOWHERE without one.
    float bias;
    u64 bias_factor;
};

__device__ inline float bias_of(const float* arena, const GradientRows& rows) {
    return rows.bias_factor != NOWHERE ? rows.bias * arena[rows.bias_factor] : rows.bias;
}

// Rows p [rows, outputs] and q [rows, inputs]; `bias` is the value of the column that stands for the bias.
struct OuterTerm {
    u64 p;
    u64 q;
    // Rows of one group in one block.
    u32 rows;
    u32 blocks;
    float bias;
    float scale;
    // Where a factor lies; NOWHERE without one.
    u64 share;
};
static_assert(sizeof(OuterTerm) == 40, "mirrored in Rust");

__device__ inline float scale_of(const float* arena, const OuterTerm& term) {
    return term.share != NOWHERE ? term.scale * arena[term.share] : term.scale;
}

struct alignas(16) GradientTiles {
    Tiles tiles;
    // The bias parts of the upper half of the threads: two threads share a row.
    float bias[TILE];
};

// A block's tile of a gradient, and where it is. Grid: x the tiles of outputs of every group of rows, y the tiles of inputs.
template <class Held>
struct GradientTile {
    u32 inputs;
    u32 outputs;
    u32 group;
    u32 first_row;
    u32 first_column;
    Held held;

    __device__ GradientTile(u32 inputs, u32 outputs) : inputs(inputs), outputs(outputs) {
        u32 tiles = (outputs + Held::TILE_ROWS - 1) / Held::TILE_ROWS;
        group = blockIdx.x / tiles;
        first_row = blockIdx.x % tiles * Held::TILE_ROWS;
        first_column = blockIdx.y * Held::TILE_COLUMNS;
    }

    // Whether this block's is the bias of its rows.
    __device__ bool has_bias() const { return blockIdx.y == 0; }

    // Hands the gradient over, an element a call: `take(at, value)`, `at` counted from the weight's first element; the bias
    // begins at `bias_at`, and each of the first threads has one row's.
    template <class Take, class... Shared>
    __device__ void finish(u64 bias_at, float bias, Take take, Shared&... shared) const {
        held.each_row(shared..., [&](int m, auto values) {
            u32 row = first_row + m;
            if (row >= outputs) return;
            values([&](int n, float sum) {
                u32 column = first_column + n;
                if (column < inputs) take((u64)row * inputs + column, sum);
            });
        });
        u32 row = first_row + threadIdx.x;
        if (has_bias() && threadIdx.x < Held::TILE_ROWS && row < outputs) take(bias_at + row, bias);
    }
};

// Its sum in f32.
struct Gradient : GradientTile<Micro> {
    int stage = 0;
    // Of the thread's share of a row's bias.
    float bias = 0.0f;

    using GradientTile::GradientTile;

    // Adds scale * p^T [q, column] over `rows` rows: `column` is the value of the column that stands for the bias.
    __device__ void add(Tiles& tiles, const float* p, const float* q, u32 rows, float scale, float column) {
        u32 lane = threadIdx.x % TILE;
        Columns left = {p, outputs, rows, first_row + lane, outputs, scale, 0.0f};
        Columns right = {q, inputs, rows, first_column + lane, inputs, 1.0f, 0.0f};
        multiply(held, tiles, stage, left, right);
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

    // As that of the tile, with the two shares of each row's bias.
    template <class Take>
    __device__ void finish(float (&shared)[TILE], u64 bias_at, Take take) const {
        if (threadIdx.x >= TILE) shared[threadIdx.x - TILE] = bias;
        __syncthreads();
        float other = threadIdx.x < TILE ? shared[threadIdx.x] : 0.0f;
        GradientTile::finish(bias_at, bias + other, take);
    }
};

// Hands over the gradient of every task, an element a call: `take(task, at, value)`. Grid: that of `Gradient`, a task a group.
template <class Take>
__device__ void each_gradient(const float* arena, GradientTiles& shared, const GradientRows& from, Take take) {
    Gradient gradient(from.inputs, from.outputs);
    gradient.add_blocks(shared.tiles, arena + from.delta, arena + from.values, from.blocks, from.tasks, from.rows, 1.0f,
                        bias_of(arena, from));
    u64 bias_at = (u64)from.inputs * from.outputs;
    gradient.finish(shared.bias, bias_at, [&](u64 at, float value) { take(gradient.group, at, value); });
}
