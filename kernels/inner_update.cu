// The materialised form's inner step: the weight gradient of every task, [outputs, inputs], with the update of the weights
// in its epilogue, so that the gradient never reaches memory; and the step's transpose.
//
// A layer's bias lies right behind its weight, in every array of parameters.

#include "tile.cuh"

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

// Grid: x the tiles of outputs of every task, y the tiles of inputs.
KERNEL(inner_update, InnerUpdate) {
    SHARED(GradientTiles, shared);
    u32 tiles = (op.outputs + TILE - 1) / TILE;
    u32 task = blockIdx.x / tiles;
    u32 first_row = blockIdx.x % tiles * TILE;
    u32 first_column = blockIdx.y * TILE;
    float sum[MICRO_M][MICRO_N] = {};
    float bias = 0.0f;
    int stage = 0;
    for (u32 block = 0; block < op.blocks; ++block) {
        u64 row = (u64)(block * op.tasks + task) * op.rows;
        u32 output = first_row + threadIdx.x % TILE;
        u32 input = first_column + threadIdx.x % TILE;
        Columns p = {arena + op.delta + row * op.outputs, op.outputs, op.rows, output, op.outputs, 1.0f, 0.0f};
        Columns q = {arena + op.values + row * op.inputs, op.inputs, op.rows, input, op.inputs, 1.0f, 0.0f};
        multiply(sum, shared.tiles, stage, p, q);
        bias += p.total;
    }
#pragma unroll
    for (int m = 0; m < MICRO_M; ++m) {
        u32 row = first_row + micro_row() + m;
        if (row >= op.outputs) continue;
#pragma unroll
        for (int n = 0; n < MICRO_N; ++n) {
            u32 column = first_column + micro_column() + n;
            if (column >= op.inputs) continue;
            update(arena, op, task, (u64)row * op.inputs + column, sum[m][n]);
        }
    }
    if (blockIdx.y != 0) return;
    if (threadIdx.x >= TILE) shared.bias[threadIdx.x - TILE] = bias;
    __syncthreads();
    u32 row = first_row + threadIdx.x;
    if (threadIdx.x < TILE && row < op.outputs) {
        update(arena, op, task, (u64)op.outputs * op.inputs + row, bias + shared.bias[threadIdx.x]);
    }
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
