// The outer optimizer over a flat array of parameters, fused over all of them, and what it asks beforehand: whether the
// meta-step went well, and by how much a gradient is to be scaled down. That stays on the device.

#include "pieces.cuh"
#include "tile.cuh"

struct CheckGradient {
    // Of the gradient's squared norm: doubles.
    u64 partials;
    u64 losses[2];
    // Becomes 1 where anything is not finite; otherwise stays as it is.
    u64 flag;
    // Of the gradient: its factor, then its norm.
    u64 finding;
    double clip;
    u32 loss_count[2];
    u32 count;
    u32 unused;
};
static_assert(sizeof(CheckGradient) == 64, "mirrored in Rust");

// One block.
KERNEL(check_gradient, CheckGradient) {
    constexpr float LARGEST = 3.402823466e38f;
    SHARED(Partials, partials);
    double sum = 0.0;
    for (u32 i = threadIdx.x; i < op.count; i += THREADS) sum += ((const double*)(arena + op.partials))[i];
    // Of numbers that are 0 if all is well.
    double wrong = 0.0;
    for (u32 which = 0; which < 2; ++which) {
        for (u32 i = threadIdx.x; i < op.loss_count[which]; i += THREADS) {
            if (!(fabsf(arena[op.losses[which] + i]) <= LARGEST)) wrong = 1.0;
        }
    }
    sum = block_sum(partials, sum);
    wrong = block_sum(partials, wrong);
    if (threadIdx.x != 0) return;
    double norm = sqrt(sum);
    if (op.count > 0) {
        arena[op.finding] = norm > op.clip ? (float)(op.clip / norm) : 1.0f;
        arena[op.finding + 1] = (float)norm;
    }
    if (wrong != 0.0 || !(norm <= LARGEST)) arena[op.flag] = 1.0f;
}

struct Sgd {
    u64 parameters;
    u64 gradient;
    u64 length;
    u64 flag;
    u64 factor;
    float rate;
    u32 unused;
};
static_assert(sizeof(Sgd) == 48, "mirrored in Rust");

KERNEL(sgd, Sgd) {
    Span span(op.length, in_fours(op.parameters, op.gradient));
    float parameter[OWN], gradient[OWN];
    span.load(parameter, arena + op.parameters);
    span.load(gradient, arena + op.gradient);
    float step = op.rate * arena[op.factor];
    if (arena[op.flag] != 0.0f) return;
#pragma unroll
    for (u32 k = 0; k < OWN; ++k) parameter[k] -= step * gradient[k];
    span.store(arena + op.parameters, parameter);
}

struct Adam {
    u64 parameters;
    u64 gradient;
    u64 first;
    u64 second;
    u64 length;
    u64 flag;
    u64 factor;
    // rate / (1 - beta1^step), and 1 / (1 - beta2^step).
    float rate;
    float second_scale;
    float epsilon;
    float beta1;
    float beta2;
    // 1 - beta, rounded once.
    float rest1;
    float rest2;
    u32 unused;
};
static_assert(sizeof(Adam) == 88, "mirrored in Rust");

KERNEL(adam, Adam) {
    Span span(op.length, in_fours(op.parameters, op.gradient, op.first, op.second));
    float parameter[OWN], gradient[OWN], first[OWN], second[OWN];
    span.load(gradient, arena + op.gradient);
    span.load(first, arena + op.first);
    span.load(second, arena + op.second);
    span.load(parameter, arena + op.parameters);
    float factor = arena[op.factor];
    if (arena[op.flag] != 0.0f) return;
#pragma unroll
    for (u32 k = 0; k < OWN; ++k) {
        float g = gradient[k] * factor;
        first[k] = op.beta1 * first[k] + op.rest1 * g;
        second[k] = op.beta2 * second[k] + op.rest2 * g * g;
        parameter[k] -= op.rate * first[k] / (sqrtf(second[k] * op.second_scale) + op.epsilon);
    }
    span.store(arena + op.first, first);
    span.store(arena + op.second, second);
    span.store(arena + op.parameters, parameter);
}
