// A factor for each column of some rows, with an activation: a layer whose weight is diagonal; and its transpose.

#include "activation.cuh"
#include "stripes.cuh"

struct ColumnScale {
    // Rows [rows, width], one row of factors, and the output.
    u64 from;
    u64 scale;
    u64 to;
    // Transpose: read as the cotangent of `to`, written as that of `from`; and the factors' gradient, or NOWHERE.
    u64 cotangent;
    u64 gradient;
    u32 rows;
    u32 width;
    u32 activation;
    // Transpose: the factor of the gradient.
    float weight;
};
static_assert(sizeof(ColumnScale) == 56, "mirrored in Rust");

// to = act(from * scale); grid: x the rows, y the columns.
KERNEL(column_scale, ColumnScale) {
    u32 column = blockIdx.y * THREADS + threadIdx.x;
    if (column >= op.width) return;
    u64 at = (u64)blockIdx.x * op.width + column;
    arena[op.to + at] = act(op.activation, arena[op.from + at] * arena[op.scale + column]);
}

// u = cotangent * act'(to);  gradient += weight * the sum over the rows of u * from;  cotangent = u * scale
//
// Grid: x the columns, 32 a block; every fourth row is one thread's.
KERNEL(column_scale_adjoint, ColumnScale) {
    SHARED(StripeSums, shared);
    u32 lane = threadIdx.x % COLUMNS;
    u32 stripe = threadIdx.x / COLUMNS;
    u32 column = blockIdx.x * COLUMNS + lane;
    float sum = 0.0f;
    if (column < op.width) {
        float scale = arena[op.scale + column];
        for (u32 row = stripe; row < op.rows; row += STRIPES) {
            u64 at = (u64)row * op.width + column;
            float u = arena[op.cotangent + at] * act_derivative(op.activation, arena[op.to + at]);
            sum += u * arena[op.from + at];
            arena[op.cotangent + at] = u * scale;
        }
    }
    float total = stripe_total(shared, sum);
    if (stripe != 0 || column >= op.width || op.gradient == NOWHERE) return;
    arena[op.gradient + column] += op.weight * total;
}
