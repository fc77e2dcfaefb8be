// Plain loops over regions.

#include "pieces.cuh"
#include "sums.cuh"
#include "tensor.cuh"

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
    // Of a copy in 16 bits, in numbers of 32 bits; NOWHERE without one.
    u64 packed;
    u32 operands;
    u32 unused;
};
static_assert(sizeof(Copy) == 40, "mirrored in Rust");

KERNEL(copy, Copy) {
    Span span(op.length, in_fours(op.from, op.to));
    float value[OWN];
    span.load(value, arena + op.from);
    span.store(arena + op.to, value);
    if (op.packed != NOWHERE) store_packed(span, arena + op.packed, op.operands, value);
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

// to (+)= scale * the sum of the rows of from
KERNEL(sum_rows, SumRows) {
    u64 i = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (i < op.width) finish_sum(op, arena + op.to + i, sum_down(arena + op.from + i, op.width, 0, op.rows, 1));
}

// The same of many rows and few columns.
KERNEL_OF(sum_tall_rows, SumRows, TALL_COLUMNS * TALL_SHARES, 1) {
    SHARED(TallSums, shared);
    float sum = sum_tall(arena, op, shared);
    u64 column = (u64)blockIdx.x * TALL_COLUMNS + threadIdx.x / 32;
    if (threadIdx.x % 32 == 0 && column < op.width) finish_sum(op, arena + op.to + column, sum);
}
