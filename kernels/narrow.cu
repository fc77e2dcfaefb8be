// The whole inner loop of a network with two narrow hidden layers, and the way back through it: the commonest that fits the
// resident form (see resident.cu), one or several warps a task.
//
// Most of the work is of the weight between the hidden layers. A warp holds all of it, and its cotangent, in registers: a lane
// 10 x 5 numbers, which rows of values meet that lie in shared memory. So a number that is read is multiplied 5 or 10 times,
// and the weight is read but once. A warp takes pairs of rows from the inputs to the loss and back without waiting for another
// one; only gradients are of all rows. What a pair's sums become waits until those of the next one are on their way, so that the
// one's latencies hide behind the other's products.
//
// On the way back several warps find the weight of every step kept, and a lone one loads the first step's again. For the other
// steps it makes it of the weight after the step and of what the step took off: the step's gradient is made once more, which is
// exact but for the rounding of that sum, and leaves room for more tasks at once.

#include "loss.cuh"
#include "mma.cuh"
#include "narrow_edges.cuh"

template <u32 TEAM>
struct NarrowTask : TaskPlaces<Narrow> {
    // Several warps have another one beside them, for the edges' gradients.
    static constexpr u32 TASK_WARPS = TEAM == 1 ? 1 : TEAM + 1;

    u32 warp;
    Lane own;
    Middle weight;
    // The cotangent of the weight; before there is one, a gradient.
    Middle other;

    __device__ NarrowTask(const Narrow& op, float* arena, float* room, u32 task, u32 warp)
        : TaskPlaces<Narrow>{op, arena, room, task}, warp(warp) {}

    __device__ float* row(u32 row) const { return room + op.work + row * ROW; }
    // The output's second deltas, or the terms of the loss; a piece each of ones and of zeros lies before.
    __device__ float* ends() const { return room + op.ends + 8; }

    // The thread's number in its task.
    __device__ u32 thread() const { return warp * 32 + threadIdx.x % 32; }

    __device__ static void wait() {
        if (TEAM == 1) {
            __syncwarp();
        } else {
            __syncthreads();
        }
    }

    // One of two arguments; left to itself the compiler would choose between their addresses.
    __device__ static u32 either(bool first, u32 one, u32 other) {
        u32 a = held(one), b = held(other);
        return first ? a : b;
    }

    // The warp's pairs.
    __device__ void pairs(u32 rows, u32& pair, u32& end) const {
        u32 pairs = (rows + 1) / 2, share = (pairs + TEAM - 1) / TEAM;
        pair = min(warp * share, pairs);
        end = min(pair + share, pairs);
    }

    // finish(pair, sums), after make(pair, sums); of one warp, which has several pairs, after that of the next one too.
    template <u32 COUNT, class Make, class Finish>
    __device__ static void each_pair(u32 pair, u32 end, Make make, Finish finish) {
        if (TEAM > 1) {
#pragma unroll 1
            for (; pair < end; ++pair) {
                float sums[2][COUNT] = {};
                make(pair, sums);
                finish(pair, sums);
            }
            return;
        }
        if (pair >= end) return;
        float sums[2][COUNT] = {};
        make(pair, sums);
#pragma unroll 1
        for (; pair + 1 < end; ++pair) {
            float next[2][COUNT] = {};
            make(pair + 1, next);
            finish(pair, sums);
#pragma unroll
            for (u32 i = 0; i < COUNT; ++i) {
                sums[0][i] = next[0][i];
                sums[1][i] = next[1][i];
            }
        }
        finish(pair, sums);
    }

    // Copies numbers to the task's memory, and zeros up to `padded`; they arrive later.
    __device__ void load(u64 from, u32 to, u32 count, u32 padded) const {
#pragma unroll 1
        for (u32 i = thread(); i < padded; i += TASK_WARPS * 32) {
            copy_async<1>(room + to + i, arena + from + (i < count ? i : 0), i < count);
        }
    }
    __device__ void load_rows(u64 from, u32 to, u32 rows, u32 width) const {
        u32 count = rows * width;
        load(from + (u64)task * count, to, count, (rows + 1) / 2 * 2 * width);
    }

    // That before the first step.
    __device__ void load_weight() {
        each_middle(op, own, arena + op.parameters, [&](const float* parameter, bool there, u32 i, u32 m) {
            weight.at[i][m] = there ? *parameter : 0.0f;
        });
    }

    __device__ void begin() {
        each_edge<TASK_WARPS * 32>(op, thread(), [&](u32 parameter, bool there, u32 edge) {
            copy_async<1>(room + edge, arena + op.parameters + (there ? parameter : 0), there);
        });
        load(op.rates, op.rate, op.steps * 3, op.steps * 3);
        load_rows(op.support.x, op.support.inputs, op.support.rows, op.inputs);
        load_rows(op.support.y, op.support.targets, op.support.rows, 1);
        load_rows(op.query.x, op.query.inputs, op.query.rows, op.inputs);
        load_rows(op.query.y, op.query.targets, op.query.rows, 1);
        end_copies();
        load_weight();
        if (warp == 0 && threadIdx.x % 32 < 8) room[op.ends + threadIdx.x % 32] = threadIdx.x % 32 < 4 ? 1.0f : 0.0f;
        await_copies<0>();
        wait();
    }

    // The deltas of a step or of the query, and of the latter the loss.
    __device__ void forward_and_back(const NarrowPass& pass, u32 s) {
        float *edges = slot(s), *above = edges + op.upper_values, *deltas = edges + op.deltas;
        u32 pair, end;
        pairs(pass.rows, pair, end);
        FirstLayer first(edges, first_bias());
        each_third(pair, end, [&](u32 r) {
            float value[4];
            first.sum(value, room + pass.inputs + r * op.inputs, op.inputs);
#pragma unroll
            for (u32 k = 0; k < 4; ++k) value[k] = act(HIDDEN, value[k]);
            put_piece(row(r) + LOWER + first.unit, value);
        });
        __syncwarp();
        float bias[OWN_UPPER], out[OWN_UPPER], last_bias = edges[op.edges];
        own.load(bias, edges + second_bias());
        own.load(out, edges + top());
        each_pair<OWN_UPPER>(pair, end,
                             [&](u32 pair, float (&sums)[2][OWN_UPPER]) {
#pragma unroll
            for (u32 k = 0; k < 2; ++k) {
                float low[OWN_LOWER];
                own.load(low, row(pair * 2) + own.up[k] + LOWER);
                weight.add_up(sums[k], low);
            }
        },
                             [&](u32 pair, float (&sums)[2][OWN_UPPER]) {
            u32 r = pair * 2 + own.up_row;
            float value[OWN_UPPER], delta[OWN_UPPER];
            Lane::ends_up(sums);
#pragma unroll
            for (u32 i = 0; i < OWN_UPPER; ++i) value[i] = act(HIDDEN, sums[0][i] + bias[i]);
            float sum = 0.0f;
#pragma unroll
            for (u32 i = 0; i < OWN_UPPER; ++i) sum += value[i] * out[i];
            float p = Lane::over_rows(sum) + last_bias, y = room[pass.targets + r];
            float slope = r < pass.rows ? loss_slope(MSE, pass.scale, p, y) : 0.0f;
#pragma unroll
            for (u32 i = 0; i < OWN_UPPER; ++i) delta[i] = slope * out[i] * act_derivative(HIDDEN, value[i]);
            if (own.tells) {
                deltas[r] = slope;
                ends()[r] = loss_term(MSE, p, y);
            }
            own.store(above + r * WIDTH, value);
            own.store(row(pair * 2) + own.up[0] + UPPER_DELTA, delta);
        });
        __syncwarp();
        each_pair<OWN_LOWER>(pair, end,
                             [&](u32 pair, float (&sums)[2][OWN_LOWER]) {
#pragma unroll
            for (u32 k = 0; k < 2; ++k) {
                float up[OWN_UPPER];
                own.load(up, row(pair * 2) + own.back[k] + UPPER_DELTA);
                weight.add_down(sums[k], up);
            }
        },
                             [&](u32 pair, float (&sums)[2][OWN_LOWER]) { end_down(pair, sums); });
    }

    // What comes down to the lower units, before their activation.
    __device__ void end_down(u32 pair, float (&sums)[2][OWN_LOWER]) const {
        float* rows = row(pair * 2) + own.back[0];
        float value[OWN_UPPER], sum[OWN_UPPER];
        own.load_back(value, rows + LOWER);
        Lane::ends_down(sums, sum);
#pragma unroll
        for (u32 i = 0; i < OWN_UPPER; ++i) sum[i] *= act_derivative(HIDDEN, value[i]);
        own.store_back(rows + LOWER_DELTA, sum);
    }

    // The cotangent of the parameters before step `s`, from that of those after it.
    __device__ void reverse(u32 s) {
        const NarrowPass& pass = op.support;
        float *edges = slot(s), *above = edges + op.upper_values, *deltas = edges + op.deltas, *cotangent = room + op.cotangent;
        float rates[3] = {-rate(s, 0), -rate(s, 1), -rate(s, 2)};
        u32 pair, end;
        pairs(pass.rows, pair, end);
        {
            FirstLayer first(edges, first_bias()), turned(cotangent, first_bias());
            float out[4];
            load_piece(out, edges + top() + first.unit);
            each_third(pair, end, [&](u32 r) {
                const float* x = room + pass.inputs + r * op.inputs;
                float value[4], moved[4], delta[4], up[4], slope = deltas[r];
                load_piece(up, above + r * WIDTH + first.unit);
                first.sum(value, x, op.inputs);
                turned.sum(moved, x, op.inputs);
#pragma unroll
                for (u32 k = 0; k < 4; ++k) {
                    value[k] = act(HIDDEN, value[k]);
                    moved[k] *= rates[0] * act_derivative(HIDDEN, value[k]);
                    delta[k] = slope * out[k] * act_derivative(HIDDEN, up[k]);
                }
                float* to = row(r) + first.unit;
                put_piece(to + LOWER, value);
                put_piece(to + LOWER_MOVED, moved);
                put_piece(to + UPPER_DELTA, delta);
            });
        }
        __syncwarp();
        if (TEAM > 1) {
            weight.load(room + op.kept + s * WIDTH * WIDTH);
        } else if (s == 0) {
            load_weight();
        } else {
            add_rows<true>(weight, own, row(0), pass.rows, UPPER_DELTA, LOWER, -rates[1]);
        }
        float bias[OWN_UPPER], out[OWN_UPPER], turned[OWN_UPPER], last_bias = rates[2] * cotangent[op.edges];
        own.load(bias, cotangent + second_bias());
        own.load(out, edges + top());
        own.load(turned, cotangent + top());
#pragma unroll
        for (u32 i = 0; i < OWN_UPPER; ++i) turned[i] *= rates[2];
        each_pair<OWN_UPPER>(pair, end,
                             [&](u32 pair, float (&sums)[2][OWN_UPPER]) {
#pragma unroll
            for (u32 k = 0; k < 2; ++k) {
                float low[OWN_LOWER];
                own.load(low, row(pair * 2) + own.up[k] + LOWER);
                other.add_up(sums[k], low);
#pragma unroll
                for (u32 i = 0; i < OWN_UPPER; ++i) sums[k][i] *= rates[1];
                own.load(low, row(pair * 2) + own.up[k] + LOWER_MOVED);
                weight.add_up(sums[k], low);
            }
        },
                             [&](u32 pair, float (&sums)[2][OWN_UPPER]) {
            u32 r = pair * 2 + own.up_row;
            float value[OWN_UPPER], moved[OWN_UPPER], z[OWN_UPPER], slope = deltas[r], sum = 0.0f;
            own.load(value, above + r * WIDTH);
            Lane::ends_up(sums);
#pragma unroll
            for (u32 i = 0; i < OWN_UPPER; ++i) moved[i] = act_derivative(HIDDEN, value[i]) * (sums[0][i] + rates[1] * bias[i]);
#pragma unroll
            for (u32 i = 0; i < OWN_UPPER; ++i) sum += value[i] * turned[i] + moved[i] * out[i];
            float g = Lane::over_rows(sum) + last_bias;
            float second = r < pass.rows ? loss_second(MSE, pass.scale, 0.0f) * g : 0.0f;
#pragma unroll
            for (u32 i = 0; i < OWN_UPPER; ++i) {
                z[i] = (second * out[i] + slope * turned[i]) * act_derivative(HIDDEN, value[i]);
            }
            if (own.tells) ends()[r] = second;
            own.store(row(pair * 2) + own.up[0] + UPPER_MOVED, moved);
            own.store(row(pair * 2) + own.up[0] + UPPER_BENT, z);
        });
        __syncwarp();
        each_pair<OWN_LOWER>(pair, end,
                             [&](u32 pair, float (&sums)[2][OWN_LOWER]) {
#pragma unroll
            for (u32 k = 0; k < 2; ++k) {
                float up[OWN_UPPER];
                own.load(up, row(pair * 2) + own.back[k] + UPPER_BENT);
                weight.add_down(sums[k], up);
                own.load(up, row(pair * 2) + own.back[k] + UPPER_DELTA);
#pragma unroll
                for (u32 i = 0; i < OWN_UPPER; ++i) up[i] *= rates[1];
                other.add_down(sums[k], up);
            }
        },
                             [&](u32 pair, float (&sums)[2][OWN_LOWER]) { end_down(pair, sums); });
        wait();
        if (warp == TASK_WARPS - 1) {
            edge_gradient<true>(op, room, pass, edges, UPPER_BENT, ends(), [&](u32 at, u32 count, const float (&g)[4], u32) {
#pragma unroll
                for (u32 k = 0; k < 4; ++k) {
                    if (k < count) cotangent[at + k] += g[k];
                }
            });
        }
        if (TEAM > 1) {
            if (warp < TEAM) share_rows(room + op.shared, warp, own, row(0), pass.rows, UPPER_BENT, true);
            wait();
            other.add(room + op.shared);
        } else {
            add_rows<false>(other, own, row(0), pass.rows, UPPER_BENT, LOWER, 0.0f);
            add_rows<false>(other, own, row(0), pass.rows, UPPER_DELTA, LOWER_MOVED, 0.0f);
            wait();
        }
    }

    __device__ void run() {
        begin();
#pragma unroll 1
        for (u32 s = 0; s <= op.steps; ++s) {
            bool query = s == op.steps;
            NarrowPass pass = {0, 0, either(query, op.query.inputs, op.support.inputs),
                               either(query, op.query.targets, op.support.targets),
                               either(query, op.query.rows, op.support.rows), query ? op.query.scale : op.support.scale};
            forward_and_back(pass, s);
            if (TEAM > 1 && !query && op.exact) weight.store(room + op.kept + s * WIDTH * WIDTH, warp, TASK_WARPS);
            wait();
            float *edges = slot(s), *to = query ? room + op.cotangent : slot(s + 1);
            if (warp == TASK_WARPS - 1) {
                edge_gradient<false>(op, room, pass, edges, UPPER_DELTA, edges + op.deltas,
                                     [&](u32 at, u32 count, const float (&g)[4], u32 layer) {
                    float factor = query ? 0.0f : rate(s, layer);
#pragma unroll
                    for (u32 k = 0; k < 4; ++k) {
                        if (k < count) to[at + k] = query ? g[k] : edges[at + k] - factor * g[k];
                    }
                });
            }
            if (TEAM > 1) {
                if (warp < TEAM) share_rows(room + op.shared, warp, own, row(0), pass.rows, UPPER_DELTA, false);
                wait();
                other.load(room + op.shared);
            } else {
                other.clear();
                add_rows<false>(other, own, row(0), pass.rows, UPPER_DELTA, LOWER, 0.0f);
                wait();
            }
            if (!query) weight.add(-rate(s, 1), other);
        }
        if (op.task_loss != NOWHERE && warp == 0) {
            double sum = 0.0;
#pragma unroll 1
            for (u32 i = threadIdx.x % 32; i < op.query.rows; i += 32) sum += ends()[i];
            sum = warp_sum(sum);
            if (threadIdx.x % 32 == 0) arena[op.task_loss + task] = (float)(sum / op.query.rows);
        }
        wait();
        if (op.exact) {
#pragma unroll 1
            for (u32 s = op.steps; s-- > 0;) reverse(s);
        }
        wait();
        // Over what else there was; that of the edges lies beyond.
        other.store(room, warp, TASK_WARPS);
    }
};

// TASKS tasks a block, TEAM warps each; the sum of their gradients is row blockIdx.x of what the launcher has summed.
template <u32 TEAM, u32 TASKS>
__device__ inline void narrow(const Narrow& op, float* arena, float* room) {
    constexpr u32 TASK_WARPS = NarrowTask<TEAM>::TASK_WARPS;
    u32 warp = warp_number(), mine = warp / TASK_WARPS, first = blockIdx.x * TASKS, task = first + mine;
    if (task < op.tasks) {
        NarrowTask<TEAM> loop(op, arena, room + mine * op.length, task, warp % TASK_WARPS);
        loop.run();
    }
    __syncthreads();
    u32 tasks = min(TASKS, op.tasks - first);
    float* to = arena + op.gradients + (u64)blockIdx.x * op.count;
    each_edge<TASKS * TASK_WARPS * 32>(op, threadIdx.x, [&](u32 parameter, bool there, u32 edge) {
        float sum = room[op.cotangent + edge];
#pragma unroll 1
        for (u32 t = 1; t < tasks; ++t) sum += room[t * op.length + op.cotangent + edge];
        if (there) to[parameter] = sum;
    });
    Lane own;
    to += op.lower * op.inputs + op.lower;
    Middle::each_total(room, op.length, tasks, warp, TASKS * TASK_WARPS, [&](u32 i, u32 m, float sum) {
        u32 up = own.upper(i), low = own.lower(m);
        if (up < op.upper && low < op.lower) to[up * op.lower + low] = sum;
    });
}

// Where there are many tasks, and where there are few.
constexpr u32 FEW_TEAM = 5;
constexpr u32 MANY_TASKS = 4;

KERNEL_OF(narrow_many, Narrow, MANY_TASKS * 32, 3) {
    SHARED_NUMBERS(room, MANY_TASKS * op.length);
    narrow<1, MANY_TASKS>(op, arena, room);
}

KERNEL_OF(narrow_few, Narrow, (FEW_TEAM + 1) * 32, 1) {
    SHARED_NUMBERS(room, op.length);
    narrow<FEW_TEAM, 1>(op, arena, room);
}
