// The dual form's per-task parts: inner products of rows (Gram matrices), the corrections made of them, and the sums over
// them that are the gradient of the rates. Lists of rows longer than LIST are taken in several launches.

#include "corrections.cuh"
#include "tile.cuh"

// What the corrections add up to, gated, to the output.
template <u32 PIECE>
__device__ inline void add_corrections(float* arena, const Corrections& op, Coefficients& shared) {
    apply<PIECE>(arena, op, shared, [&](const OwnRows& own, float (&sum)[GROUP][PIECE]) {
        u32 rows = own.rows;
        auto row = [&](u32 k) { return own.row(k); };
        // All that is read first, so that it is waited for once.
        float other[GROUP][PIECE];
        if (op.gated) {
            // `block_rows` are those of all tasks, here too.
            u64 at = op.gate.values + ((u64)op.gate.block[own.block] * op.gate.block_rows + own.task * op.rows + own.first) * op.width + own.column;
#pragma unroll
            for (u32 k = 0; k < GROUP; ++k) load_piece_or_zero(other[k], arena + at + (u64)row(k) * op.width, row(k) < rows);
            choose(op.gate.activation, [&](auto chosen) {
#pragma unroll
                for (u32 k = 0; k < GROUP; ++k) {
#pragma unroll
                    for (u32 p = 0; p < PIECE; ++p) sum[k][p] *= act_derivative(chosen.activation, other[k][p]);
                }
            });
        }
        float* out = arena + op.output + ((u64)(own.block * op.tasks + own.task) * op.rows + own.first) * op.width + own.column;
        if (op.begun) {
#pragma unroll
            for (u32 k = 0; k < GROUP; ++k) load_piece_or_zero(other[k], out + (u64)row(k) * op.width, row(k) < rows);
#pragma unroll
            for (u32 k = 0; k < GROUP; ++k) {
#pragma unroll
                for (u32 p = 0; p < PIECE; ++p) sum[k][p] += other[k][p];
            }
        }
#pragma unroll
        for (u32 k = 0; k < GROUP; ++k) {
            if (row(k) < rows) store_piece(out + (u64)row(k) * op.width, sum[k]);
        }
    });
}

// output = [output +] (coefficients @ rows) * act'(gate)
//
// Grid: x the groups of 8 rows of every task, y the columns, z the output blocks. A lane holds a piece of columns of 8 rows; the
// coefficients are assembled in shared memory, 128 correction rows at a time. Where there are few blocks, several warps share
// columns and divide the correction rows.
KERNEL(apply_corrections, Corrections) {
    SHARED(Coefficients, shared);
    if (op.piece == 4) {
        add_corrections<4>(arena, op, shared);
    } else {
        add_corrections<1>(arena, op, shared);
    }
}

struct Gram {
    Factor y[LIST];
    u64 x;
    u64 output;
    u32 tasks;
    u32 rows;
    u32 width;
    // Columns of the output, and how many of them this launch writes, from the first factor's on.
    u32 columns;
    u32 count;
    // The largest count of a factor.
    u32 most;
    // Columns of the output that a warp takes, at most WARP_COLUMNS, and how often that makes all of them.
    u32 share;
    u32 shares;
    // Numbers of a row that a lane takes at once: 4 where all rows lie at multiples of 16 bytes, else 1.
    u32 piece;
    // 2^spread warps share products, each with its part of the width.
    u32 spread;
    // Whether the output already holds a part of the result.
    u32 begun;
    u32 unused;
};
static_assert(sizeof(Gram) == 1088, "mirrored in Rust");

// With GROUP rows, 32 products.
constexpr u32 WARP_COLUMNS = 4;
// Pieces of a row that a lane has on their way at once.
constexpr u32 GRAM_AHEAD = 2;

struct Products {
    float of[WARPS][32];
};

// sum += x y^T over one of `parts` parts of the width; x's rows lie one after the other.
template <u32 PIECE>
__device__ inline void add_products(float (&sum)[GROUP * WARP_COLUMNS], const float* x, u32 rows,
                                    const float* const (&y)[WARP_COLUMNS], u32 columns, u32 width, u32 part, u32 parts) {
    u32 step = parts * 32 * PIECE;
    for (u32 start = (part * 32 + threadIdx.x % 32) * PIECE; start < width; start += GRAM_AHEAD * step) {
        float left[GRAM_AHEAD][GROUP][PIECE], right[GRAM_AHEAD][WARP_COLUMNS][PIECE];
#pragma unroll
        for (u32 a = 0; a < GRAM_AHEAD; ++a) {
            u32 i = start + a * step;
#pragma unroll
            for (u32 c = 0; c < WARP_COLUMNS; ++c) load_piece_or_zero(right[a][c], y[c] + i, c < columns && i < width);
#pragma unroll
            for (u32 r = 0; r < GROUP; ++r) load_piece_or_zero(left[a][r], x + (u64)r * width + i, r < rows && i < width);
        }
#pragma unroll
        for (u32 r = 0; r < GROUP; ++r) {
            if (r >= rows) break;
#pragma unroll
            for (u32 a = 0; a < GRAM_AHEAD; ++a) {
#pragma unroll
                for (u32 c = 0; c < WARP_COLUMNS; ++c) {
#pragma unroll
                    for (u32 p = 0; p < PIECE; ++p) sum[r * WARP_COLUMNS + c] += left[a][r][p] * right[a][c][p];
                }
            }
        }
    }
}

// output[b, t, k, n] = [output +] x_b[t, k] . y[t, n]
//
// Grid: x the tasks and, within each, the shares of columns, as many as a block has warps; y the groups of 8 rows; z the blocks.
// A warp computes 8 x 4 products, its lanes spread over the width. Where there are few of them, several warps share them and
// divide the width.
KERNEL(gram, Gram) {
    SHARED(Products, shared);
    u32 warp = threadIdx.x / 32;
    u32 lane = threadIdx.x % 32;
    u32 parts = 1u << op.spread;
    u32 part = warp & (parts - 1);
    u32 unit = blockIdx.x * (WARPS >> op.spread) + (warp >> op.spread);
    u32 task = unit / op.shares;
    u32 start = (unit - task * op.shares) * op.share;
    u32 item = blockIdx.z * op.tasks + task;
    u32 first = blockIdx.y * GROUP;
    u32 rows = min(op.rows - first, GROUP);
    u32 columns = min(op.count - start, op.share);
    // A warp beyond the last task stays for the barrier.
    bool idle = task >= op.tasks;
    float sum[GROUP * WARP_COLUMNS] = {};
    if (!idle) {
        const float* x = arena + op.x + ((u64)item * op.rows + first) * op.width;
        const float* y[WARP_COLUMNS];
        // No factor before this one can hold the column, and it is this one where all are of one length.
        u32 f = start / op.most;
#pragma unroll
        for (u32 c = 0; c < WARP_COLUMNS; ++c) {
            // A missing column repeats the last one, and is not read.
            u32 n = op.y[0].column + min(start + c, op.count - 1);
            while (n >= op.y[f].column + op.y[f].count) ++f;
            y[c] = arena + op.y[f].rows + ((u64)task * op.y[f].count + n - op.y[f].column) * op.width;
        }
        if (op.piece == 4) {
            add_products<4>(sum, x, rows, y, columns, op.width, part, parts);
        } else {
            add_products<1>(sum, x, rows, y, columns, op.width, part, parts);
        }
    }
    float product = warp_sum_32(sum);
    if (op.spread > 0) {
        shared.of[warp][lane] = product;
        __syncthreads();
        if (part != 0) return;
        product = 0.0f;
        for (u32 other = 0; other < parts; ++other) product += shared.of[warp + other][lane];
    }
    u32 k = lane / WARP_COLUMNS;
    u32 c = lane % WARP_COLUMNS;
    if (!idle && k < rows && c < columns) {
        float* out = arena + op.output + ((u64)item * op.rows + first + k) * op.columns + op.y[0].column + start + c;
        *out = op.begun ? *out + product : product;
    }
}

struct InnerTerm {
    u64 left;
    u64 right;
    u64 output;
    double scale;
    u32 rows;
    // Columns of a group and of the operands.
    u32 group;
    u32 width;
    float shift;
};
static_assert(sizeof(InnerTerm) == 48, "mirrored in Rust");

struct GramInner {
    InnerTerm terms[LIST];
    // Behind the last of each term's blocks.
    u32 end[LIST];
};
static_assert(sizeof(GramInner) == 3328, "mirrored in Rust");

// output[c] -= scale * sum over rows and the columns of group c of left * (right + shift), of several terms with outputs of their
// own; a block a group. Without a right operand it counts as 0.
KERNEL(gram_inner, GramInner) {
    SHARED(Partials, partials);
    u32 which = 0;
    while (blockIdx.x >= op.end[which]) ++which;
    const InnerTerm& term = op.terms[which];
    u32 column = blockIdx.x - (which == 0 ? 0 : op.end[which - 1]);
    double sum = 0.0;
    for (u64 i = threadIdx.x; i < (u64)term.rows * term.group; i += THREADS) {
        u64 at = i / term.group * term.width + column * term.group + i % term.group;
        double right = term.right == NOWHERE ? 0.0 : (double)arena[term.right + at];
        sum += (double)arena[term.left + at] * (right + term.shift);
    }
    sum = block_sum(partials, sum);
    if (threadIdx.x == 0) {
        float* out = arena + term.output + column;
        *out = (float)(*out - term.scale * sum);
    }
}
