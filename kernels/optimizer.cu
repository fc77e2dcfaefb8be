// The outer optimizer over a flat array of parameters, fused over all of them, and what it asks beforehand: whether the
// meta-step went well, and by how much a gradient is to be scaled down. That stays on the device.

#include "optimizer.cuh"
#include "pieces.cuh"

// One block.
KERNEL(check_gradient, CheckGradient) {
    SHARED(Partials, partials);
    double sum = 0.0;
    for (u32 i = threadIdx.x; i < op.count; i += THREADS) sum += ((const double*)(arena + op.partials))[i];
    // Of numbers that are 0 if all is well.
    double wrong = wrong_losses<THREADS>(arena, op);
    sum = block_sum(partials, sum);
    wrong = block_sum(partials, wrong);
    if (threadIdx.x == 0) leave_finding(arena, op, sum, wrong != 0.0);
}

struct Sgd {
    u64 parameters;
    u64 gradient;
    u64 length;
    u64 flag;
    u64 factor;
    float rate;
    u32 in_logarithm;
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
    for (u32 k = 0; k < OWN; ++k) {
        float change = step * gradient[k];
        parameter[k] = op.in_logarithm ? parameter[k] * expf(-change * parameter[k]) : parameter[k] - change;
    }
    span.store(arena + op.parameters, parameter);
}

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
    for (u32 k = 0; k < OWN; ++k) move_by_adam(op, gradient[k] * factor, parameter[k], first[k], second[k]);
    span.store(arena + op.first, first);
    span.store(arena + op.second, second);
    span.store(arena + op.parameters, parameter);
}
