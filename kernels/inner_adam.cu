// The materialised form's inner step of Adam (Kingma & Ba 2015): the weight gradient of every task with the whole update in
// its epilogue, and the step's transpose, which computes the gradient anew. The gradient never reaches memory.
//
// A layer's bias lies right behind its weight, in every array of parameters.

#include "gradient.cuh"

// An array of a layer's parameters: where the first task's begin, and how far it is to the next task's.
struct PerTask {
    u64 offset;
    u64 stride;

    __device__ float* of(float* arena, u32 task) const { return arena + offset + task * stride; }
};

struct AdamRule {
    float decay1;
    float decay2;
    // 1 - decay, rounded once.
    float rest1;
    float rest2;
    // 1 / (1 - decay^step).
    float correction1;
    float correction2;
    float epsilon;
    u32 unused;

    __device__ float root(float second) const { return sqrtf(second * correction2); }
    // What is subtracted, before the rate.
    __device__ float moved(float first, float root) const { return first * correction1 / (root + epsilon); }
};
static_assert(sizeof(AdamRule) == 32, "mirrored in Rust");

struct AdamUpdate {
    // Rows [blocks * T * rows, outputs] and [.., inputs].
    u64 delta;
    u64 values;
    PerTask from;
    PerTask to;
    // m and v before; at NOWHERE before the first step. They may be m' and v'.
    PerTask first;
    PerTask second;
    PerTask new_first;
    PerTask new_second;
    // A rate for each parameter, shared by the tasks; NOWHERE where `rate` is for all.
    u64 rates;
    AdamRule rule;
    u32 tasks;
    u32 rows;
    u32 blocks;
    u32 inputs;
    u32 outputs;
    float rate;
};
static_assert(sizeof(AdamUpdate) == 176, "mirrored in Rust");

// Grid: that of `Gradient`, a task a group.
KERNEL(adam_update, AdamUpdate) {
    SHARED(GradientTiles, shared);
    Gradient gradient(op.inputs, op.outputs);
    gradient.add_blocks(shared.tiles, arena + op.delta, arena + op.values, op.blocks, op.tasks, op.rows, 1.0f, true);
    u32 task = gradient.group;
    bool begun = op.first.offset != NOWHERE;
    gradient.finish(shared.bias, (u64)op.inputs * op.outputs, [&](u64 at, float g) {
        float rate = op.rates == NOWHERE ? op.rate : arena[op.rates + at];
        float m = op.rule.rest1 * g;
        float v = op.rule.rest2 * (g * g);
        if (begun) {
            m += op.rule.decay1 * op.first.of(arena, task)[at];
            v += op.rule.decay2 * op.second.of(arena, task)[at];
        }
        op.new_first.of(arena, task)[at] = m;
        op.new_second.of(arena, task)[at] = v;
        float moved = op.rule.moved(m, op.rule.root(v));
        op.to.of(arena, task)[at] = op.from.of(arena, task)[at] - rate * moved;
    });
}

struct AdamMoved {
    PerTask first;
    PerTask second;
    PerTask output;
    // Parameters of the layer.
    u64 length;
    AdamRule rule;
};
static_assert(sizeof(AdamMoved) == 88, "mirrored in Rust");

// output = what the step subtracted, before the rate; grid: x the parameters, y the tasks.
KERNEL(adam_moved, AdamMoved) {
    u64 i = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (i >= op.length) return;
    u32 task = blockIdx.y;
    float root = op.rule.root(op.second.of(arena, task)[i]);
    op.output.of(arena, task)[i] = op.rule.moved(op.first.of(arena, task)[i], root);
}

struct ReverseAdam {
    u64 delta;
    u64 values;
    PerTask cotangent;
    // The step's m' and v', their cotangents, and that of the gradient.
    PerTask first;
    PerTask second;
    PerTask first_cotangent;
    PerTask second_cotangent;
    PerTask direction;
    u64 rates;
    AdamRule rule;
    u32 tasks;
    u32 rows;
    u32 blocks;
    u32 inputs;
    u32 outputs;
    float rate;
    // Whether the moments' cotangents hold those of the following step.
    u32 begun;
    u32 unused;
};
static_assert(sizeof(ReverseAdam) == 184, "mirrored in Rust");

// Grid: that of `Gradient`, a task a group.
KERNEL(reverse_adam, ReverseAdam) {
    SHARED(GradientTiles, shared);
    Gradient gradient(op.inputs, op.outputs);
    gradient.add_blocks(shared.tiles, arena + op.delta, arena + op.values, op.blocks, op.tasks, op.rows, 1.0f, true);
    u32 task = gradient.group;
    gradient.finish(shared.bias, (u64)op.inputs * op.outputs, [&](u64 at, float g) {
        const AdamRule& rule = op.rule;
        float root = rule.root(op.second.of(arena, task)[at]);
        float moved = rule.moved(op.first.of(arena, task)[at], root);
        float rate = op.rates == NOWHERE ? op.rate : arena[op.rates + at];
        float pulled = -(rate * op.cotangent.of(arena, task)[at]) / (root + rule.epsilon);
        float of_first = pulled * rule.correction1;
        // The root has no slope at 0; there every gradient so far was 0, and the limit of this part is 0 too.
        float of_second = root > 0.0f ? -(pulled * moved * rule.correction2) / (2.0f * root) : 0.0f;
        float* first_cotangent = op.first_cotangent.of(arena, task) + at;
        float* second_cotangent = op.second_cotangent.of(arena, task) + at;
        if (op.begun) {
            of_first += rule.decay1 * *first_cotangent;
            of_second += rule.decay2 * *second_cotangent;
        }
        *first_cotangent = of_first;
        *second_cotangent = of_second;
        op.direction.of(arena, task)[at] = rule.rest1 * of_first + 2.0f * rule.rest2 * g * of_second;
    });
}
