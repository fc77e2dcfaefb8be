// Plain loops over regions.

#include "pieces.cuh"
#include "tile.cuh"

struct Fill {
    u64 to;
    u64 length;
    float value;
    u32 unused;
};
static_assert(sizeof(Fill) == 24, "mirrored in Rust");

KERNEL(fill, Fill) {
    Span span(op.length, in_fours(op.to));
    float value[OWN];
#pragma unroll
    for (u32 k = 0; k < OWN; ++k) value[k] = op.value;
    span.store(arena + op.to, value);
}

struct Copy {
    u64 from;
    u64 to;
    u64 length;
};
static_assert(sizeof(Copy) == 24, "mirrored in Rust");

KERNEL(copy, Copy) {
    Span span(op.length, in_fours(op.from, op.to));
    float value[OWN];
    span.load(value, arena + op.from);
    span.store(arena + op.to, value);
}

// Rows of one launch of `gather`.
constexpr int INDICES = 512;

struct Gather {
    u64 from;
    u64 to;
    u32 width;
    u32 unused;
    u32 index[INDICES];
};
static_assert(sizeof(Gather) == 2072, "mirrored in Rust");

// to[i] = from[index[i]], by rows; grid: x the rows, y the columns.
KERNEL(gather, Gather) {
    u32 column = blockIdx.y * THREADS + threadIdx.x;
    if (column >= op.width) return;
    u64 from = op.from + (u64)op.index[blockIdx.x] * op.width;
    arena[op.to + (u64)blockIdx.x * op.width + column] = arena[from + column];
}

struct AddScaled {
    u64 from;
    u64 to;
    u64 length;
    float scale;
    u32 unused;
};
static_assert(sizeof(AddScaled) == 32, "mirrored in Rust");

// to += scale * from
KERNEL(add_scaled, AddScaled) {
    Span span(op.length, in_fours(op.from, op.to));
    float value[OWN], add[OWN];
    span.load(value, arena + op.to);
    span.load(add, arena + op.from);
#pragma unroll
    for (u32 k = 0; k < OWN; ++k) value[k] += op.scale * add[k];
    span.store(arena + op.to, value);
}

struct SumRows {
    u64 from;
    u64 to;
    u64 width;
    u32 rows;
    float scale;
    // Whether to add to what is there.
    u32 begun;
    u32 unused;
};
static_assert(sizeof(SumRows) == 40, "mirrored in Rust");

// Rows that a thread has on their way at once.
constexpr u32 AT_ONCE = 8;

// The sum of every `step`th row from row `first` on, of one column.
__device__ inline float sum_down(const float* column, u64 width, u32 first, u32 rows, u32 step) {
    float sum = 0.0f;
#pragma unroll 1
    for (u32 row = first; row < rows; row += AT_ONCE * step) {
        float value[AT_ONCE];
#pragma unroll
        for (u32 k = 0; k < AT_ONCE; ++k) value[k] = row + k * step < rows ? column[(row + k * step) * width] : 0.0f;
#pragma unroll
        for (u32 k = 0; k < AT_ONCE; ++k) sum += value[k];
    }
    return sum;
}

// What becomes of a column's sum.
__device__ inline void finish_sum(const SumRows& op, float* out, float sum) {
    *out = op.begun ? *out + op.scale * sum : op.scale * sum;
}

// to (+)= scale * the sum of the rows of from
KERNEL(sum_rows, SumRows) {
    u64 i = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (i < op.width) finish_sum(op, arena + op.to + i, sum_down(arena + op.from + i, op.width, 0, op.rows, 1));
}

// Columns a block sums, and threads that share the rows of each.
constexpr u32 TALL_COLUMNS = 32;
constexpr u32 TALL_SHARES = 32;

struct TallSums {
    float sum[TALL_SHARES][TALL_COLUMNS + 1];
};

// The same of many rows and few columns.
KERNEL_OF(sum_tall_rows, SumRows, TALL_COLUMNS * TALL_SHARES, 1) {
    SHARED(TallSums, shared);
    u32 lane = threadIdx.x % 32, share = threadIdx.x / 32;
    u64 first = (u64)blockIdx.x * TALL_COLUMNS, i = first + lane;
    shared.sum[share][lane] = i < op.width ? sum_down(arena + op.from + i, op.width, share, op.rows, TALL_SHARES) : 0.0f;
    __syncthreads();
    // A warp a column now.
    float sum = warp_sum(shared.sum[lane][share]);
    if (lane == 0 && first + share < op.width) finish_sum(op, arena + op.to + first + share, sum);
}
