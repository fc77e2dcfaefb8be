// The whole inner loop of a small network, and the way back through it: a block a task, everything of the task in shared
// memory from the first step to the last. Each task leaves its own gradients in the arena; the launcher has them summed.
//
// With few tasks the time is that of the phases between barriers, one after the other; with many, that of reads from shared
// memory. So numbers are read by pieces of four, a product's threads hold several rows, and warps that have nothing of one layer
// to do go on with the next one.

#include "loss.cuh"
#include "resident.cuh"

struct TaskSums {
    double warp[TASK_WARPS];
};

// One task's loop.
struct ResidentTask {
    const Resident& op;
    float* arena;
    float* room;
    TaskSums& sums;
    u32 task;

    __device__ const ResidentLayer& layer(u32 l) const { return op.layer[l]; }
    __device__ const ResidentLayer& top() const { return op.layer[op.layers - 1]; }

    __device__ u32 weights(u32 steps) const { return op.weights + (op.weight_slots > 1 ? steps * op.padded : 0); }
    __device__ u32 velocity(u32 step) const { return op.velocities + (op.velocity_slots > 1 ? step * op.padded : 0); }
    __device__ ResidentPass step(u32 step) const {
        ResidentPass pass = op.support;
        pass.values += op.slots > 1 ? step * op.slot : 0;
        pass.deltas = pass.values + op.slot / 2;
        return pass;
    }
    // What goes into layer `l`, and what comes out of it; and what belongs to each of its outputs.
    __device__ u32 below(const ResidentPass& pass, u32 l) const { return l == 0 ? pass.inputs : values(pass, l - 1); }
    __device__ u32 values(const ResidentPass& pass, u32 l) const { return pass.values + pass.rows * layer(l).level; }
    __device__ u32 delta(const ResidentPass& pass, u32 l) const { return pass.deltas + pass.rows * layer(l).level; }
    __device__ u32 e(u32 l) const { return op.e + op.support.rows * layer(l).level; }
    __device__ u32 z(u32 l) const { return op.z + op.support.rows * layer(l).level; }

    // Rows of a layer's inputs times its weight among the parameters at `place`; rows of its outputs times the weight.
    __device__ RowTerm up(u32 rows, u32 place, u32 l) const {
        const ResidentLayer& own = layer(l);
        return {rows, own.row, place + own.weight, own.row, own.inputs};
    }
    __device__ RowTerm down(u32 rows, u32 place, u32 l) const {
        const ResidentLayer& own = layer(l);
        return {rows, own.above, place + own.weight, own.row, own.outputs};
    }
    __device__ static RowTerm none() { return {0, 0, 0, 0, 0}; }

    // The task's rows to the block's memory; returns where the next work begins.
    __device__ u32 load(u64 from, u32 to, u32 rows, u32 width, u32 row, u32 by_width, u32 first) const {
        u32 count = rows * width;
#pragma unroll 4
        for (u32 i = turn(first); i < count; i += TASK_THREADS) {
            u32 r = divided(i, by_width);
            room[to + r * row + i - r * width] = arena[from + (u64)task * count + i];
        }
        return next_turn(first, count);
    }

    // The rate of a layer in a step, where its parameters share one.
    __device__ float rate(u32 step, u32 l) const { return op.per_parameter ? 0.0f : arena[op.rates + step * op.layers + l]; }
    // Those of a piece of four.
    __device__ void rates(float (&rate)[4], float shared, u32 parameter, u32 count) const {
#pragma unroll
        for (u32 k = 0; k < 4; ++k) rate[k] = op.per_parameter && k < count ? arena[op.rates + parameter + k] : shared;
    }

    // The sum over the block, to thread 0. Ends with a barrier.
    __device__ double sum(double value) const {
        value = warp_sum(value);
        if (threadIdx.x % 32 == 0) sums.warp[threadIdx.x / 32] = value;
        __syncthreads();
        double total = 0.0;
        if (threadIdx.x == 0) {
            for (int warp = 0; warp < TASK_WARPS; ++warp) total += sums.warp[warp];
        }
        __syncthreads();
        return total;
    }

    // Losses that go element by element are done with the last layer's product.
    __device__ bool with_product(u32 l) const { return l + 1 == op.layers && op.loss != CROSS_ENTROPY; }

    // The values of all layers, and dL/dz of the last one, if asked for.
    __device__ void forward(const ResidentPass& pass, u32 steps, bool differentiate) const {
        float scale = pass.scale;
        for (u32 l = 0; l < op.layers; ++l) {
            const ResidentLayer& own = layer(l);
            u32 place = weights(steps), out = values(pass, l), biases = place + own.bias, pitch = own.above;
            u32 deltas = delta(pass, l);
            bool slope = differentiate && with_product(l);
            RowTerm term = up(below(pass, l), place, l);
            row_product<Way::UP>(room, pass.rows, own.outputs, own.by_outputs, term, none(), own.activation,
                                 [&](auto chosen, u32 row, u32 column, float sum) {
                constexpr u32 ACTIVATION = decltype(chosen)::activation;
                u32 at = row * pitch + column;
                float a = act(ACTIVATION, sum + room[biases + column]);
                room[out + at] = a;
                if (slope) {
                    room[deltas + at] = loss_slope(op.loss, scale, a, room[pass.targets + at]) * act_derivative(ACTIVATION, a);
                }
            });
            __syncthreads();
        }
        if (differentiate && op.loss == CROSS_ENTROPY) {
            const ResidentLayer& own = top();
            u32 p = values(pass, op.layers - 1), out = delta(pass, op.layers - 1);
            for (u32 row = threadIdx.x / 32; row < pass.rows; row += TASK_WARPS) {
                u32 at = row * own.above;
                cross_entropy_delta_row(room + p + at, room + pass.targets + at, room + out + at, own.outputs, scale,
                                        own.activation);
            }
            __syncthreads();
        }
    }

    __device__ void backward(const ResidentPass& pass, u32 steps, u32 last) const {
        for (u32 l = op.layers - 1; l > last; --l) {
            const ResidentLayer& own = layer(l);
            u32 out = delta(pass, l - 1), a = values(pass, l - 1), activation = layer(l - 1).activation, pitch = own.row;
            RowTerm term = down(delta(pass, l), weights(steps), l);
            row_product<Way::DOWN>(room, pass.rows, own.inputs, own.by_inputs, term, none(), activation,
                                   [&](auto chosen, u32 row, u32 column, float sum) {
                u32 at = row * pitch + column;
                room[out + at] = sum * act_derivative(decltype(chosen)::activation, room[a + at]);
            });
            __syncthreads();
        }
    }

    // What the pass's gradient is for: after the last step the cotangent of the weights; before it the step
    // theta <- theta - rate v, v <- momentum v + g + decay theta.
    __device__ void descend(const ResidentPass& pass, u32 s) const {
        bool query = s == op.steps;
        u32 from = weights(s), to = weights(s + 1), first = 0;
        for (u32 l = 0; l < op.layers; ++l) {
            if (!query && l < op.first_moving) {
                if (from == to) continue;
                first = each_piece(layer(l), first, [&](u32 at, u32, u32) {
                    float value[4];
                    load_piece(value, room + from + at);
                    put_piece(room + to + at, value);
                });
                continue;
            }
            float shared = query ? 0.0f : rate(s, l);
            first = layer_gradient(room, layer(l), pass.rows, delta(pass, l), below(pass, l), false, 0, 0, from, first,
                                   [&](u32 at, u32 parameter, u32 count, float (&g)[4], float (&value)[4]) {
                if (query) return put_piece(room + op.cotangent + at, g);
                float each[4];
                rates(each, shared, parameter, count);
                if (op.velocity_slots > 0) {
                    float before[4] = {};
                    if (s > 0 && op.momentum != 0.0f) load_piece(before, room + velocity(s - 1) + at);
#pragma unroll
                    for (int k = 0; k < 4; ++k) g[k] += op.decay * value[k] + op.momentum * before[k];
                    put_piece(room + velocity(s) + at, g);
                }
#pragma unroll
                for (int k = 0; k < 4; ++k) value[k] -= each[k] * g[k];
                put_piece(room + to + at, value);
            });
        }
        __syncthreads();
    }

    // From the cotangent of the weights after a step to that of its gradient, and to the gradient of the rates.
    __device__ void reverse(u32 s) const {
        bool learned = op.rate_gradients != NOWHERE, begun = s + 1 < op.steps && op.momentum != 0.0f;
        u32 first = 0;
        for (u32 l = op.first_moving; l < op.layers; ++l) {
            double dot = 0.0;
            float shared = rate(s, l);
            first = each_piece(layer(l), first, [&](u32 at, u32 parameter, u32 count) {
                float cotangent[4], each[4], direction[4] = {};
                load_piece(cotangent, room + op.cotangent + at);
                rates(each, shared, parameter, count);
                if (learned) {
                    float v[4];
                    load_piece(v, room + velocity(s) + at);
#pragma unroll
                    for (u32 k = 0; k < 4; ++k) {
                        if (k >= count) break;
                        if (op.per_parameter) {
                            arena[op.rate_gradients + (u64)task * op.count + parameter + k] += cotangent[k] * v[k];
                        } else {
                            dot += (double)cotangent[k] * (double)v[k];
                        }
                    }
                }
                if (begun) load_piece(direction, room + op.direction + at);
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                    direction[k] = op.momentum * direction[k] - each[k] * cotangent[k];
                    cotangent[k] += op.decay * direction[k];
                }
                put_piece(room + op.direction + at, direction);
                if (op.decay != 0.0f) put_piece(room + op.cotangent + at, cotangent);
            });
            if (learned && !op.per_parameter) {
                dot = sum(dot);
                u64 at = ((u64)task * op.steps + s) * op.layers + l;
                if (threadIdx.x == 0) arena[op.rate_gradients + at] = (float)dot;
            }
        }
        __syncthreads();
    }

    __device__ bool curved(u32 l) const {
        u32 activation = layer(l).activation;
        return l >= op.first_moving && (activation == TANH || activation == SIGMOID);
    }

    // The cotangent of the weights before a step, from that of its gradient.
    __device__ void adjoint(u32 s) const {
        ResidentPass pass = step(s);
        float scale = pass.scale;
        for (u32 l = op.first_moving; l < op.layers; ++l) {
            const ResidentLayer& own = layer(l);
            RowTerm moved = up(below(pass, l), op.direction, l), lower = none();
            if (l > op.first_moving) lower = up(e(l - 1), weights(s), l);
            u32 biases = op.direction + own.bias, a = values(pass, l), deltas = delta(pass, l), above = e(l), bent = z(l);
            u32 pitch = own.above;
            bool curves = curved(l), second = with_product(l);
            row_product<Way::UP>(room, pass.rows, own.outputs, own.by_outputs, moved, lower, own.activation,
                                 [&](auto chosen, u32 row, u32 column, float sum) {
                constexpr u32 ACTIVATION = decltype(chosen)::activation;
                u32 at = row * pitch + column;
                float g = sum + room[biases + column], value = room[a + at], slope = act_derivative(ACTIVATION, value);
                float part = curves ? g * room[deltas + at] * act_curvature(ACTIVATION, value) : 0.0f;
                // z (+)= act'(a) L''(a) e at the top.
                if (second) part += loss_second(op.loss, scale, value) * (g * slope) * slope;
                if (curves || second) room[bent + at] = part;
                room[above + at] = g * slope;
            });
            __syncthreads();
        }
        if (op.loss == CROSS_ENTROPY) {
            const ResidentLayer& own = top();
            u32 l = op.layers - 1, p = values(pass, l);
            for (u32 row = threadIdx.x / 32; row < pass.rows; row += TASK_WARPS) {
                u32 at = row * own.above;
                cross_entropy_curvature_row(room + p + at, room + pass.targets + at, room + e(l) + at, room + z(l) + at,
                                            own.outputs, scale, own.activation, curved(l));
            }
            __syncthreads();
        }
        for (u32 l = op.layers; l-- > 0;) {
            const ResidentLayer& own = layer(l);
            bool lower = l > op.first_moving;
            layer_gradient(room, own, pass.rows, z(l), below(pass, l), lower, delta(pass, l), lower ? e(l - 1) : 0, op.cotangent, 0,
                           [&](u32 at, u32, u32, const float (&g)[4], float (&value)[4]) {
#pragma unroll
                for (int k = 0; k < 4; ++k) value[k] += g[k];
                put_piece(room + op.cotangent + at, value);
            });
            if (l == 0) break;
            RowTerm plain = down(z(l), weights(s), l), moved = none();
            if (l >= op.first_moving) moved = down(delta(pass, l), op.direction, l);
            u32 a = values(pass, l - 1), out = z(l - 1), activation = layer(l - 1).activation, pitch = own.row;
            bool begun = curved(l - 1);
            row_product<Way::DOWN>(room, pass.rows, own.inputs, own.by_inputs, plain, moved, activation,
                                   [&](auto chosen, u32 row, u32 column, float sum) {
                u32 at = row * pitch + column;
                float part = sum * act_derivative(decltype(chosen)::activation, room[a + at]);
                room[out + at] = begun ? room[out + at] + part : part;
            });
            __syncthreads();
        }
        __syncthreads();
    }

    // The mean loss of the pass, to thread 0.
    __device__ double mean(const ResidentPass& pass) const {
        const ResidentLayer& own = top();
        u32 outputs = own.outputs, count = pass.rows * outputs;
        const float *p = room + values(pass, op.layers - 1), *y = room + pass.targets;
        double part = 0.0;
        if (op.loss == CROSS_ENTROPY) {
            for (u32 row = threadIdx.x / 32; row < pass.rows; row += TASK_WARPS) {
                u32 at = row * own.above;
                Softmax parts = softmax_parts(p + at, outputs);
                float log = parts.top + logf(parts.total);
                for (u32 i = threadIdx.x % 32; i < outputs; i += 32) part += y[at + i] * (log - p[at + i]);
            }
        } else {
            for (u32 i = threadIdx.x; i < count; i += TASK_THREADS) {
                u32 row = divided(i, own.by_outputs), at = row * own.above + i - row * outputs;
                part += loss_term(op.loss, p[at], y[at]);
            }
        }
        return sum(part) / (op.loss == CROSS_ENTROPY ? pass.rows : count);
    }

    __device__ void store_trace(u32 after) const {
        double loss = mean(op.query);
        const ResidentLayer& own = top();
        u32 count = op.query.rows * own.outputs;
        const float* p = room + values(op.query, op.layers - 1);
        u64 to = (u64)after * op.tasks + task;
        if (threadIdx.x == 0) arena[op.trace_loss + to] = (float)loss;
        for (u32 i = threadIdx.x; i < count; i += TASK_THREADS) {
            u32 row = divided(i, own.by_outputs);
            arena[op.trace_output + to * count + i] = p[row * own.above + i - row * own.outputs];
        }
        __syncthreads();
    }

    // To [T, P] of the arena.
    __device__ void store(u32 from, u64 to) const {
        u64 begin = to + (u64)task * op.count;
        for (u32 l = 0, first = 0; l < op.layers; ++l) {
            first = each_parameter(layer(l), first, [&](u32, u32 at) { return room[from + at]; },
                                   [&](u32 parameter, u32, float value) { arena[begin + parameter] = value; });
        }
    }

    __device__ void begin() const {
        const ResidentLayer &bottom = layer(0), &last = top();
        auto rows = [&](u64 x, u64 y, const ResidentPass& pass, u32 first) {
            first = load(x, pass.inputs, pass.rows, bottom.inputs, bottom.row, bottom.by_inputs, first);
            return load(y, pass.targets, pass.rows, last.outputs, last.above, last.by_outputs, first);
        };
        u32 first = rows(op.support_x, op.support_y, op.support, 0);
        first = rows(op.query_x, op.query_y, op.query, first);
        for (u32 l = 0; l < op.layers; ++l) {
            first = each_parameter(layer(l), first, [&](u32 parameter, u32) { return arena[op.parameters + parameter]; },
                                   [&](u32, u32 at, float value) { room[weights(0) + at] = value; });
        }
        if (op.rate_gradients != NOWHERE) {
            u32 count = op.per_parameter ? op.count : op.steps * op.layers;
            for (u32 i = threadIdx.x; i < count; i += TASK_THREADS) arena[op.rate_gradients + (u64)task * count + i] = 0.0f;
        }
        __syncthreads();
    }

    __device__ void run() const {
        begin();
        // Each step: the query's rows for a trace, and those of the step, which after the last one are the query's.
        for (u32 s = 0; s <= op.steps; ++s) {
            bool query = s == op.steps;
            if (query && op.adapted != NOWHERE) store(weights(s), op.adapted);
            for (u32 part = op.trace_loss == NOWHERE; part < 2; ++part) {
                bool traced = part == 0, differentiate = !traced && (!query || op.goes_back);
                if (!traced && query && op.task_loss == NOWHERE && !op.goes_back) break;
                ResidentPass pass = traced || query ? op.query : step(s);
                forward(pass, s, differentiate);
                if (traced) {
                    store_trace(s);
                    continue;
                }
                if (query && op.task_loss != NOWHERE) {
                    double loss = mean(pass);
                    if (threadIdx.x == 0) arena[op.task_loss + task] = (float)loss;
                }
                if (!differentiate) break;
                backward(pass, s, query ? 0 : op.first_moving);
                descend(pass, s);
            }
        }
        if (op.displacement) {
            u32 adapted = weights(op.steps);
            for (u32 l = 0, first = 0; l < op.layers; ++l) {
                first = each_parameter(layer(l), first, [&](u32 parameter, u32) { return arena[op.parameters + parameter]; },
                                       [&](u32, u32 at, float value) { room[op.cotangent + at] = room[adapted + at] - value; });
            }
            __syncthreads();
        }
        if (op.reverses) {
            for (u32 s = op.steps; s-- > 0;) {
                reverse(s);
                if (op.exact) adjoint(s);
            }
        }
        if (op.gradients != NOWHERE) store(op.cotangent, op.gradients);
    }
};

KERNEL_OF(resident, Resident, TASK_THREADS, TASK_BLOCKS) {
    SHARED(TaskSums, sums);
    SHARED_NUMBERS(room, op.length);
    ResidentTask{op, arena, kept(room), sums, blockIdx.x}.run();
}
