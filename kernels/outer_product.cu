// The weight gradient of many rows: weight [outputs, inputs] (+)= sum over terms of scale * p^T q, the bias gradient fused.
//
// Shared weights: the rows of all tasks are summed. Per-task weights: each task's own rows, found in every block.

#include "tile.cuh"

constexpr int TERMS = 64;

// Rows p [rows, outputs] and q [rows, inputs].
struct OuterTerm {
    u64 p;
    u64 q;
    // Rows of one group in one block.
    u32 rows;
    u32 blocks;
    u32 with_bias;
    float scale;
};
static_assert(sizeof(OuterTerm) == 32, "mirrored in Rust");

struct OuterProduct {
    OuterTerm terms[TERMS];
    u64 weight;
    u64 bias;
    u64 group_stride;
    u32 count;
    u32 groups;
    u32 inputs;
    u32 outputs;
    // Whether to add to what is there.
    u32 begun;
    u32 unused;
};
static_assert(sizeof(OuterProduct) == 2096, "mirrored in Rust");

// Grid: x the tiles of outputs of every group, y the tiles of inputs.
KERNEL(outer_product, OuterProduct) {
    SHARED(GradientTiles, shared);
    u32 tiles = (op.outputs + TILE - 1) / TILE;
    u32 group = blockIdx.x / tiles;
    u32 first_row = blockIdx.x % tiles * TILE;
    u32 first_column = blockIdx.y * TILE;
    float sum[MICRO_M][MICRO_N] = {};
    float bias = 0.0f;
    int stage = 0;
    for (u32 t = 0; t < op.count; ++t) {
        const OuterTerm& term = op.terms[t];
        for (u32 block = 0; block < term.blocks; ++block) {
            u64 row = (u64)(block * op.groups + group) * term.rows;
            u32 output = first_row + threadIdx.x % TILE;
            u32 input = first_column + threadIdx.x % TILE;
            const float* base = arena + term.p + row * op.outputs;
            Columns p = {base, op.outputs, term.rows, output, op.outputs, term.scale, 0.0f};
            Columns q = {arena + term.q + row * op.inputs, op.inputs, term.rows, input, op.inputs, 1.0f, 0.0f};
            multiply(sum, shared.tiles, stage, p, q);
            if (term.with_bias) bias += p.total;
        }
    }
    float* weight = arena + op.weight + group * op.group_stride;
#pragma unroll
    for (int m = 0; m < MICRO_M; ++m) {
        u32 row = first_row + micro_row() + m;
        if (row >= op.outputs) continue;
#pragma unroll
        for (int n = 0; n < MICRO_N; ++n) {
            u32 column = first_column + micro_column() + n;
            if (column >= op.inputs) continue;
            float* out = weight + (u64)row * op.inputs + column;
            *out = op.begun ? *out + sum[m][n] : sum[m][n];
        }
    }
    if (blockIdx.y != 0) return;
    if (threadIdx.x >= TILE) shared.bias[threadIdx.x - TILE] = bias;
    __syncthreads();
    u32 row = first_row + threadIdx.x;
    if (threadIdx.x < TILE && row < op.outputs) {
        float* out = arena + op.bias + group * op.group_stride + row;
        bias += shared.bias[threadIdx.x];
        *out = op.begun ? *out + bias : bias;
    }
}
