// What a whole inner loop is told (see resident.cu), and its products: small ones in shared memory.
#pragma once

#include "kernel.cuh"

// Layers at most.
constexpr int LAYERS = 16;
// Rows of a product that one thread computes.
constexpr int ROWS = 4;

// Rows of one pass, as offsets into the task's numbers.
struct ResidentPass {
    u32 rows;
    u32 inputs;
    u32 targets;
    u32 values;
    u32 deltas;
};

struct Resident {
    // The arena's.
    u64 parameters;
    u64 rates;
    u64 support_x;
    u64 support_y;
    u64 query_x;
    u64 query_y;
    u64 task_loss;
    u64 gradients;
    u64 rate_gradients;
    u64 adapted;
    u64 trace_loss;
    u64 trace_output;
    // The task's own: each slot of the weights and of v is `parameters` padded numbers, of the rows `slot`.
    u32 weights;
    u32 weight_slots;
    u32 velocities;
    u32 velocity_slots;
    u32 padded;
    u32 slots;
    u32 slot;
    ResidentPass support;
    ResidentPass query;
    u32 e;
    u32 z;
    u32 cotangent;
    u32 direction;
    u32 length;
    u32 tasks;
    u32 steps;
    u32 layers;
    u32 first_moving;
    u32 loss;
    u32 per_parameter;
    u32 goes_back;
    u32 exact;
    u32 reverses;
    u32 displacement;
    float momentum;
    float decay;
    u32 widths[LAYERS + 1];
    u32 activations[LAYERS];
};
static_assert(sizeof(Resident) == 368, "mirrored in Rust");

// Element (i, j) at `start + i * row + j * column`.
struct Grid {
    u32 start;
    u32 row;
    u32 column;

    __device__ u32 at(u32 i, u32 j) const { return start + i * row + j * column; }
    __device__ Grid transposed() const { return {start, column, row}; }
};

struct ResidentTerm {
    Grid left;
    Grid right;
    u32 depth;
};

// finish(row, column, the sum of both terms), for every element of an [m, n] product; the second term may be empty.
template <class Finish>
__device__ inline void small_product(const float* room, u32 m, u32 n, ResidentTerm first, ResidentTerm second, Finish finish) {
    u32 units = n * ((m + ROWS - 1) / ROWS);
    for (u32 unit = threadIdx.x; unit < units; unit += THREADS) {
        u32 column = unit % n, row = unit / n * ROWS;
        float sums[ROWS] = {};
        auto add = [&](const ResidentTerm& term) {
            u32 right = term.right.at(0, column);
            u32 left[ROWS];
#pragma unroll
            for (int i = 0; i < ROWS; ++i) left[i] = term.left.at(min(row + i, m - 1), 0);
#pragma unroll 1
            for (u32 d = 0; d < term.depth; ++d) {
                float factor = room[right + d * term.right.row];
#pragma unroll
                for (int i = 0; i < ROWS; ++i) sums[i] += room[left[i] + d * term.left.column] * factor;
            }
        };
        add(first);
        add(second);
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
            if (row + i < m) finish(row + i, column, sums[i]);
        }
    }
}
