// Corrections and inner products of the steps' rows on tensor cores, of copies in bf16 behind the arena. What the copies are
// multiplied with goes in twice, rounded and what rounding has left of it, so that it counts to 16 bits.
#pragma once

#include "corrections.cuh"
#include "mma.cuh"
#include "tensor.cuh"

// Numbers in bf16 by pairs, and what that has left of them.
struct Split {
    u32 rounded[2], left[2];

    __device__ Split(float a, float b, float c, float d) : Split(round_bf16(a, b), round_bf16(c, d), a, b, c, d) {}

private:
    __device__ Split(u32 lower, u32 upper, float a, float b, float c, float d) : rounded{lower, upper} {
        float2 first = pair_of_bf16(lower), second = pair_of_bf16(upper);
        left[0] = round_bf16(a - first.x, b - first.y);
        left[1] = round_bf16(c - second.x, d - second.y);
    }
};

// Where row `row` of the copy begins, in numbers of 16 bits.
__device__ inline u64 copied_row(u64 rows, u64 row, u32 width) { return 2 * rows + row * width; }

// Eight numbers of a copy, or zeros.
__device__ inline uint4 load_eight(const float* arena, u64 at, bool inside) {
    uint4 eight = {0, 0, 0, 0};
    if (inside) eight = *(const uint4*)((const unsigned short*)arena + at);
    return eight;
}

// The lower, or the upper, halves of two words.
template <bool UPPER>
__device__ inline u32 halves(u32 first, u32 second) {
    return UPPER ? first >> 16 | (second & 0xffff0000) : (first & 0xffff) | second << 16;
}

// The lane's piece of row `row` of its group, in the block's columns, strip by strip of 128.
template <u32 PIECE>
__device__ inline float* own_piece(const Corrections& op, Coefficients& shared, u32 row) {
    u32 strip = threadIdx.x / 32 >> op.spread;
    return &shared.part[strip << op.spread][row][threadIdx.x % 32 * PIECE];
}

// The columns `8g + m` and `64 + 8g + m` of four rows of a strip, two of them consecutive, are an operand: with lane = 4g + t it has
// 16 columns in 8 products, and rows 2t, 2t + 1, 2t + 8 and 2t + 9 of 16.
template <bool UPPER>
__device__ inline void multiply_columns(float (&sum)[4], const u32 (&left)[4], const u32 (&right)[4], const Split& factors) {
    u32 columns[4] = {halves<UPPER>(left[0], left[1]), halves<UPPER>(right[0], right[1]), halves<UPPER>(left[2], left[3]),
                      halves<UPPER>(right[2], right[3])};
    mma_bf16(sum, columns, factors.left);
    mma_bf16(sum, columns, factors.rounded);
}

// All 128 columns of a strip: those from `8g` on of the four rows in `left`, and from `64 + 8g` on in `right`.
__device__ inline void multiply_strip(float (&sum)[8][4], const uint4 (&left)[4], const uint4 (&right)[4], const Split& factors) {
#define COLUMNS(word, m)                                                                    \
    {                                                                                       \
        u32 of_left[4] = {left[0].word, left[1].word, left[2].word, left[3].word};          \
        u32 of_right[4] = {right[0].word, right[1].word, right[2].word, right[3].word};     \
        multiply_columns<false>(sum[m], of_left, of_right, factors);                        \
        multiply_columns<true>(sum[m + 1], of_left, of_right, factors);                     \
    }
    COLUMNS(x, 0)
    COLUMNS(y, 2)
    COLUMNS(z, 4)
    COLUMNS(w, 6)
#undef COLUMNS
}

// Stores such sums, 8 rows of 128 columns, from row to row `pitch` apart.
__device__ inline void leave_strip(float* to, u32 pitch, const float (&sum)[8][4]) {
    u32 g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
        float* piece = to + (2 * t + i % 2) * pitch + 64 * (i / 2) + 8 * g;
        *(float4*)piece = float4{sum[0][i], sum[1][i], sum[2][i], sum[3][i]};
        *(float4*)(piece + 4) = float4{sum[4][i], sum[5][i], sum[6][i], sum[7][i]};
    }
}

// Adds the inner products, over 32 columns of which a lane has eight, of 16 copied rows with 8 rows that were made.
__device__ inline void multiply_rows(float (&sum)[4], const uint4& lower, const uint4& upper, const uint4& rounded, const uint4& left) {
    u32 first[4] = {lower.x, upper.x, lower.y, upper.y}, second[4] = {lower.z, upper.z, lower.w, upper.w};
    u32 rounded_pairs[2][2] = {{rounded.x, rounded.y}, {rounded.z, rounded.w}}, left_pairs[2][2] = {{left.x, left.y}, {left.z, left.w}};
    mma_bf16(sum, first, left_pairs[0]);
    mma_bf16(sum, second, left_pairs[1]);
    mma_bf16(sum, first, rounded_pairs[0]);
    mma_bf16(sum, second, rounded_pairs[1]);
}

// Leaves the corrections of the warp's own rows at `own_piece`.
__device__ inline void add_copied_corrections(float* arena, const Corrections& op, Coefficients& shared) {
    const OwnRows own(op, 4);
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, parts = 1u << op.spread;
    u32 column = own.column - lane * 4 + 8 * g, count, begin = terms_of_block(op, own.block, count);
    bool inside = column < op.width, inside_right = column + 64 < op.width;
    float sum[8][4] = {};
    for (u32 start = 0; start < count; start += THREADS) {
        u32 here = min(count - start, (u32)THREADS);
        Coefficient coefficient(arena, op, shared, own, begin, start, count,
                                [&](u64 rows, u64 row) { return copied_row(rows, row, op.width); });
        coefficient.leave(shared, own);
        __syncthreads();
        for (u32 step = own.part; step * 16 < here; step += parts) {
            uint4 left[4], right[4];
            float factor[4];
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                u32 j = step * 16 + 2 * t + i / 2 * 8 + i % 2;
                bool there = j < here;
                u64 row = there ? shared.row[j] + column : 0;
                left[i] = load_eight(arena, row, there && inside);
                right[i] = load_eight(arena, row + 64, there && inside_right);
                factor[i] = there ? shared.factor[j][g] : 0.0f;
            }
            multiply_strip(sum, left, right, Split(factor[0], factor[1], factor[2], factor[3]));
        }
        __syncthreads();
    }
    leave_strip(&shared.part[warp][0][0], sizeof(shared.part[0][0]) / sizeof(float), sum);
    if (op.spread == 0) {
        __syncwarp();
        return;
    }
    __syncthreads();
#pragma unroll 1
    for (u32 k = 0; own.row(k) < own.rows; ++k) {
        u32 row = own.row(k);
        float all[4] = {};
        for (u32 other = 0; other < parts; ++other) {
            float add[4];
            load_piece(add, &shared.part[warp - own.part + other][row][lane * 4]);
#pragma unroll
            for (u32 p = 0; p < 4; ++p) all[p] += add[p];
        }
        store_piece(own_piece<4>(op, shared, row), all);
    }
}

// Factors of a Gram matrix at most.
constexpr int ENDED_LIST = 32;

// `gram` of low_rank.cu, of the rows that a kernel has just made.
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

// Leaves a piece of a row for `gram_of_ended`, at `own_piece`.
__device__ inline void leave_ended(float* piece, const float (&values)[4]) {
    const Split split(values[0], values[1], values[2], values[3]);
    *(uint4*)piece = uint4{split.rounded[0], split.rounded[1], split.left[0], split.left[1]};
}

// Inner products of 32 of the steps' rows at a time, by 16, strip by strip.
constexpr u32 GRAM_CHUNK = 32;
struct ChunkProducts {
    float of[WARPS][GRAM_CHUNK / 16][16 * GROUP];
};
static_assert(sizeof(ChunkProducts) <= sizeof(Coefficients::factor), "it takes its place");

// The inner products of the rows that were left, a group of one task, with that task's rows of each factor. A warp computes 16 x 8 of
// them over a strip; strips and blocks are added in their order.
__device__ inline void gram_of_ended(float* arena, const Corrections& of, const EndedGram& op, Coefficients& shared, u32& last) {
    const OwnRows own(of, 4);
    u32 rows = own.rows, strips = WARPS >> of.spread, warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    ChunkProducts& products = *(ChunkProducts*)shared.factor;
    float* output = arena + op.output + ((u64)(own.block * of.tasks + own.task) * of.rows + own.first) * op.columns;
    u32 item = blockIdx.z * gridDim.x + blockIdx.x, part = GROUP * op.columns;
    float* parts = arena + op.parts + (u64)item * gridDim.y * part;
    for (u32 start = 0; start < op.columns; start += GRAM_CHUNK) {
        u32 here = min(op.columns - start, GRAM_CHUNK), tiles = (here + 15) / 16;
        if (threadIdx.x < here) {
            u32 n = start + threadIdx.x, f = n / op.most;
            while (n >= op.y[f].column + op.y[f].count) ++f;
            shared.row[threadIdx.x] = copied_row(op.y[f].rows, (u64)own.task * op.y[f].count + n - op.y[f].column, of.width);
        }
        __syncthreads();
        for (u32 unit = warp; unit < tiles * strips; unit += WARPS) {
            u32 strip = unit & (strips - 1), tile = unit / strips, n = tile * 16 + g;
            u64 lower_row = n < here ? shared.row[n] : 0, upper_row = n + 8 < here ? shared.row[n + 8] : 0;
            float sum[4] = {};
#pragma unroll
            for (u32 k = 0; k < 128; k += 32) {
                u32 local = k + 8 * t, column = (blockIdx.y * strips + strip) * 128 + local;
                bool inside = column < of.width;
                uint4 lower = load_eight(arena, lower_row + column, inside && n < here);
                uint4 upper = load_eight(arena, upper_row + column, inside && n + 8 < here);
                uint4 x[2] = {};
                if (inside) {
                    const float* from = &shared.part[strip << of.spread][g][local];
                    x[0] = *(const uint4*)from;
                    x[1] = *(const uint4*)(from + 4);
                }
                multiply_rows(sum, lower, upper, {x[0].x, x[0].y, x[1].x, x[1].y}, {x[0].z, x[0].w, x[1].z, x[1].w});
            }
#pragma unroll
            for (u32 i = 0; i < 4; ++i) products.of[strip][tile][(g + i / 2 * 8) * GROUP + 2 * t + i % 2] = sum[i];
        }
        __syncthreads();
        for (u32 i = threadIdx.x; i < tiles * 16 * GROUP; i += THREADS) {
            u32 tile = i / (16 * GROUP), within = i % (16 * GROUP), n = i / GROUP, row = i % GROUP;
            if (row >= rows || n >= here) continue;
            float sum = 0.0f;
            for (u32 strip = 0; strip < strips; ++strip) sum += products.of[strip][tile][within];
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
