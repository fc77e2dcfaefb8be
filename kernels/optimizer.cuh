// What the outer optimizer does of a number, and what it leaves of a gradient it has looked at.
#pragma once

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

constexpr float LARGEST = 3.402823466e38f;

// More than 0 if any of the thread's losses, of so many threads, is not finite.
template <u32 BLOCK>
__device__ inline double wrong_losses(const float* arena, const CheckGradient& op) {
    double wrong = 0.0;
    for (u32 which = 0; which < 2; ++which) {
        for (u32 i = threadIdx.x; i < op.loss_count[which]; i += BLOCK) {
            if (!(fabsf(arena[op.losses[which] + i]) <= LARGEST)) wrong = 1.0;
        }
    }
    return wrong;
}

// By one thread: with the gradient's squared norm, and whether a loss was wrong.
__device__ inline void leave_finding(float* arena, const CheckGradient& op, double sum, bool wrong) {
    double norm = sqrt(sum);
    if (op.count > 0) {
        arena[op.finding] = norm > op.clip ? (float)(op.clip / norm) : 1.0f;
        arena[op.finding + 1] = (float)norm;
    }
    if (wrong || !(norm <= LARGEST)) arena[op.flag] = 1.0f;
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
    u32 in_logarithm;
};
static_assert(sizeof(Adam) == 88, "mirrored in Rust");

__device__ inline void move_by_adam(const Adam& op, float gradient, float& parameter, float& first, float& second) {
    if (op.in_logarithm) gradient *= parameter;
    first = op.beta1 * first + op.rest1 * gradient;
    second = op.beta2 * second + op.rest2 * gradient * gradient;
    float change = op.rate * first / (sqrtf(second * op.second_scale) + op.epsilon);
    parameter = op.in_logarithm ? parameter * expf(-change) : parameter - change;
}
