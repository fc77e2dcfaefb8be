// The weight gradients of every task's few rows, where they are written, or used for what is: up to 8 rows, or up to 16.
#pragma once

#include "gradient.cuh"
#include "thin.cuh"

// Outputs of a block: a thread has the deltas of one.
constexpr u32 THIN_OUTPUTS = THREADS;
// Strips that a warp has on their way at once.
constexpr u32 GRADIENT_AHEAD = 4;

template <u32 ROWS>
struct alignas(16) ThinGradient {
    // Times the term's scale.
    float p[THIN_OUTPUTS][ROWS];
    // Where the rows begin, NOWHERE where there is none, and their terms.
    u64 p_at[ROWS];
    u64 q_at[ROWS];
    float scale[ROWS];
    float bias[ROWS];

    // Finds the task's row `thread`, counting through the blocks of every term. Wants a barrier behind it.
    template <class Term>
    __device__ void find(const float* arena, u32 count, Term term, u32 tasks, u32 task, u32 inputs, u32 outputs) {
        if (threadIdx.x >= ROWS) return;
        p_at[threadIdx.x] = q_at[threadIdx.x] = NOWHERE;
        scale[threadIdx.x] = bias[threadIdx.x] = 0.0f;
        u32 local = threadIdx.x;
        for (u32 t = 0; t < count; ++t) {
            const OuterTerm& own = term(t);
            u32 rows = own.rows * own.blocks;
            if (local < rows) {
                u64 row = (u64)(local / own.rows * tasks + task) * own.rows + local % own.rows;
                p_at[threadIdx.x] = own.p + row * outputs;
                q_at[threadIdx.x] = own.q + row * inputs;
                scale[threadIdx.x] = scale_of(arena, own);
                bias[threadIdx.x] = own.bias;
                return;
            }
            local -= rows;
        }
    }
};

// Goes through the gradients of every task: hands those of a strip to the task's end, `make_end(task)`, which has read what it
// wants beside them before. `term(t)` is the sum's term `t` of `count`; the bias begins behind the weight.
//
// Grid: the strips of 128 inputs of every 128 outputs of every task. A thread holds its columns of the task's values, and goes
// down the outputs.
template <bool FOURS, u32 ROWS, class Term, class MakeEnd>
__device__ inline void thin_gradient(const float* arena, ThinGradient<ROWS>& shared, u32 count, Term term, u32 tasks,
                                     u32 inputs, u32 outputs, MakeEnd make_end) {
    u32 strips = (inputs + STRIP - 1) / STRIP;
    u32 tiles = (outputs + THIN_OUTPUTS - 1) / THIN_OUTPUTS;
    u32 unit = blockIdx.x / strips;
    u32 first_input = (blockIdx.x - unit * strips) * STRIP;
    u32 task = unit / tiles;
    u32 first_output = (unit - task * tiles) * THIN_OUTPUTS;
    shared.find(arena, count, term, tasks, task, inputs, outputs);
    __syncthreads();

    Strip<FOURS> columns(first_input, inputs - first_input);
    float q[ROWS][4], p[ROWS];
    u32 output = first_output + threadIdx.x;
#pragma unroll
    for (u32 r = 0; r < ROWS; ++r) {
        u64 at = shared.q_at[r];
        columns.left = at == NOWHERE ? 0 : inputs - first_input;
        columns.load(q[r], arena + (at == NOWHERE ? 0 : at));
        p[r] = at != NOWHERE && output < outputs ? shared.scale[r] * arena[shared.p_at[r] + output] : 0.0f;
    }
    store_fours(shared.p[threadIdx.x], p);
    __syncthreads();

    auto end = make_end(task);
    using End = decltype(end);
    u32 here = min(outputs - first_output, THIN_OUTPUTS);
    for (u32 j = threadIdx.x / 32 * GRADIENT_AHEAD; j < here; j += WARPS * GRADIENT_AHEAD) {
        auto strip = [&](u32 a) {
            u64 at = (u64)(first_output + j + a) * inputs + first_input;
            return Strip<FOURS>(at, j + a < here ? inputs - first_input : 0);
        };
        typename End::template Before<4> before[GRADIENT_AHEAD];
#pragma unroll
        for (u32 a = 0; a < GRADIENT_AHEAD; ++a) end.before(strip(a), before[a]);
#pragma unroll
        for (u32 a = 0; a < GRADIENT_AHEAD; ++a) {
            float delta[ROWS], gradient[4] = {};
            load_fours(delta, shared.p[j + a]);
#pragma unroll
            for (u32 r = 0; r < ROWS; ++r) {
#pragma unroll
                for (u32 i = 0; i < 4; ++i) gradient[i] += delta[r] * q[r][i];
            }
            end.finish(strip(a), gradient, before[a]);
        }
    }
    if (first_input != 0 || output >= outputs) return;
    float bias[1] = {};
#pragma unroll
    for (u32 r = 0; r < ROWS; ++r) bias[0] += shared.bias[r] * shared.p[threadIdx.x][r];
    typename End::template Before<1> before;
    Single single = {(u64)inputs * outputs + output};
    end.before(single, before);
    end.finish(single, bias, before);
}

// The same over the gradients of `each_gradient`.
template <bool FOURS, u32 ROWS, class MakeEnd>
__device__ inline void each_thin_gradient(const float* arena, ThinGradient<ROWS>& shared, const GradientRows& from,
                                          MakeEnd make_end) {
    OuterTerm term = {from.delta, from.values, from.rows, from.blocks, bias_of(arena, from), 1.0f, NOWHERE};
    thin_gradient<FOURS>(arena, shared, 1, [&](u32) -> const OuterTerm& { return term; }, from.tasks, from.inputs,
                         from.outputs, make_end);
}
