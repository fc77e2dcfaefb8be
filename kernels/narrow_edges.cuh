// Of a narrow network (see narrow.cu) what is not the weight between its hidden layers: the first layer, and the gradient of
// the edges, which are all other parameters. In a task's memory they lie as rows of WIDTH: for each input its weights, the first
// bias, the second one, the last weight, and behind them the last bias.
#pragma once

#include "narrow.cuh"

// work(the parameter's number, whether there is such a one, the edge's number), for every edge from the thread's first on.
template <u32 THREADS_OF_TASK, class Loop, class Work>
__device__ inline void each_edge(const Loop& op, u32 first, Work work) {
    u32 begin = op.lower * op.inputs, middle = begin + op.lower, end = middle + op.upper * op.lower;
#pragma unroll 1
    for (u32 e = first; e <= op.edges; e += THREADS_OF_TASK) {
        u32 row = e / WIDTH, unit = e % WIDTH;
        bool low = row <= op.inputs, last = e == op.edges;
        u32 up = end + (row == op.inputs + 1 ? 0 : op.upper) + unit;
        u32 down = row < op.inputs ? unit * op.inputs + row : begin + unit;
        work(last ? end + 2 * op.upper : low ? down : up, last || unit < (low ? op.lower : op.upper), e);
    }
}

// A task of a loop, and where its numbers lie in its memory.
template <class Loop>
struct TaskPlaces {
    const Loop& op;
    float* arena;
    float* room;
    u32 task;

    __device__ float* slot(u32 step) const { return room + step * op.slot; }
    __device__ u32 first_bias() const { return op.inputs * WIDTH; }
    __device__ u32 second_bias() const { return first_bias() + WIDTH; }
    __device__ u32 top() const { return second_bias() + WIDTH; }
    __device__ float rate(u32 step, u32 layer) const { return room[op.rate + step * 3 + layer]; }
};

// What a lane has of the first layer: a piece of four lower units, and of the warp's rows every third one.
struct FirstLayer {
    const float* edges;
    u32 unit;
    float bias[4];
    float factor[4];

    __device__ FirstLayer(const float* edges, u32 first_bias) : edges(edges), unit(threadIdx.x % 32 % (WIDTH / 4) * 4) {
        load_piece(bias, edges + first_bias + unit);
        load_piece(factor, edges + unit);
    }

    __device__ void sum(float (&sum)[4], const float* x, u32 inputs) const {
#pragma unroll
        for (u32 k = 0; k < 4; ++k) sum[k] = bias[k] + x[0] * factor[k];
#pragma unroll 1
        for (u32 i = 1; i < inputs; ++i) {
            float more[4];
            load_piece(more, edges + i * WIDTH + unit);
#pragma unroll
            for (u32 k = 0; k < 4; ++k) sum[k] += x[i] * more[k];
        }
    }
};

// work(row), for each of the lane's.
template <class Work>
__device__ inline void each_third(u32 pair, u32 end, Work work) {
    u32 lane = threadIdx.x % 32;
    if (lane >= WIDTH / 4 * 3) return;
#pragma unroll 1
    for (u32 r = pair * 2 + lane / (WIDTH / 4); r < end * 2; r += 3) work(r);
}

// put(edge, how many of four, their gradient, the layer), of the rows' upper numbers at `upper`, the output's at `ends`, and,
// where `MOVED`, of the upper cotangents times the output's deltas. The first lanes have the first layer's, the next ones the
// second's bias, the others the last layer's.
template <bool MOVED, class Put>
__device__ inline void edge_gradient(const Narrow& op, const float* room, const NarrowPass& pass, const float* edges,
                                     RowPart upper, const float* ends, Put put) {
    u32 lane = threadIdx.x % 32, kind = lane / (WIDTH / 4), unit = lane % (WIDTH / 4) * 4;
    const float *one = room + op.ends, *zero = one + 4, *rows = room + op.work + unit;
    const float *left = kind == 3 ? one : kind == 2 ? edges + op.upper_values + unit : rows + (kind == 0 ? LOWER_DELTA : upper);
    const float* right = kind == 0 ? left : MOVED && kind == 2 ? rows + UPPER_MOVED : one;
    const float* by_left = kind < 2 ? one : ends;
    const float* by_right = kind == 0 ? room + pass.inputs : MOVED && kind == 2 ? edges + op.deltas : zero;
    u32 left_step = kind == 3 ? 0 : kind == 2 ? WIDTH : ROW, right_step = kind == 0 || (MOVED && kind == 2) ? ROW : 0;
    u32 by_left_step = kind < 2 ? 0 : 1, by_right_step = kind == 0 ? op.inputs : MOVED && kind == 2 ? 1 : 0;
#pragma unroll 1
    for (u32 n = 0; n < op.inputs; ++n) {
        const float *a = left, *b = right, *x = by_left, *y = by_right + (kind == 0 ? n : 0);
        float sum[4] = {}, more[4] = {};
#pragma unroll 4
        for (u32 r = 0; r < pass.rows; ++r) {
            float p[4], q[4];
            load_piece(p, a);
            load_piece(q, b);
#pragma unroll
            for (u32 k = 0; k < 4; ++k) {
                sum[k] += *x * p[k];
                more[k] += *y * q[k];
            }
            a += left_step;
            b += right_step;
            x += by_left_step;
            y += by_right_step;
        }
        if (kind == 0) put(n * WIDTH + unit, 4, more, 0);
        if (n > 0) continue;
        if (kind == 2) {
#pragma unroll
            for (u32 k = 0; k < 4; ++k) sum[k] += more[k];
        }
        if (lane < 31) put(op.inputs * WIDTH + kind * WIDTH + (kind < 3 ? unit : 0), kind < 3 ? 4 : 1, sum, min(kind, 2));
    }
}
