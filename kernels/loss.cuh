// What supervised losses are made of: a summand and its first two derivatives with respect to an output, for losses that go
// element by element; whole rows, a warp each, for the cross-entropy, which couples a row's outputs.
#pragma once

#include "activation.cuh"
#include "pieces.cuh"
#include "tile.cuh"

enum Loss : u32 { MSE, BCE_WITH_LOGITS, CROSS_ENTROPY };

__device__ inline float loss_term(u32 loss, float p, float y) {
    return loss == MSE ? (p - y) * (p - y) : softplus(p) - y * p;
}

__device__ inline float loss_slope(u32 loss, float scale, float p, float y) {
    return loss == MSE ? 2.0f * scale * (p - y) : scale * (sigmoid(p) - y);
}

__device__ inline float loss_second(u32 loss, float scale, float p) {
    if (loss == MSE) return 2.0f * scale;
    float s = sigmoid(p);
    return scale * s * (1.0f - s);
}

struct Softmax {
    float top;
    float total;
};

// The maximum of a row's logits and the sum of their exponentials relative to it; a warp a row.
__device__ inline Softmax softmax_parts(const float* logits, u32 outputs) {
    u32 lane = threadIdx.x % 32;
    float top = logits[0];
    for (u32 i = lane; i < outputs; i += 32) top = fmaxf(top, logits[i]);
    top = warp_max(top);
    float total = 0.0f;
    for (u32 i = lane; i < outputs; i += 32) total += expf(logits[i] - top);
    return {top, warp_sum(total)};
}

__device__ inline float row_sum(const float* row, u32 outputs) {
    float sum = 0.0f;
    for (u32 i = threadIdx.x % 32; i < outputs; i += 32) sum += row[i];
    return warp_sum(sum);
}

__device__ inline void cross_entropy_delta_row(const float* p, const float* y, float* delta, u32 outputs, float scale,
                                               u32 activation) {
    Softmax parts = softmax_parts(p, outputs);
    float mass = row_sum(y, outputs);
    for (u32 i = threadIdx.x % 32; i < outputs; i += 32) {
        float q = expf(p[i] - parts.top) / parts.total;
        delta[i] = scale * (q * mass - y[i]) * act_derivative(activation, p[i]);
    }
}

// z (+)= act'(a) L''(a) e.
__device__ inline void cross_entropy_curvature_row(const float* p, const float* y, const float* e, float* z, u32 outputs,
                                                   float scale, u32 activation, bool begun) {
    Softmax parts = softmax_parts(p, outputs);
    float mass = row_sum(y, outputs);
    float inner = 0.0f;
    for (u32 i = threadIdx.x % 32; i < outputs; i += 32) inner += expf(p[i] - parts.top) / parts.total * e[i];
    inner = warp_sum(inner);
    for (u32 i = threadIdx.x % 32; i < outputs; i += 32) {
        float q = expf(p[i] - parts.top) / parts.total;
        float part = scale * mass * q * (e[i] - inner) * act_derivative(activation, p[i]);
        z[i] = begun ? z[i] + part : part;
    }
}

// The thread's share of a sum over the elements, taken by pieces of PIECE, several of them on their way at once.
template <u32 PIECE, u32 LOSS>
__device__ inline double elementwise_sum(const float* p, const float* y, u64 count) {
    constexpr u32 AHEAD = PIECE == 4 ? 8 : 1;
    // One for each place in a piece, so that they do not wait for one another.
    double sum[PIECE] = {};
    for (u64 start = threadIdx.x * PIECE; start < count; start += AHEAD * THREADS * PIECE) {
        float left[AHEAD][PIECE], right[AHEAD][PIECE];
#pragma unroll
        for (u32 a = 0; a < AHEAD; ++a) {
            u64 i = start + a * THREADS * PIECE;
            load_piece_or_zero(left[a], p + i, i < count);
            load_piece_or_zero(right[a], y + i, i < count);
        }
#pragma unroll
        for (u32 a = 0; a < AHEAD; ++a) {
            if (start + a * THREADS * PIECE >= count) break;
#pragma unroll
            for (u32 k = 0; k < PIECE; ++k) sum[k] += loss_term(LOSS, left[a][k], right[a][k]);
        }
    }
    for (u32 k = 1; k < PIECE; ++k) sum[0] += sum[k];
    return sum[0];
}

// The mean loss of one task, to thread 0 of the block. PIECE is 4 where all rows lie at multiples of 16 bytes.
template <u32 PIECE>
__device__ inline double task_mean(Partials& partials, u32 loss, const float* p, const float* y, u32 rows, u32 outputs) {
    double sum = 0.0;
    if (loss == CROSS_ENTROPY) {
        for (u32 row = threadIdx.x / 32; row < rows; row += WARPS) {
            u64 at = (u64)row * outputs;
            Softmax parts = softmax_parts(p + at, outputs);
            float log = parts.top + logf(parts.total);
            for (u32 i = threadIdx.x % 32; i < outputs; i += 32) sum += y[at + i] * (log - p[at + i]);
        }
    } else {
        u64 count = (u64)rows * outputs;
        sum = loss == MSE ? elementwise_sum<PIECE, MSE>(p, y, count) : elementwise_sum<PIECE, BCE_WITH_LOGITS>(p, y, count);
    }
    sum = block_sum(partials, sum);
    return sum / (loss == CROSS_ENTROPY ? (double)rows : (double)rows * outputs);
}
