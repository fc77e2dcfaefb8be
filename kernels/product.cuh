// The four products with a layer's weights, as kernels take them, and what becomes of their sums: whichever cores form these.
#pragma once

#include "activation.cuh"

// One product that is added to the output rows `first..first + rows`.
struct Source {
    u64 input;
    u64 weight;
    // NOWHERE without one.
    u64 bias;
    // Between the weights of successive groups.
    u64 group_stride;
    u32 inner;
    u32 first;
    u32 rows;
    u32 unused;
};

// What becomes of a product's sums.
struct ProductEnd {
    Gate gate;
    u64 output;
    u32 groups;
    // Rows of one group in one block.
    u32 group_rows;
    u32 blocks;
    u32 width;
    // Whether the output already holds a part of the result.
    u32 begun;
    // Of the output (forward).
    u32 activation;
    // Adjoint forward: delta, and z's cotangent or NOWHERE.
    u64 delta;
    u64 z;
    // Backward: whether there is a gate.
    u32 gated;
    // `Rounding`; of the kernels for tensor cores.
    u32 operands;
    // Where the share of weights and biases that is taken lies; NOWHERE if they are taken whole.
    u64 share;
};
static_assert(sizeof(ProductEnd) == 96, "mirrored in Rust");

struct Product : ProductEnd {
    // The second one is absent when it has no rows.
    Source sources[2];
};
static_assert(sizeof(Product) == 192, "mirrored in Rust");

// The block's tile: its group, and its first row (within the group) and column.
template <class Held>
struct Place {
    u32 group, row, column;

    __device__ explicit Place(const Product& op) {
        u32 tiles = (op.group_rows * op.blocks + Held::TILE_ROWS - 1) / Held::TILE_ROWS;
        group = blockIdx.x / tiles;
        row = blockIdx.x % tiles * Held::TILE_ROWS;
        column = blockIdx.y * Held::TILE_COLUMNS;
    }

    // The output row of row `m` of the tile, or -1.
    __device__ int output_row(const Product& op, int m) const {
        u32 local = row + m;
        if (local >= op.group_rows * op.blocks) return -1;
        u32 block = local / op.group_rows;
        return (block * op.groups + group) * op.group_rows + local % op.group_rows;
    }
};

__device__ inline float share_of(const float* arena, const ProductEnd& op) {
    return op.share != NOWHERE ? arena[op.share] : 1.0f;
}

// The biases of the sources that reach output row `row`.
__device__ inline float biases(const float* arena, const Product& op, u32 group, int row, u32 column) {
    float sum = 0.0f;
    for (int s = 0; s < 2; ++s) {
        const Source& source = op.sources[s];
        bool inside = row >= (int)source.first && row < (int)(source.first + source.rows);
        if (inside && source.bias != NOWHERE) sum += arena[source.bias + group * source.group_stride + column];
    }
    return sum;
}

// What becomes of the sum of the products, in one output row. `before` reads all that goes in beside the sum, so that a thread
// can have the reads of several outputs under way before it writes the first.

// output = act(input W^T + b [+ output])
struct Forward {
    static constexpr bool TRANSPOSED = true;
    float* arena;
    const Product& op;
    u32 group;
    int row;
    float share = share_of(arena, op);

    struct Before {
        float bias, output;
    };
    __device__ float* out(u32 column) const { return arena + op.output + (u64)row * op.width + column; }
    __device__ Before before(u32 column) const {
        return {biases(arena, op, group, row, column), op.begun ? *out(column) : 0.0f};
    }
    __device__ void finish(u32 column, float sum, const Before& before) const {
        float z = share * (sum + before.bias);
        *out(column) = act(op.activation, z + before.output);
    }
};

// output = [output +] (sum of the products) * act'(gate): the backward pass, and the adjoint pass downwards.
struct Backward {
    static constexpr bool TRANSPOSED = false;
    float* arena;
    const Product& op;
    u32 group;
    int row;
    const float* values = arena + op.gate.values + (op.gated ? op.gate.row(row) * op.width : 0);
    float share = share_of(arena, op);

    struct Before {
        float gate, output;
    };
    __device__ float* out(u32 column) const { return arena + op.output + (u64)row * op.width + column; }
    __device__ Before before(u32 column) const {
        return {op.gated ? values[column] : 0.0f, op.begun ? *out(column) : 0.0f};
    }
    __device__ void finish(u32 column, float sum, const Before& before) const {
        float value = share * sum;
        if (op.gated) value *= act_derivative(op.gate.activation, before.gate);
        *out(column) = op.begun ? before.output + value : value;
    }
};

// g = sum of the products and biases [+ output];  z = g * delta * curvature(gate);  output = g * act'(gate)
//
// Only where no two output blocks share a gate block; otherwise this leaves g in the output (`delta` is NOWHERE) and
// `adjoint_gate` does the rest.
struct Adjoint {
    static constexpr bool TRANSPOSED = true;
    float* arena;
    const Product& op;
    u32 group;
    int row;
    u64 gate_row = op.gate.row(row) * op.width;
    float share = share_of(arena, op);

    struct Before {
        float bias, output, gate, delta;
    };
    __device__ u64 at(u32 column) const { return (u64)row * op.width + column; }
    __device__ Before before(u32 column) const {
        bool gated = op.delta != NOWHERE, curved = gated && op.z != NOWHERE;
        return {biases(arena, op, group, row, column), op.begun ? arena[op.output + at(column)] : 0.0f,
                gated ? arena[op.gate.values + gate_row + column] : 0.0f, curved ? arena[op.delta + at(column)] : 0.0f};
    }
    __device__ void finish(u32 column, float sum, const Before& before) const {
        float g = share * (sum + before.bias) + before.output;
        if (op.delta != NOWHERE) {
            if (op.z != NOWHERE) {
                arena[op.z + gate_row + column] = g * before.delta * act_curvature(op.gate.activation, before.gate);
            }
            g *= act_derivative(op.gate.activation, before.gate);
        }
        arena[op.output + at(column)] = g;
    }
};
