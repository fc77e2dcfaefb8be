// Batch normalisation over the rows of each task, its Jacobian, and the adjoint of the latter: see src/device/normalise.rs.
// Grid: x the tasks, y the columns, 32 a block.

#include "activation.cuh"
#include "stripes.cuh"

// A block's columns of one task's rows, each thread's own column and every fourth row of it.
struct TaskColumns {
    // Elements of the thread's column in the first row, and in [T, width].
    u64 first;
    u64 once;
    u32 width;
    u32 rows;
    bool inside;

    __device__ TaskColumns(u32 width, u32 rows) : width(width), rows(rows) {
        u32 column = blockIdx.y * COLUMNS + threadIdx.x % COLUMNS;
        inside = column < width;
        first = (u64)blockIdx.x * rows * width + column;
        once = (u64)blockIdx.x * width + column;
    }

    // Calls `body` with the place of each of the thread's elements.
    template <class Body>
    __device__ void each(Body body) const {
        if (!inside) return;
        for (u32 row = threadIdx.x / COLUMNS; row < rows; row += STRIPES) body(first + (u64)row * width);
    }

    // The mean of `summand` over all rows of the column; every thread of the block calls it.
    template <class Summand>
    __device__ float mean(StripeSums& shared, Summand summand) const {
        float sum = 0.0f;
        each([&](u64 at) { sum += summand(at); });
        return stripe_total(shared, sum) / (float)rows;
    }
};

struct Normalise {
    // Read as u, written as x.
    u64 rows;
    // [T, width]
    u64 inverse;
    // One row.
    u64 shift;
    u64 output;
    u32 count;
    u32 width;
    u32 activation;
    float epsilon;
};
static_assert(sizeof(Normalise) == 48, "mirrored in Rust");

KERNEL(normalise, Normalise) {
    SHARED(StripeSums, shared);
    TaskColumns columns(op.width, op.count);
    float* rows = arena + op.rows;
    float mean = columns.mean(shared, [&](u64 at) { return rows[at]; });
    float variance = columns.mean(shared, [&](u64 at) { return (rows[at] - mean) * (rows[at] - mean); });
    if (!columns.inside) return;
    float inverse = 1.0f / sqrtf(variance + op.epsilon);
    float shift = arena[op.shift + columns.once % op.width];
    if (threadIdx.x < COLUMNS) arena[op.inverse + columns.once] = inverse;
    columns.each([&](u64 at) {
        float x = (rows[at] - mean) * inverse;
        rows[at] = x;
        arena[op.output + at] = act(op.activation, x + shift);
    });
}

struct NormaliseJacobian {
    u64 normalised;
    u64 inverse;
    u64 from;
    u64 to;
    u32 count;
    u32 width;
    u32 accumulate;
    u32 unused;
};
static_assert(sizeof(NormaliseJacobian) == 48, "mirrored in Rust");

KERNEL(normalise_jacobian, NormaliseJacobian) {
    SHARED(StripeSums, shared);
    TaskColumns columns(op.width, op.count);
    const float* x = arena + op.normalised;
    const float* v = arena + op.from;
    float mean = columns.mean(shared, [&](u64 at) { return v[at]; });
    float along = columns.mean(shared, [&](u64 at) { return v[at] * x[at]; });
    if (!columns.inside) return;
    float inverse = arena[op.inverse + columns.once];
    columns.each([&](u64 at) {
        float product = inverse * (v[at] - mean - x[at] * along);
        float* to = arena + op.to + at;
        *to = op.accumulate ? *to + product : product;
    });
}

struct NormaliseAdjoint {
    u64 normalised;
    u64 inverse;
    u64 values;
    u64 y_delta;
    u64 u_delta;
    u64 cotangent;
    u64 u_cotangent;
    // Written where the activation is curved.
    u64 y_cotangent;
    u64 e_cotangent;
    u32 count;
    u32 width;
    u32 activation;
    u32 curved;
};
static_assert(sizeof(NormaliseAdjoint) == 88, "mirrored in Rust");

KERNEL(normalise_adjoint, NormaliseAdjoint) {
    SHARED(StripeSums, shared);
    TaskColumns columns(op.width, op.count);
    const float* x = arena + op.normalised;
    const float* g = arena + op.cotangent;
    const float* y_delta = arena + op.y_delta;
    const float* u_delta = arena + op.u_delta;
    float g_mean = columns.mean(shared, [&](u64 at) { return g[at]; });
    float g_x = columns.mean(shared, [&](u64 at) { return g[at] * x[at]; });
    float y_delta_x = columns.mean(shared, [&](u64 at) { return y_delta[at] * x[at]; });
    float g_u_delta = columns.mean(shared, [&](u64 at) { return g[at] * u_delta[at]; });
    if (!columns.inside) return;
    float inverse = arena[op.inverse + columns.once];
    columns.each([&](u64 at) {
        float h = inverse * (g[at] - g_mean - x[at] * g_x);
        float a = arena[op.values + at];
        arena[op.u_cotangent + at] = -inverse * (x[at] * g_u_delta + h * y_delta_x + u_delta[at] * g_x);
        if (op.curved) arena[op.y_cotangent + at] = h * y_delta[at] * act_curvature(op.activation, a);
        arena[op.e_cotangent + at] = h * act_derivative(op.activation, a);
    });
}
