// The weight gradient of many rows: weight [outputs, inputs] (+)= sum over terms of scale * p^T q, the bias gradient fused.
//
// Shared weights: the rows of all tasks are summed. Per-task weights: each task's own rows, found in every block.

#include "gradient.cuh"

constexpr int TERMS = 64;

// Rows p [rows, outputs] and q [rows, inputs]; `bias` is the value of the column that stands for the bias.
struct OuterTerm {
    u64 p;
    u64 q;
    // Rows of one group in one block.
    u32 rows;
    u32 blocks;
    float bias;
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

// Grid: that of `Gradient`.
KERNEL(outer_product, OuterProduct) {
    SHARED(GradientTiles, shared);
    Gradient gradient(op.inputs, op.outputs);
    for (u32 t = 0; t < op.count; ++t) {
        const OuterTerm& term = op.terms[t];
        gradient.add_blocks(shared.tiles, arena + term.p, arena + term.q, term.blocks, op.groups, term.rows, term.scale,
                            term.bias);
    }
    float* weight = arena + op.weight + gradient.group * op.group_stride;
    gradient.finish(shared.bias, op.bias - op.weight, [&](u64 at, float value) {
        weight[at] = op.begun ? weight[at] + value : value;
    });
}
