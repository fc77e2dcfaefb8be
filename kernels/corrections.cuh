// The dual form's corrections: coefficients, made of inner products, times rows of the steps before.
#pragma once

#include "activation.cuh"
#include "pieces.cuh"

constexpr int LIST = 64;
// Rows a block takes at once.
constexpr u32 GROUP = 8;

constexpr int NO_SHIFT = -2147483647 - 1;

// One summand of a correction: scale * (gram + shift) @ rows, with `count` rows a task.
struct Term {
    u64 gram;
    u64 rows;
    u64 scale;
    u32 task_stride;
    u32 row_stride;
    u32 column_stride;
    u32 count;
    // The first of its columns among those of its block in this launch.
    u32 column;
    // How far from the scale the shift lies, or NO_SHIFT.
    int shift;
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
    // What each warp's part of the correction rows adds up to; padded, so that rows lie in different banks.
    float part[WARPS][GROUP][32 * 4 + 4];
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

    // Those of the warp, and the lane's piece of columns.
    __device__ OwnRows(const Corrections& op, u32 piece) : block(blockIdx.z), spread(op.spread) {
        u32 groups = (op.rows + GROUP - 1) / GROUP, warp = threadIdx.x / 32;
        task = blockIdx.x / groups;
        first = blockIdx.x % groups * GROUP;
        rows = min(op.rows - first, GROUP);
        part = warp & ((1u << spread) - 1);
        column = ((blockIdx.y * (WARPS >> spread) + (warp >> spread)) * 32 + threadIdx.x % 32) * piece;
    }

    __device__ u32 row(u32 k) const { return part + (k << spread); }
};

__device__ inline void read_factors(const float* arena, const Term& term, float& scale, float& shift) {
    const float* at = arena + term.scale;
    scale = *at;
    shift = term.shift != NO_SHIFT ? at[term.shift] : 0.0f;
}

// Whether the thread has one of the terms' rows `start..start + THREADS`, and what its coefficients are made of.
struct Coefficient {
    bool there;
    float inner[GROUP] = {};
    float scale = 0.0f, shift = 0.0f;

    // Leaves where the row begins: `place(the first of its block's, its number)`.
    template <class Place>
    __device__ Coefficient(const float* arena, const Corrections& op, Coefficients& shared, const OwnRows& own, u32 begin, u32 start,
                           u32 count, Place place) {
        u32 n = start + threadIdx.x;
        there = n < count;
        if (!there) return;
        // No term before this one can hold it, and it is this one where all are of one length.
        u32 t = begin + n / op.most;
        while (n >= op.terms[t].column + op.terms[t].count) ++t;
        const Term& term = op.terms[t];
        u32 i = n - term.column;
        shared.row[threadIdx.x] = place(term.rows, (u64)own.task * term.count + i);
        read_factors(arena, term, scale, shift);
        const float* gram =
            arena + term.gram + (u64)own.task * term.task_stride + (u64)i * term.column_stride + (u64)own.first * term.row_stride;
#pragma unroll
        for (u32 r = 0; r < GROUP; ++r) {
            if (r < own.rows) inner[r] = gram[(u64)r * term.row_stride];
        }
    }

    __device__ void leave(Coefficients& shared, const OwnRows& own) const {
        if (!there) return;
#pragma unroll
        for (u32 r = 0; r < GROUP; ++r) shared.factor[threadIdx.x][r] = r < own.rows ? scale * (inner[r] + shift) : 0.0f;
    }
};

// The block's first term, and how many rows its terms have.
__device__ inline u32 terms_of_block(const Corrections& op, u32 block, u32& count) {
    u32 begin = block == 0 ? 0 : op.end[block - 1], end = op.end[block];
    count = begin < end ? op.terms[end - 1].column + op.terms[end - 1].count : 0;
    return begin;
}

// Calls `end` with the sums of one piece of columns.
template <u32 PIECE, class End>
__device__ inline void apply(float* arena, const Corrections& op, Coefficients& shared, End end_rows) {
    const OwnRows own(op, PIECE);
    u32 rows = own.rows, part = own.part, column = own.column, count, begin = terms_of_block(op, own.block, count);
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, parts = 1u << op.spread;
    bool inside = column < op.width;
    float sum[GROUP][PIECE] = {};
    for (u32 start = 0; start < count; start += THREADS) {
        u32 here = min(count - start, (u32)THREADS);
        Coefficient coefficient(arena, op, shared, own, begin, start, count, [&](u64 rows, u64 row) { return rows + row * op.width; });
        __syncthreads();
        // The first rows are on their way before the products of the Gram matrices are waited for.
        float value[CORRECTIONS_AHEAD][PIECE];
        auto fetch = [&](u32 j) {
#pragma unroll
            for (u32 a = 0; a < CORRECTIONS_AHEAD; ++a) {
                u32 at = j + (a << op.spread);
                bool there = inside && at < here;
                load_piece_or_zero(value[a], arena + (there ? shared.row[at] : 0) + column, there);
            }
        };
        fetch(part);
        coefficient.leave(shared, own);
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
    if (inside) end_rows(own, sum);
}
