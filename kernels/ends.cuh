// The ends of product.cuh for many outputs a thread: P consecutive columns of N rows. All that goes in beside the sums is read
// before anything is written.
#pragma once

#include "pieces.cuh"
#include "product.cuh"

// The activation that an end goes by.
__device__ inline u32 activation_of(const ProductEnd& op, Forward*) { return op.activation; }
__device__ inline u32 activation_of(const ProductEnd& op, Backward*) { return op.gated ? op.gate.activation : (u32)LINEAR; }
__device__ inline u32 activation_of(const ProductEnd& op, Adjoint*) { return op.delta != NOWHERE ? op.gate.activation : (u32)LINEAR; }

// Whether an end reads a gate's values, and delta beside them.
template <class End>
__device__ inline bool is_gated(const ProductEnd& op) {
    if (std::is_same_v<End, Adjoint>) return op.delta != NOWHERE;
    return std::is_same_v<End, Backward> && op.gated;
}
template <class End>
__device__ inline bool is_curved(const ProductEnd& op) {
    return std::is_same_v<End, Adjoint> && op.delta != NOWHERE && op.z != NOWHERE;
}

// What goes into the outputs beside their sums, and what becomes of them.
template <int N, int P>
struct alignas(16) Outputs {
    // `added`: to the sums, after their share was taken.
    float sums[N][P], added[N][P], output[N][P], gate[N][P], delta[N][P], bias[P], share;
    // Whether the bias reaches a row.
    bool biased[N];

    template <class Work>
    __device__ void each(Work work) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
#pragma unroll
            for (int c = 0; c < P; ++c) work(i, c);
        }
    }

    __device__ float sum(int i, int c) const {
        return share * (sums[i][c] + (biased[i] ? bias[c] : 0.0f)) + added[i][c];
    }

    // output = act(sum)
    template <u32 ACTIVATION>
    __device__ void end_by(Forward*) {
        each([&](int i, int c) { output[i][c] = act(ACTIVATION, sum(i, c)); });
    }

    // output = [output +] sum * act'(gate)
    template <u32 ACTIVATION>
    __device__ void end_by(Backward*) {
        each([&](int i, int c) { output[i][c] += sum(i, c) * act_derivative(ACTIVATION, gate[i][c]); });
    }

    // z = sum * delta * curvature(gate), left in `delta`;  output = sum * act'(gate)
    template <u32 ACTIVATION>
    __device__ void end_by(Adjoint*) {
        each([&](int i, int c) {
            float g = sum(i, c);
            delta[i][c] *= g * act_curvature(ACTIVATION, gate[i][c]);
            output[i][c] = g * act_derivative(ACTIVATION, gate[i][c]);
        });
    }

    template <class End>
    __device__ void end(const ProductEnd& op, End* as) {
        choose(activation_of(op, as), [&](auto chosen) { end_by<decltype(chosen)::activation>(as); });
    }
};

// Ends the rows `row[i]`, below 0 where there is none, from column `column` on. One group, and so one source. `access` loads and
// stores P numbers.
template <class End, int N, int P, class Access>
__device__ inline void end_outputs(float* arena, const Product& op, const int (&row)[N], u32 column, Outputs<N, P>& all,
                                   const Access& access) {
    constexpr bool BACKWARD = std::is_same_v<End, Backward>;
    const Source& source = op.sources[0];
    bool gated = is_gated<End>(op), curved = is_curved<End>(op);
    bool biased = !BACKWARD && source.bias != NOWHERE;
    u32 gate_row[N];
    auto at = [&](int i) { return (u64)row[i] * op.width + column; };
    all.share = share_of(arena, op);
#pragma unroll
    for (int c = 0; c < P; ++c) all.bias[c] = 0.0f;
    if (biased) access.load(all.bias, arena + source.bias + column);
#pragma unroll
    for (int i = 0; i < N; ++i) {
        bool inside = row[i] >= 0;
        all.biased[i] = biased && row[i] >= (int)source.first && row[i] < (int)(source.first + source.rows);
        gate_row[i] = gated && inside ? (u32)op.gate.row(row[i]) : 0;
#pragma unroll
        for (int c = 0; c < P; ++c) all.output[i][c] = all.gate[i][c] = all.delta[i][c] = 0.0f;
        if (inside && op.begun) access.load(all.output[i], arena + op.output + at(i));
        if (inside && gated) access.load(all.gate[i], arena + op.gate.values + (u64)gate_row[i] * op.width + column);
        if (inside && curved) access.load(all.delta[i], arena + op.delta + at(i));
    }
    // What a forward or an adjoint output holds already goes into the activation too.
    if (!BACKWARD && op.begun) all.each([&](int i, int c) { all.added[i][c] += all.output[i][c]; });
    all.end(op, (End*)nullptr);
#pragma unroll
    for (int i = 0; i < N; ++i) {
        if (row[i] < 0) continue;
        if (curved) access.store(arena + op.z + (u64)gate_row[i] * op.width + column, all.delta[i]);
        access.store(arena + op.output + at(i), all.output[i]);
    }
}
