// The materialised form's inner step of Adam (Kingma & Ba 2015): the weight gradient of every task with the whole update in
// its epilogue, and the step's transpose, which computes the gradient anew. The gradient never reaches memory.

#include "gradient.cuh"

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
    GradientRows gradient;
    PerTask from;
    PerTask to;
    // m and v before; none before the first step. They may be m' and v'.
    PerTask first;
    PerTask second;
    PerTask new_first;
    PerTask new_second;
    Rates rates;
    AdamRule rule;
};
static_assert(sizeof(AdamUpdate) == 192, "mirrored in Rust");

KERNEL(adam_update, AdamUpdate) {
    SHARED(GradientTiles, shared);
    each_gradient(arena, shared, op.gradient, [&](u32 task, u64 at, float g) {
        float m = op.rule.rest1 * g;
        float v = op.rule.rest2 * (g * g);
        if (op.first.exists()) {
            m += op.rule.decay1 * op.first.of(arena, task)[at];
            v += op.rule.decay2 * op.second.of(arena, task)[at];
        }
        op.new_first.of(arena, task)[at] = m;
        op.new_second.of(arena, task)[at] = v;
        float moved = op.rule.moved(m, op.rule.root(v));
        op.to.of(arena, task)[at] = op.from.of(arena, task)[at] - op.rates.of(arena, at) * moved;
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
    GradientRows gradient;
    PerTask cotangent;
    // The step's m' and v', their cotangents, and that of the gradient.
    PerTask first;
    PerTask second;
    PerTask first_cotangent;
    PerTask second_cotangent;
    PerTask direction;
    Rates rates;
    AdamRule rule;
    // Whether the moments' cotangents hold those of the following step.
    u32 begun;
    u32 unused;
};
static_assert(sizeof(ReverseAdam) == 200, "mirrored in Rust");

KERNEL(reverse_adam, ReverseAdam) {
    SHARED(GradientTiles, shared);
    each_gradient(arena, shared, op.gradient, [&](u32 task, u64 at, float g) {
        const AdamRule& rule = op.rule;
        float root = rule.root(op.second.of(arena, task)[at]);
        float moved = rule.moved(op.first.of(arena, task)[at], root);
        float pulled = -(op.rates.of(arena, at) * op.cotangent.of(arena, task)[at]) / (root + rule.epsilon);
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
