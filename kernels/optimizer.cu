// The outer optimizer over a flat array of parameters, fused over all of them.

#include "kernel.cuh"

struct Adam {
    u64 parameters;
    u64 gradient;
    u64 first;
    u64 second;
    u64 length;
    // rate / (1 - beta1^step), and 1 / (1 - beta2^step).
    float rate;
    float second_scale;
    float factor;
    float epsilon;
    float beta1;
    float beta2;
    // 1 - beta, rounded once.
    float rest1;
    float rest2;
};
static_assert(sizeof(Adam) == 72, "mirrored in Rust");

KERNEL(adam, Adam) {
    u64 i = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (i >= op.length) return;
    float g = arena[op.gradient + i] * op.factor;
    float m = op.beta1 * arena[op.first + i] + op.rest1 * g;
    float v = op.beta2 * arena[op.second + i] + op.rest2 * g * g;
    arena[op.first + i] = m;
    arena[op.second + i] = v;
    arena[op.parameters + i] -= op.rate * m / (sqrtf(v * op.second_scale) + op.epsilon);
}
