// What follows the end of a product in the same kernel: the loss of what came out, or its curvature.
#pragma once

#include "loss.cuh"
#include "tensor.cuh"

enum Following : u32 { NOTHING, MSE_DELTA, BCE_DELTA, MSE_CURVATURE, BCE_CURVATURE };

// `elementwise_delta` or `elementwise_curvature` of loss.cu.
struct EndedLoss {
    // The curvature's, NOWHERE where that is the same everywhere; the delta's is the output itself.
    u64 prediction;
    u64 target;
    // NOWHERE where only the copy is asked for.
    u64 output;
    // Of the copy in 16 bits, in numbers of 32 bits; NOWHERE without one.
    u64 packed;
    // `Following`; the activation is that of the end.
    u32 kind;
    u32 begun;
    float scale;
    u32 unused;
};
static_assert(sizeof(EndedLoss) == 48, "mirrored in Rust");

// A piece of what came out, at `at`, replaced by what the loss makes of it. `beside`: the target's, or the prediction's, if any.
template <u32 ACTIVATION>
__device__ inline void follow(float* arena, const EndedLoss& op, u32 operands, u64 at, const float* beside, float (&values)[4]) {
    bool bends = op.kind >= MSE_CURVATURE, squares = op.kind == MSE_DELTA || op.kind == MSE_CURVATURE;
    float other[4], change[4];
    load_piece_or_zero(other, beside, beside != nullptr);
#pragma unroll
    for (int c = 0; c < 4; ++c) {
        float given = bends ? other[c] : values[c];
        if (squares) {
            change[c] = bends ? values[c] * loss_second(MSE, op.scale, given) : loss_slope(MSE, op.scale, given, other[c]);
        } else {
            change[c] = bends ? values[c] * loss_second(BCE_WITH_LOGITS, op.scale, given)
                              : loss_slope(BCE_WITH_LOGITS, op.scale, given, other[c]);
        }
        values[c] = change[c] * act_derivative(ACTIVATION, given);
    }
    if (op.begun) {
        float begun[4];
        load_piece(begun, arena + op.output + at);
#pragma unroll
        for (int c = 0; c < 4; ++c) values[c] += begun[c];
    }
    if (op.output != NOWHERE) store_piece(arena + op.output + at, values);
    store_copy(arena, op.packed, at, operands, values);
}
