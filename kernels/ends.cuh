// The ends of product.cuh for many outputs a thread: four columns of several rows, 8 apart. All that goes in beside the sums is
// read before anything is written, by 16 bytes where rows lie so.
#pragma once

#include "product.cuh"

// Four numbers at `at`, of which `count` are there; the others are 0.
__device__ inline void load_four(float (&to)[4], const float* at, bool wide, u32 count) {
    if (wide) {
        *(float4*)to = *(const float4*)at;
        return;
    }
#pragma unroll
    for (u32 i = 0; i < 4; ++i) to[i] = i < count ? at[i] : 0.0f;
}

__device__ inline void store_four(const float (&from)[4], float* at, bool wide, u32 count) {
    if (wide) {
        *(float4*)at = *(const float4*)from;
        return;
    }
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
        if (i < count) at[i] = from[i];
    }
}

// What goes into the outputs beside their sums, and what becomes of them.
template <int N>
struct alignas(16) Outputs {
    float sums[N][4], bias[4], output[N][4], gate[N][4], delta[N][4];
    // Whether the bias reaches a row.
    bool biased[N];

    template <class Work>
    __device__ void each(Work work) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
#pragma unroll
            for (int c = 0; c < 4; ++c) work(i, c);
        }
    }

    // output = act(share (sum + bias) [+ output])
    __device__ void end(const Product& op, Forward*) {
        choose(op.activation, [&](auto chosen) {
            each([&](int i, int c) {
                float z = op.share * (sums[i][c] + (biased[i] ? bias[c] : 0.0f));
                output[i][c] = act(chosen.activation, z + output[i][c]);
            });
        });
    }

    // output = [output +] share sum * act'(gate)
    __device__ void end(const Product& op, Backward*) {
        choose(op.gated ? op.gate.activation : (u32)LINEAR, [&](auto chosen) {
            each([&](int i, int c) { output[i][c] += op.share * sums[i][c] * act_derivative(chosen.activation, gate[i][c]); });
        });
    }

    // g = share (sum + bias) [+ output];  z = g * delta * curvature(gate), left in `delta`;  output = g * act'(gate)
    __device__ void end(const Product& op, Adjoint*) {
        bool gated = op.delta != NOWHERE;
        choose(gated ? op.gate.activation : (u32)LINEAR, [&](auto chosen) {
            each([&](int i, int c) {
                float g = op.share * (sums[i][c] + (biased[i] ? bias[c] : 0.0f)) + output[i][c];
                delta[i][c] *= g * act_curvature(chosen.activation, gate[i][c]);
                output[i][c] = g * act_derivative(chosen.activation, gate[i][c]);
            });
        });
    }
};

// The outputs of rows `row`, `row + 8`, ... and of columns `column` to `column + 3`. One group, and so one source.
template <class End, int N>
__device__ inline void finish_rows(float* arena, const Product& op, u32 row, u32 column, float (&sums)[N][4]) {
    constexpr bool ADJOINT = std::is_same_v<End, Adjoint>;
    const Source& source = op.sources[0];
    u32 rows = op.group_rows * op.blocks;
    if (column >= op.width || row >= rows) return;
    u32 count = op.width - column;
    auto aligned = [&](u64 offset) { return offset == NOWHERE || offset % 4 == 0; };
    bool gated = ADJOINT ? op.delta != NOWHERE : op.gated != 0, curved = ADJOINT && gated && op.z != NOWHERE;
    bool wide = op.width % 4 == 0 && aligned(op.output) && (!gated || aligned(op.gate.values)) && aligned(source.bias) &&
                (!curved || (aligned(op.delta) && aligned(op.z)));
    Outputs<N> all;
    u64 gate_row[N];
    if (source.bias != NOWHERE) load_four(all.bias, arena + source.bias + column, wide, count);
#pragma unroll
    for (int i = 0; i < N; ++i) {
        u32 here = row + 8 * i;
        bool inside = here < rows;
        u64 at = (u64)here * op.width + column;
        all.biased[i] = source.bias != NOWHERE && here >= source.first && here < source.first + source.rows;
        gate_row[i] = gated && inside ? op.gate.row(here) * op.width + column : 0;
#pragma unroll
        for (int c = 0; c < 4; ++c) {
            all.sums[i][c] = sums[i][c];
            all.output[i][c] = all.gate[i][c] = all.delta[i][c] = 0.0f;
        }
        if (inside && op.begun) load_four(all.output[i], arena + op.output + at, wide, count);
        if (inside && gated) load_four(all.gate[i], arena + op.gate.values + gate_row[i], wide, count);
        if (inside && curved) load_four(all.delta[i], arena + op.delta + at, wide, count);
    }
    all.end(op, (End*)nullptr);
#pragma unroll
    for (int i = 0; i < N; ++i) {
        u32 here = row + 8 * i;
        if (here >= rows) break;
        if (curved) store_four(all.delta[i], arena + op.z + gate_row[i], wide, count);
        store_four(all.output[i], arena + op.output + (u64)here * op.width + column, wide, count);
    }
}
