// The dual form's corrections: coefficients, made of inner products, times rows of the steps before.
#pragma once

#include "activation.cuh"
#include "history.cuh"

constexpr int LIST = 64;
// Rows a block takes at once.
constexpr u32 GROUP = 8;

// One summand of a correction: scale * (gram + shift) @ rows, with `count` rows a task.
struct Term {
    u64 gram;
    u64 rows;
    u32 task_stride;
    u32 row_stride;
    u32 column_stride;
    u32 count;
    // The first of its columns among those of its block in this launch.
    u32 column;
    float scale;
    float shift;
    u32 unused;
};
static_assert(sizeof(Term) == 48, "mirrored in Rust");

struct Corrections {
    Term terms[LIST];
    // The terms of output block b are `end[b - 1]..end[b]`.
    u32 end[BLOCKS];
    Gate gate;
    u64 output;
    u32 tasks;
    // Rows a task.
    u32 rows;
    u32 width;
    u32 gated;
    // Whether the output already holds a part of the result.
    u32 begun;
    // The largest count of a term.
    u32 most;
    // Columns a lane takes: 4 where all rows lie at multiples of 16 bytes, else 1.
    u32 piece;
    // 2^spread warps share columns, each with its part of the correction rows.
    u32 spread;
};
static_assert(sizeof(Corrections) == 3160, "mirrored in Rust");

// One block of rows, [T, count, width], whose products with others are the columns of a Gram matrix from `column` on.
struct Factor {
    u64 rows;
    u32 count;
    u32 column;
};

struct alignas(16) Coefficients {
    float factor[THREADS][GROUP];
    u64 row[THREADS];
    // What each warp's part of the correction rows adds up to.
    float part[WARPS][GROUP][32 * 4];
};

// Correction rows a lane has on their way at once.
constexpr u32 CORRECTIONS_AHEAD = 8;

// The rows of a task that a warp has of a sum, every `step`-th from `part` on: row `part + k * step` is the sum's row k.
struct OwnRows {
    u32 task;
    u32 block;
    // The first of the group's rows, and how many there are.
    u32 first;
    u32 rows;
    u32 part;
    u32 spread;
    u32 column;

    __device__ u32 row(u32 k) const { return part + (k << spread); }
};

// Calls `end` with the sums of one piece of columns. `History`: how the rows lie, see history.cuh.
template <class History, class End>
__device__ inline void apply(float* arena, const Corrections& op, Coefficients& shared, End end_rows) {
    constexpr u32 PIECE = History::PIECE;
    u32 groups = (op.rows + GROUP - 1) / GROUP;
    u32 task = blockIdx.x / groups;
    u32 first = blockIdx.x % groups * GROUP;
    u32 rows = min(op.rows - first, GROUP);
    u32 block = blockIdx.z;
    u32 begin = block == 0 ? 0 : op.end[block - 1];
    u32 end = op.end[block];
    u32 count = begin < end ? op.terms[end - 1].column + op.terms[end - 1].count : 0;

    u32 warp = threadIdx.x / 32;
    u32 lane = threadIdx.x % 32;
    u32 parts = 1u << op.spread;
    u32 part = warp & (parts - 1);
    u32 column = (blockIdx.y * (WARPS >> op.spread) + (warp >> op.spread)) * 32 * PIECE + lane * PIECE;
    bool inside = column < op.width;
    float sum[GROUP][PIECE] = {};
    for (u32 start = 0; start < count; start += THREADS) {
        u32 here = min(count - start, (u32)THREADS);
        u32 n = start + threadIdx.x;
        float inner[GROUP] = {};
        float scale = 0.0f, shift = 0.0f;
        if (n < count) {
            // No term before this one can hold it, and it is this one where all are of one length.
            u32 t = begin + n / op.most;
            while (n >= op.terms[t].column + op.terms[t].count) ++t;
            const Term& term = op.terms[t];
            u32 i = n - term.column;
            shared.row[threadIdx.x] = History::place(term.rows, (u64)task * term.count + i, op.width);
            scale = term.scale;
            shift = term.shift;
            const float* gram =
                arena + term.gram + (u64)task * term.task_stride + (u64)i * term.column_stride + (u64)first * term.row_stride;
#pragma unroll
            for (u32 r = 0; r < GROUP; ++r) {
                if (r < rows) inner[r] = gram[(u64)r * term.row_stride];
            }
        }
        __syncthreads();
        // The first rows are on their way before the products of the Gram matrices are waited for.
        float value[CORRECTIONS_AHEAD][PIECE];
        auto fetch = [&](u32 j) {
#pragma unroll
            for (u32 a = 0; a < CORRECTIONS_AHEAD; ++a) {
                u32 at = j + (a << op.spread);
                bool there = inside && at < here;
                History::load(value[a], arena, there ? shared.row[at] + column : 0, there);
            }
        };
        fetch(part);
        if (n < count) {
#pragma unroll
            for (u32 r = 0; r < GROUP; ++r) {
                shared.factor[threadIdx.x][r] = r < rows ? scale * (inner[r] + shift) : 0.0f;
            }
        }
        __syncthreads();
        for (u32 j = part; j < here; j += CORRECTIONS_AHEAD << op.spread) {
            if (j != part) fetch(j);
#pragma unroll
            for (u32 a = 0; a < CORRECTIONS_AHEAD; ++a) {
                u32 at = j + (a << op.spread);
                if (at >= here) break;
                float factor[GROUP];
#pragma unroll
                for (u32 r = 0; r < GROUP; ++r) factor[r] = shared.factor[at][r];
#pragma unroll
                for (u32 r = 0; r < GROUP; ++r) {
#pragma unroll
                    for (u32 p = 0; p < PIECE; ++p) sum[r][p] += factor[r] * value[a][p];
                }
            }
        }
        __syncthreads();
    }

    // From here on a warp has every `parts`-th row, and all of the sum.
    if (op.spread > 0) {
#pragma unroll
        for (u32 r = 0; r < GROUP; ++r) store_piece(&shared.part[warp][r][lane * PIECE], sum[r]);
        __syncthreads();
#pragma unroll
        for (u32 k = 0; k < GROUP; ++k) {
            u32 r = part + (k << op.spread);
            if (r >= rows) break;
#pragma unroll
            for (u32 p = 0; p < PIECE; ++p) sum[k][p] = 0.0f;
#pragma unroll
            for (u32 other = 0; other < WARPS; ++other) {
                if (other >= parts) break;
                float add[PIECE];
                load_piece(add, &shared.part[warp - part + other][r][lane * PIECE]);
#pragma unroll
                for (u32 p = 0; p < PIECE; ++p) sum[k][p] += add[p];
            }
        }
    }
    if (inside) end_rows(OwnRows{task, block, first, rows, part, op.spread, column}, sum);
}
