// The dual form's per-task parts: inner products of rows (Gram matrices), the corrections made of them, and the sums over
// them that are the gradient of the rates. Lists of rows longer than LIST are taken in several launches.

#include "activation.cuh"
#include "tile.cuh"

constexpr int LIST = 64;
// Rows a block takes at once.
constexpr int GROUP = 8;

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
    u32 unused;
};
static_assert(sizeof(Corrections) == 3152, "mirrored in Rust");

struct alignas(16) Coefficients {
    float factor[THREADS][GROUP];
    u64 row[THREADS];
};

// output = [output +] (coefficients @ rows) * act'(gate)
//
// Grid: x the groups of 8 rows of every task, y the columns, z the output blocks. A thread holds one column of 8 rows; the
// coefficients are assembled in shared memory, 128 correction rows at a time.
KERNEL(apply_corrections, Corrections) {
    SHARED(Coefficients, shared);
    u32 groups = (op.rows + GROUP - 1) / GROUP;
    u32 task = blockIdx.x / groups;
    u32 first = blockIdx.x % groups * GROUP;
    u32 column = blockIdx.y * THREADS + threadIdx.x;
    u32 block = blockIdx.z;
    u32 begin = block == 0 ? 0 : op.end[block - 1];
    u32 end = op.end[block];
    u32 count = begin < end ? op.terms[end - 1].column + op.terms[end - 1].count : 0;
    float sum[GROUP] = {};
    for (u32 start = 0; start < count; start += THREADS) {
        u32 n = start + threadIdx.x;
        if (n < count) {
            u32 t = begin;
            while (n >= op.terms[t].column + op.terms[t].count) ++t;
            const Term& term = op.terms[t];
            u32 i = n - term.column;
            shared.row[threadIdx.x] = term.rows + ((u64)task * term.count + i) * op.width;
            u64 gram = term.gram + (u64)task * term.task_stride + (u64)i * term.column_stride;
#pragma unroll
            for (int r = 0; r < GROUP; ++r) {
                u32 k = first + r;
                float inner = k < op.rows ? term.scale * (arena[gram + (u64)k * term.row_stride] + term.shift) : 0.0f;
                shared.factor[threadIdx.x][r] = inner;
            }
        }
        __syncthreads();
        if (column < op.width) {
            u32 here = min(count - start, (u32)THREADS);
            for (u32 j = 0; j < here; ++j) {
                float value = arena[shared.row[j] + column];
#pragma unroll
                for (int r = 0; r < GROUP; ++r) sum[r] += shared.factor[j][r] * value;
            }
        }
        __syncthreads();
    }
    if (column >= op.width) return;
#pragma unroll
    for (int r = 0; r < GROUP; ++r) {
        if (first + r >= op.rows) break;
        u32 row = (block * op.tasks + task) * op.rows + first + r;
        float value = sum[r];
        if (op.gated) {
            value *= act_derivative(op.gate.activation, arena[op.gate.values + op.gate.row(row) * op.width + column]);
        }
        float* out = arena + op.output + (u64)row * op.width + column;
        *out = op.begun ? *out + value : value;
    }
}

// One block of rows, [T, count, width], whose products are the columns from `column` on.
struct Factor {
    u64 rows;
    u32 count;
    u32 column;
};

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
    u32 unused;
};
static_assert(sizeof(Gram) == 1064, "mirrored in Rust");

// Columns one warp takes at once: with GROUP rows, 32 products.
constexpr int WARP_COLUMNS = 4;

// output[b, t, k, n] = x_b[t, k] . y[t, n]
//
// Grid: x the groups of 8 rows of every block and task, y the columns, 16 a block. A warp computes 8 x 4 products, its
// lanes spread over the width.
KERNEL(gram, Gram) {
    u32 groups = (op.rows + GROUP - 1) / GROUP;
    u32 item = blockIdx.x / groups;
    u32 task = item % op.tasks;
    u32 first = blockIdx.x % groups * GROUP;
    u32 lane = threadIdx.x % 32;
    u32 start = (blockIdx.y * WARPS + threadIdx.x / 32) * WARP_COLUMNS;
    // The whole warp leaves, so that its shuffles stay whole.
    if (start >= op.count) return;
    // A missing row or column repeats the last one; its products are computed and dropped.
    const float* x[GROUP];
#pragma unroll
    for (int r = 0; r < GROUP; ++r) {
        x[r] = arena + op.x + ((u64)item * op.rows + min(first + r, op.rows - 1)) * op.width;
    }
    const float* y[WARP_COLUMNS];
#pragma unroll
    for (int c = 0; c < WARP_COLUMNS; ++c) {
        u32 n = op.y[0].column + min(start + c, op.count - 1);
        u32 f = 0;
        while (n >= op.y[f].column + op.y[f].count) ++f;
        y[c] = arena + op.y[f].rows + ((u64)task * op.y[f].count + n - op.y[f].column) * op.width;
    }
    float sum[GROUP * WARP_COLUMNS] = {};
    for (u32 i = lane; i < op.width; i += 32) {
        float value[WARP_COLUMNS];
#pragma unroll
        for (int c = 0; c < WARP_COLUMNS; ++c) value[c] = y[c][i];
#pragma unroll
        for (int r = 0; r < GROUP; ++r) {
            float other = x[r][i];
#pragma unroll
            for (int c = 0; c < WARP_COLUMNS; ++c) sum[r * WARP_COLUMNS + c] += other * value[c];
        }
    }
    float product = warp_sum_32(sum);
    u32 k = first + lane / WARP_COLUMNS;
    u32 n = start + lane % WARP_COLUMNS;
    if (k < op.rows && n < op.count) {
        arena[op.output + ((u64)item * op.rows + k) * op.columns + op.y[0].column + n] = product;
    }
}

struct GramInner {
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
static_assert(sizeof(GramInner) == 48, "mirrored in Rust");

// output[c] -= scale * sum over rows and the columns of group c of left * (right + shift); a block a group. Without a right
// operand it counts as 0.
KERNEL(gram_inner, GramInner) {
    SHARED(Partials, partials);
    double sum = 0.0;
    for (u64 i = threadIdx.x; i < (u64)op.rows * op.group; i += THREADS) {
        u64 at = i / op.group * op.width + blockIdx.x * op.group + i % op.group;
        double right = op.right == NOWHERE ? 0.0 : (double)arena[op.right + at];
        sum += (double)arena[op.left + at] * (right + op.shift);
    }
    sum = block_sum(partials, sum);
    if (threadIdx.x == 0) {
        float* out = arena + op.output + blockIdx.x;
        *out = (float)(*out - op.scale * sum);
    }
}
