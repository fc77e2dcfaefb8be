// What sums over rows on Hopper's warpgroups have in common: a tile of a weight's gradient, the bias's beside it, and where both go.
#pragma once

#include "hopper.cuh"
#include "parts.cuh"

// Terms of one launch.
constexpr int HOPPER_TERMS = 24;

// Of the weight: ROWS outputs, COLUMNS inputs. LEFT tiles of the copy engine's are a stage of p.
template <int COLUMNS_, int LEFT_, int STAGES_>
struct OuterTile {
    static constexpr int ROWS = 128, COLUMNS = COLUMNS_, STAGES = STAGES_;
    static constexpr int CONSUMERS = ROWS / PANEL;
    static constexpr int BLOCK_THREADS = 128 * (1 + CONSUMERS);
    static constexpr int LEFT = LEFT_, RIGHT = COLUMNS / PANEL;

    struct Shared {
        unsigned char left[STAGES][LEFT][PANEL_BYTES];
        unsigned char right[STAGES][RIGHT][PANEL_BYTES];
        Barrier full[STAGES];
        Barrier empty[STAGES];
    };
    static constexpr int SHARED_BYTES = sizeof(Shared) + 1024;
};

#ifdef WARPGROUPS

// What a thread holds of a tile, and of the bias of two of its rows.
template <class Tile>
struct OuterSums {
    float d[Tile::COLUMNS / 2] = {};
    float bias[2] = {};
};

// Leaves a thread's sums among the partial ones: the weight, and its bias behind it.
template <class Tile, class Outer>
__device__ inline void leave_sums(float* arena, const Outer& op, const OuterSums<Tile>& sums, int consumer) {
    int warp = threadIdx.x / 32 % 4, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    u64 size = (u64)op.inputs * op.outputs;
    float* to = arena + op.partials + blockIdx.z * (size + op.outputs);
    u32 first = blockIdx.x * Tile::ROWS + consumer * PANEL + warp * 16 + g;
    bool in_pairs = (u64)to % 8 == 0 && op.inputs % 2 == 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        u32 row = first + 8 * half;
        // Four lanes have each a share.
        float bias = sums.bias[half];
        bias += __shfl_xor_sync(~0u, bias, 1);
        bias += __shfl_xor_sync(~0u, bias, 2);
        if (row >= op.outputs) continue;
        if (blockIdx.y == 0 && t == 0) to[size + row] = bias;
        float* of_row = to + (u64)row * op.inputs;
#pragma unroll
        for (int j = 0; j < Tile::COLUMNS / 8; ++j) {
            u32 column = blockIdx.y * Tile::COLUMNS + 8 * j + 2 * t;
            float2 pair = {sums.d[4 * j + 2 * half], sums.d[4 * j + 2 * half + 1]};
            if (in_pairs && column < op.inputs) {
                *(float2*)(of_row + column) = pair;
            } else {
                if (column < op.inputs) of_row[column] = pair.x;
                if (column + 1 < op.inputs) of_row[column + 1] = pair.y;
            }
        }
    }
}

// A block's part of such a sum: one thread has its stages copied, `produce(part)`, and the consumers add them up,
// `consume(sums, part, consumer)`.
template <class Tile, class Outer, class Produce, class Consume>
__device__ inline void sum_outer(float* arena, const Outer& op, typename Tile::Shared& shared, Produce produce, Consume consume) {
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < Tile::STAGES; ++stage) {
            begin_barrier(shared.full[stage], 1);
            begin_barrier(shared.empty[stage], 4 * Tile::CONSUMERS);
        }
        show_barriers();
    }
    __syncthreads();
    Part part(Cursor<PANEL>::stages(op.terms, op.count));
    if (threadIdx.x < 128) {
        leave_registers<40>();
        if (threadIdx.x == 0) produce(part);
    } else {
        take_registers<232>();
        int consumer = threadIdx.x / 128 - 1;
        OuterSums<Tile> sums;
        consume(sums, part, consumer);
        leave_sums<Tile>(arena, op, sums, consumer);
    }
}

#endif
