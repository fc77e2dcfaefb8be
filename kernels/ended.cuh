// What follows the end of a product in the same kernel: the loss of what came out, or its curvature, and the inner products
// of the rows with those of the steps before.
#pragma once

#include "corrections.cuh"
#include "loss.cuh"
#include "tensor.cuh"

enum Following : u32 { NOTHING, MSE_DELTA, BCE_DELTA, MSE_CURVATURE, BCE_CURVATURE };

// `elementwise_delta` or `elementwise_curvature` of loss.cu.
struct EndedLoss {
    // The curvature's; the delta's is the output itself.
    u64 prediction;
    u64 target;
    u64 output;
    // Of the copy in 16 bits, in numbers of 32 bits; NOWHERE without one.
    u64 packed;
    // `Following`.
    u32 kind;
    u32 activation;
    u32 begun;
    float scale;
};
static_assert(sizeof(EndedLoss) == 48, "mirrored in Rust");

// Factors of a Gram matrix at most.
constexpr int ENDED_LIST = 32;

// `gram` of low_rank.cu, of the rows that were last made.
struct EndedGram {
    Factor y[ENDED_LIST];
    u64 output;
    // Where the blocks that share a row leave their parts, and count themselves: 0 before and after.
    u64 parts;
    u64 counters;
    // Of the output; 0 without a Gram matrix.
    u32 columns;
    // The largest count of a factor.
    u32 most;
};
static_assert(sizeof(EndedGram) == 544, "mirrored in Rust");

// Four numbers in 16 bits.
__device__ inline void store_copy(float* arena, u64 packed, u64 at, u32 operands, const float (&from)[4]) {
    if (packed == NOWHERE) return;
    u32 lower = round_pair(operands, from[0], from[1]), upper = round_pair(operands, from[2], from[3]);
    *(u64*)((u32*)arena + packed + at / 2) = lower | (u64)upper << 32;
}

template <u32 KIND, int N>
__device__ inline void follow_by(float scale, float (&values)[N][4], const float (&other)[N][4], const float (&slope)[N][4],
                                 const float (&begun)[N][4]) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
            float value = values[i][c], beside = other[i][c];
            float loss = KIND == MSE_DELTA       ? loss_slope(MSE, scale, value, beside)
                         : KIND == BCE_DELTA     ? loss_slope(BCE_WITH_LOGITS, scale, value, beside)
                         : KIND == MSE_CURVATURE ? value * loss_second(MSE, scale, beside)
                                                 : value * loss_second(BCE_WITH_LOGITS, scale, beside);
            values[i][c] = loss * slope[i][c] + begun[i][c];
        }
    }
}

// Rows `at[i]` on of what came out, replaced by what the loss makes of them.
template <int N>
__device__ inline void follow(float* arena, const EndedLoss& op, u32 operands, const int (&row)[N], const u64 (&at)[N],
                              float (&values)[N][4]) {
    bool bends = op.kind >= MSE_CURVATURE;
    float other[N][4], begun[N][4];
#pragma unroll
    for (int i = 0; i < N; ++i) {
        load_piece_or_zero(other[i], arena + (bends ? op.prediction : op.target) + at[i], row[i] >= 0);
        load_piece_or_zero(begun[i], arena + op.output + at[i], row[i] >= 0 && op.begun);
    }
    float slope[N][4];
    choose(op.activation, [&](auto chosen) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
#pragma unroll
            for (int c = 0; c < 4; ++c) slope[i][c] = act_derivative(chosen.activation, bends ? other[i][c] : values[i][c]);
        }
    });
    if (op.kind == MSE_DELTA) {
        follow_by<MSE_DELTA>(op.scale, values, other, slope, begun);
    } else if (op.kind == BCE_DELTA) {
        follow_by<BCE_DELTA>(op.scale, values, other, slope, begun);
    } else if (op.kind == MSE_CURVATURE) {
        follow_by<MSE_CURVATURE>(op.scale, values, other, slope, begun);
    } else {
        follow_by<BCE_CURVATURE>(op.scale, values, other, slope, begun);
    }
#pragma unroll
    for (int i = 0; i < N; ++i) {
        if (row[i] < 0) continue;
        store_piece(arena + op.output + at[i], values[i]);
        store_copy(arena, op.packed, at[i], operands, values[i]);
    }
}

// Where the lane's piece of row `row` of its group lies until its inner products are formed: in the block's columns, strip by strip.
// No other lane has used the place before.
__device__ inline float* ended_piece(const Corrections& op, Coefficients& shared, u32 row) {
    u32 warp = threadIdx.x / 32, strip = warp >> op.spread;
    return &shared.part[strip << op.spread][row][threadIdx.x % 32 * 4];
}

// Products of a chunk of history rows: batches of four with the block's rows, strip by strip.
constexpr u32 GRAM_CHUNK = 32;
struct ChunkProducts {
    float of[WARPS][GRAM_CHUNK / 4][32];
};
static_assert(sizeof(ChunkProducts) <= sizeof(Coefficients::factor), "it takes its place");

// The inner products of the rows at `ended_piece`, a group of one task, with that task's rows of each factor. A warp computes 8 x 4
// of them over 128 columns; strips and blocks are added in their order.
template <class History>
__device__ inline void gram_of_ended(float* arena, const Corrections& of, const EndedGram& op, Coefficients& shared, u32& last) {
    u32 groups = (of.rows + GROUP - 1) / GROUP, task = blockIdx.x / groups, first = blockIdx.x % groups * GROUP;
    u32 rows = min(of.rows - first, GROUP), strips = WARPS >> of.spread;
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    ChunkProducts& products = *(ChunkProducts*)shared.factor;
    float* output = arena + op.output + ((u64)(blockIdx.z * of.tasks + task) * of.rows + first) * op.columns;
    u32 item = blockIdx.z * gridDim.x + blockIdx.x;
    float* parts = arena + op.parts + (u64)item * gridDim.y * GROUP * op.columns;
    u32 part = GROUP * op.columns;
    for (u32 start = 0; start < op.columns; start += GRAM_CHUNK) {
        u32 here = min(op.columns - start, GRAM_CHUNK), batches = (here + 3) / 4;
        if (threadIdx.x < here) {
            u32 n = start + threadIdx.x, f = n / op.most;
            while (n >= op.y[f].column + op.y[f].count) ++f;
            shared.row[threadIdx.x] =
                History::place(op.y[f].rows, (u64)task * op.y[f].count + n - op.y[f].column, of.width);
        }
        __syncthreads();
        for (u32 unit = warp; unit < batches * strips; unit += WARPS) {
            u32 strip = unit & (strips - 1), batch = unit / strips;
            u32 column = ((blockIdx.y * strips + strip) * 32 + lane) * 4;
            bool inside = column < of.width;
            float y[4][4], sum[32];
#pragma unroll
            for (u32 c = 0; c < 4; ++c) {
                u32 n = batch * 4 + c;
                bool there = inside && n < here;
                History::load(y[c], arena, there ? shared.row[n] + column : 0, there);
            }
#pragma unroll
            for (u32 r = 0; r < GROUP; ++r) {
                float x[4];
                load_piece_or_zero(x, &shared.part[strip << of.spread][r][lane * 4], inside && r < rows);
#pragma unroll
                for (u32 c = 0; c < 4; ++c) {
                    sum[r * 4 + c] = x[0] * y[c][0] + x[1] * y[c][1] + x[2] * y[c][2] + x[3] * y[c][3];
                }
            }
            products.of[strip][batch][lane] = warp_sum_32(sum);
        }
        __syncthreads();
        for (u32 i = threadIdx.x; i < batches * 32; i += THREADS) {
            u32 row = i % 32 / 4, n = i / 32 * 4 + i % 4;
            if (row >= rows || n >= here) continue;
            float sum = 0.0f;
            for (u32 strip = 0; strip < strips; ++strip) sum += products.of[strip][i / 32][i % 32];
            u32 at = row * op.columns + start + n;
            if (gridDim.y == 1) {
                output[at] = sum;
            } else {
                parts[blockIdx.y * part + at] = sum;
            }
        }
    }
    if (gridDim.y == 1) return;
    // The last block of the rows adds up all parts.
    u32* counter = (u32*)arena + op.counters + item;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last = atomicAdd(counter, 1) == gridDim.y - 1;
    __syncthreads();
    if (!last) return;
    __threadfence();
    for (u32 i = threadIdx.x; i < rows * op.columns; i += THREADS) {
        float sum = 0.0f;
#pragma unroll 4
        for (u32 p = 0; p < gridDim.y; ++p) sum += __ldcg(&parts[p * part + i]);
        output[i] = sum;
    }
    if (threadIdx.x == 0) *counter = 0;
}
