// The materialised form's inner step: the weight gradient of every task, [outputs, inputs], with the update of the weights
// in its epilogue, so that the gradient never reaches memory; and the step's transpose.
//
// A layer's bias lies right behind its weight, in every array of parameters.

#include "gradient.cuh"

struct InnerUpdate {
    // Rows [blocks * T * rows, outputs] and [.., inputs].
    u64 delta;
    u64 values;
    // Weights before and after, v before and after (NOWHERE where there is none), and their strides from task to task.
    u64 from;
    u64 to;
    u64 velocity;
    u64 new_velocity;
    u64 from_stride;
    u64 to_stride;
    u64 velocity_stride;
    u64 new_velocity_stride;
    // A rate for each parameter, shared by the tasks; NOWHERE where `rate` is for all.
    u64 rates;
    u32 tasks;
    u32 rows;
    u32 blocks;
    u32 inputs;
    u32 outputs;
    float rate;
    float momentum;
    u32 unused;
};
static_assert(sizeof(InnerUpdate) == 120, "mirrored in Rust");

// v' = momentum * v + gradient;  to = from - rate * v', for parameter `at` of the layer.
__device__ inline void update(float* arena, const InnerUpdate& op, u32 task, u64 at, float gradient) {
    float v = gradient;
    if (op.velocity != NOWHERE) v += op.momentum * arena[op.velocity + task * op.velocity_stride + at];
    if (op.new_velocity != NOWHERE) arena[op.new_velocity + task * op.new_velocity_stride + at] = v;
    float rate = op.rates == NOWHERE ? op.rate : arena[op.rates + at];
    arena[op.to + task * op.to_stride + at] = arena[op.from + task * op.from_stride + at] - rate * v;
}

// Grid: that of `Gradient`, a task a group.
KERNEL(inner_update, InnerUpdate) {
    SHARED(GradientTiles, shared);
    Gradient gradient(op.inputs, op.outputs);
    gradient.add_blocks(shared.tiles, arena + op.delta, arena + op.values, op.blocks, op.tasks, op.rows, 1.0f, true);
    gradient.finish(shared.bias, (u64)op.inputs * op.outputs,
                    [&](u64 at, float value) { update(arena, op, gradient.group, at, value); });
}

struct ReverseUpdate {
    u64 cotangent;
    u64 direction;
    u64 rates;
    u64 cotangent_stride;
    u64 direction_stride;
    // Parameters of the layer.
    u64 length;
    u32 tasks;
    // Whether the direction holds that of the following step.
    u32 begun;
    float rate;
    float momentum;
};
static_assert(sizeof(ReverseUpdate) == 64, "mirrored in Rust");

// direction = momentum * direction - rate * cotangent; grid: x the parameters, y the tasks.
KERNEL(reverse_update, ReverseUpdate) {
    u64 i = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (i >= op.length) return;
    u32 task = blockIdx.y;
    float* direction = arena + op.direction + task * op.direction_stride + i;
    float rate = op.rates == NOWHERE ? op.rate : arena[op.rates + i];
    float moved = -rate * arena[op.cotangent + task * op.cotangent_stride + i];
    *direction = op.begun ? op.momentum * *direction + moved : moved;
}

struct RateGradient {
    u64 cotangent;
    u64 velocity;
    u64 output;
    u64 cotangent_stride;
    u64 velocity_stride;
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
        sum += arena[op.cotangent + task * op.cotangent_stride + i] * arena[op.velocity + task * op.velocity_stride + i];
    }
    arena[op.output + i] -= op.scale * sum;
}
