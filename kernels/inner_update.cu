// The materialised form's inner step: the weight gradient of every task, [outputs, inputs], with the update of the weights
// in its epilogue, so that the gradient never reaches memory; and the step's transpose.

#include "gradient.cuh"

struct InnerUpdate {
    GradientRows gradient;
    // Weights before and after, v before and after.
    PerTask from;
    PerTask to;
    PerTask velocity;
    PerTask new_velocity;
    Rates rates;
    float momentum;
    float decay;
};
static_assert(sizeof(InnerUpdate) == 128, "mirrored in Rust");

// v' = momentum * v + gradient + decay * from;  to = from - rate * v'.
KERNEL(inner_update, InnerUpdate) {
    SHARED(GradientTiles, shared);
    each_gradient(arena, shared, op.gradient, [&](u32 task, u64 at, float gradient) {
        float before = op.from.of(arena, task)[at];
        float v = gradient + op.decay * before;
        if (op.velocity.exists()) v += op.momentum * op.velocity.of(arena, task)[at];
        if (op.new_velocity.exists()) op.new_velocity.of(arena, task)[at] = v;
        op.to.of(arena, task)[at] = before - op.rates.of(arena, at) * v;
    });
}

struct ReverseUpdate {
    PerTask cotangent;
    PerTask direction;
    Rates rates;
    // Parameters of the layer.
    u64 length;
    float momentum;
    // Whether the direction holds that of the following step.
    u32 begun;
};
static_assert(sizeof(ReverseUpdate) == 64, "mirrored in Rust");

// direction = momentum * direction - rate * cotangent; grid: x the parameters, y the tasks.
KERNEL(reverse_update, ReverseUpdate) {
    u64 i = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (i >= op.length) return;
    u32 task = blockIdx.y;
    float* direction = op.direction.of(arena, task) + i;
    float moved = -op.rates.of(arena, i) * op.cotangent.of(arena, task)[i];
    *direction = op.begun ? op.momentum * *direction + moved : moved;
}

struct RateGradient {
    PerTask cotangent;
    PerTask velocity;
    u64 output;
    u64 length;
    u32 tasks;
    float scale;
};
static_assert(sizeof(RateGradient) == 56, "mirrored in Rust");

// output[i] -= scale * sum over the tasks of cotangent * velocity: the gradient of a rate for each parameter.
KERNEL(rate_gradient, RateGradient) {
    u64 i = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (i >= op.length) return;
    float sum = 0.0f;
    for (u32 task = 0; task < op.tasks; ++task) {
        sum += op.cotangent.of(arena, task)[i] * op.velocity.of(arena, task)[i];
    }
    arena[op.output + i] -= op.scale * sum;
}
