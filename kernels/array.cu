// Plain loops over regions.

#include "kernel.cuh"

struct Fill {
    u64 to;
    u64 length;
    float value;
    u32 unused;
};
static_assert(sizeof(Fill) == 24, "mirrored in Rust");

KERNEL(fill, Fill) {
    u64 i = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (i < op.length) arena[op.to + i] = op.value;
}

struct Copy {
    u64 from;
    u64 to;
    u64 length;
};
static_assert(sizeof(Copy) == 24, "mirrored in Rust");

KERNEL(copy, Copy) {
    u64 i = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (i < op.length) arena[op.to + i] = arena[op.from + i];
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
    u64 i = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (i < op.length) arena[op.to + i] += op.scale * arena[op.from + i];
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

// to (+)= scale * the sum of the rows of from
KERNEL(sum_rows, SumRows) {
    u64 i = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (i >= op.width) return;
    float sum = 0.0f;
    for (u32 row = 0; row < op.rows; ++row) sum += arena[op.from + row * op.width + i];
    float* out = arena + op.to + i;
    *out = op.begun ? *out + op.scale * sum : op.scale * sum;
}
