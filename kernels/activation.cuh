// Activations; their derivatives and curvatures (second derivative over first) are read off the value `a`.
// The same definitions as src/model/activation.rs.
#pragma once

#include "kernel.cuh"

enum Activation : u32 { LINEAR, RELU, LEAKY_RELU, TANH, SIGMOID };

__device__ inline float sigmoid(float x) {
    float e = expf(-fabsf(x));
    float small = e / (1.0f + e);
    return x < 0.0f ? small : 1.0f - small;
}

// ln(1 + exp(x)), without overflow.
__device__ inline float softplus(float x) { return fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x))); }

__device__ inline float act(u32 activation, float z) {
    switch (activation) {
    case RELU:
        return z < 0.0f ? 0.0f : z;
    case LEAKY_RELU:
        return z > 0.0f ? z : 0.2f * z;
    case TANH:
        return tanhf(z);
    case SIGMOID:
        return sigmoid(z);
    default:
        return z;
    }
}

__device__ inline float act_derivative(u32 activation, float a) {
    switch (activation) {
    case RELU:
        return a > 0.0f ? 1.0f : 0.0f;
    case LEAKY_RELU:
        return a > 0.0f ? 1.0f : 0.2f;
    case TANH:
        return 1.0f - a * a;
    case SIGMOID:
        return a * (1.0f - a);
    default:
        return 1.0f;
    }
}

__device__ inline float act_curvature(u32 activation, float a) {
    switch (activation) {
    case TANH:
        return -(a + a);
    case SIGMOID:
        return 1.0f - (a + a);
    default:
        return 0.0f;
    }
}

template <u32 ACTIVATION>
struct Chosen {
    static constexpr u32 activation = ACTIVATION;
};

// Calls `work` with a `Chosen`: one way for many numbers, in place of one for each.
template <class Work>
__device__ inline void choose(u32 activation, Work work) {
    switch (activation) {
    case RELU:
        return work(Chosen<RELU>());
    case LEAKY_RELU:
        return work(Chosen<LEAKY_RELU>());
    case TANH:
        return work(Chosen<TANH>());
    case SIGMOID:
        return work(Chosen<SIGMOID>());
    default:
        return work(Chosen<LINEAR>());
    }
}
