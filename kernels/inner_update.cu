// The materialised form's inner step: the weight gradient of every task, [outputs, inputs], with the update of the weights
// in its epilogue, so that the gradient never reaches memory; and the step's transpose.

#include "thin_gradient.cuh"

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
static_assert(sizeof(InnerUpdate) == 136, "mirrored in Rust");

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

// The same for one task.
struct ThinUpdate {
    const float* from;
    float* to;
    // Null where there is none.
    const float* velocity;
    float* new_velocity;
    const float* rates;
    float rate;
    float momentum;
    float decay;

    __device__ ThinUpdate(float* arena, const InnerUpdate& op, u32 task)
        : from(op.from.of(arena, task)), to(op.to.of(arena, task)),
          velocity(op.velocity.exists() ? op.velocity.of(arena, task) : nullptr),
          new_velocity(op.new_velocity.exists() ? op.new_velocity.of(arena, task) : nullptr),
          rates(op.rates.single ? nullptr : arena + op.rates.place), rate(op.rates.single ? op.rates.one(arena) : 0.0f),
          momentum(op.momentum), decay(op.decay) {}

    template <u32 COUNT>
    struct Before {
        float from[COUNT], velocity[COUNT], rate[COUNT];
    };
    template <class Place>
    __device__ void before(const Place& place, Before<Place::COUNT>& before) const {
        place.load(before.from, from);
        if (velocity) place.load(before.velocity, velocity);
        if (rates) place.load(before.rate, rates);
    }
    template <class Place>
    __device__ void finish(const Place& place, float (&v)[Place::COUNT], const Before<Place::COUNT>& before) const {
        float after[Place::COUNT];
#pragma unroll
        for (u32 i = 0; i < Place::COUNT; ++i) {
            v[i] += decay * before.from[i];
            if (velocity) v[i] += momentum * before.velocity[i];
            after[i] = before.from[i] - (rates ? before.rate[i] : rate) * v[i];
        }
        if (new_velocity) place.store(new_velocity, v);
        place.store(to, after);
    }
};

// Of a task's few rows. Grid: that of `thin_gradient`.
template <u32 ROWS>
__device__ inline void thin_inner_update(float* arena, const InnerUpdate& op, ThinGradient<ROWS>& shared) {
    const GradientRows& rows = op.gradient;
    auto end = [&](u32 task) { return ThinUpdate(arena, op, task); };
    if (in_fours(rows.values, (u64)rows.inputs) && op.from.in_fours() && op.to.in_fours() && op.velocity.in_fours() &&
        op.new_velocity.in_fours() && op.rates.in_fours()) {
        each_thin_gradient<true>(arena, shared, rows, end);
    } else {
        each_thin_gradient<false>(arena, shared, rows, end);
    }
}

KERNEL_OF(thin_inner_update, InnerUpdate, THREADS, 3) {
    SHARED(ThinGradient<FEW>, shared);
    thin_inner_update(arena, op, shared);
}

KERNEL_OF(thin_inner_update_16, InnerUpdate, THREADS, 3) {
    SHARED(ThinGradient<SOME>, shared);
    thin_inner_update(arena, op, shared);
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

// direction = momentum * direction - rate * cotangent; grid: x the spans of parameters, y the tasks.
KERNEL(reverse_update, ReverseUpdate) {
    Span span(op.length, op.cotangent.in_fours() && op.direction.in_fours() && op.rates.in_fours());
    float* direction = op.direction.of(arena, blockIdx.y);
    float moved[OWN], before[OWN] = {}, rate[OWN];
    span.load(moved, op.cotangent.of(arena, blockIdx.y));
    if (op.begun) span.load(before, direction);
    if (op.rates.single) {
        float one = op.rates.one(arena);
#pragma unroll
        for (u32 k = 0; k < OWN; ++k) rate[k] = one;
    } else {
        span.load(rate, arena + op.rates.place);
    }
#pragma unroll
    for (u32 k = 0; k < OWN; ++k) {
        moved[k] *= -rate[k];
        if (op.begun) moved[k] += op.momentum * before[k];
    }
    span.store(direction, moved);
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
