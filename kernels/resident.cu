// The whole inner loop of a small network, and the way back through it: a block a task, everything of the task in shared
// memory from the first step to the last. Rows of weights are padded to an odd length, so that neither rows nor columns of
// them meet in one bank. Each task leaves its own gradients in the arena; the launcher has them summed.

#include "loss.cuh"
#include "resident.cuh"

// One task's loop.
struct ResidentTask {
    const Resident& op;
    float* arena;
    float* room;
    Partials& partials;
    u32 task;

    // Numbers of the layers before `layer`, with and without padding.
    __device__ u32 padded_before(u32 layer) const {
        u32 sum = 0;
        for (u32 l = 0; l < layer; ++l) sum += op.widths[l + 1] * ((op.widths[l] | 1) + 1);
        return sum;
    }
    __device__ u32 plain_before(u32 layer) const {
        u32 sum = 0;
        for (u32 l = 0; l < layer; ++l) sum += op.widths[l + 1] * (op.widths[l] + 1);
        return sum;
    }
    // The widths of the levels between the input and `level`.
    __device__ u32 widths_before(u32 level) const {
        u32 sum = 0;
        for (u32 l = 1; l < level; ++l) sum += op.widths[l];
        return sum;
    }

    __device__ u32 weights(u32 steps) const { return op.weights + steps % op.weight_slots * op.padded; }
    __device__ u32 velocity(u32 step) const { return op.velocities + step % op.velocity_slots * op.padded; }
    __device__ ResidentPass step(u32 step) const {
        ResidentPass pass = op.support;
        pass.values += step % op.slots * op.slot;
        pass.deltas = pass.values + op.slot / 2;
        return pass;
    }
    __device__ u32 level(const ResidentPass& pass, u32 level) const {
        return level == 0 ? pass.inputs : pass.values + pass.rows * widths_before(level);
    }
    __device__ u32 delta(const ResidentPass& pass, u32 layer) const {
        return pass.deltas + pass.rows * widths_before(layer + 1);
    }
    __device__ u32 e(u32 level) const { return op.e + op.support.rows * widths_before(level); }
    __device__ u32 z(u32 layer) const { return op.z + op.support.rows * widths_before(layer + 1); }

    // A layer's weight in parameters that begin at `place`, [outputs, inputs], and its bias.
    __device__ Grid weight(u32 place, u32 layer) const {
        return {place + padded_before(layer), op.widths[layer] | 1, 1};
    }
    __device__ u32 bias(u32 place, u32 layer) const {
        return place + padded_before(layer) + op.widths[layer + 1] * (op.widths[layer] | 1);
    }
    __device__ static Grid rows(u32 place, u32 width) { return {place, width, 1}; }
    __device__ static ResidentTerm none() { return {{0, 0, 0}, {0, 0, 0}, 0}; }

    // work(place in the layers' flat array, place among the padded ones), for each parameter of a layer.
    template <class Work>
    __device__ void each_parameter(u32 layer, Work work) const {
        u32 inputs = op.widths[layer], outputs = op.widths[layer + 1];
        u32 plain = plain_before(layer), padded = padded_before(layer), count = inputs * outputs;
        for (u32 i = threadIdx.x; i < count + outputs; i += THREADS) {
            u32 inside = i < count ? i / inputs * (inputs | 1) + i % inputs : outputs * (inputs | 1) + i - count;
            work(plain + i, padded + inside);
        }
    }

    __device__ void load(u64 from, u32 to, u32 count) const {
        for (u32 i = threadIdx.x; i < count; i += THREADS) room[to + i] = arena[from + (u64)task * count + i];
    }

    __device__ float rate(u32 layer, u32 step, u32 parameter) const {
        return arena[op.rates + (op.per_parameter ? parameter : step * op.layers + layer)];
    }

    __device__ void forward(const ResidentPass& pass, u32 steps) const {
        for (u32 l = 0; l < op.layers; ++l) {
            u32 inputs = op.widths[l], outputs = op.widths[l + 1], place = weights(steps);
            u32 out = level(pass, l + 1), biases = bias(place, l), activation = op.activations[l];
            ResidentTerm term = {rows(level(pass, l), inputs), weight(place, l).transposed(), inputs};
            small_product(room, pass.rows, outputs, term, none(), [&](u32 row, u32 column, float sum) {
                room[out + row * outputs + column] = act(activation, sum + room[biases + column]);
            });
            __syncthreads();
        }
    }

    // 1 / (the elements that a mean is taken over).
    __device__ float loss_scale(u32 rows) const {
        return 1.0f / (op.loss == CROSS_ENTROPY ? rows : rows * op.widths[op.layers]);
    }

    __device__ void loss_delta(const ResidentPass& pass) const {
        u32 outputs = op.widths[op.layers], activation = op.activations[op.layers - 1];
        const float *p = room + level(pass, op.layers), *y = room + pass.targets;
        float* out = room + delta(pass, op.layers - 1);
        float scale = loss_scale(pass.rows);
        if (op.loss == CROSS_ENTROPY) {
            for (u32 row = threadIdx.x / 32; row < pass.rows; row += WARPS) {
                u32 at = row * outputs;
                cross_entropy_delta_row(p + at, y + at, out + at, outputs, scale, activation);
            }
        } else {
            for (u32 i = threadIdx.x; i < pass.rows * outputs; i += THREADS) {
                out[i] = loss_slope(op.loss, scale, p[i], y[i]) * act_derivative(activation, p[i]);
            }
        }
        __syncthreads();
    }

    __device__ void backward(const ResidentPass& pass, u32 steps, u32 last) const {
        for (u32 l = op.layers - 1; l > last; --l) {
            u32 inputs = op.widths[l], outputs = op.widths[l + 1];
            u32 out = delta(pass, l - 1), values = level(pass, l), activation = op.activations[l - 1];
            ResidentTerm term = {rows(delta(pass, l), outputs), weight(weights(steps), l), outputs};
            small_product(room, pass.rows, inputs, term, none(), [&](u32 row, u32 column, float sum) {
                u32 at = row * inputs + column;
                room[out + at] = sum * act_derivative(activation, room[values + at]);
            });
            __syncthreads();
        }
    }

    // finish(place among the padded parameters, the gradient there), p^T [q, 1] with p and q `count` rows, and of `more` p^T q.
    template <class Finish>
    __device__ void gradient(u32 layer, u32 count, u32 p, u32 q, bool more, u32 more_p, u32 more_q, Finish finish) const {
        u32 inputs = op.widths[layer], outputs = op.widths[layer + 1], padded = padded_before(layer);
        ResidentTerm first = {rows(p, outputs).transposed(), rows(q, inputs), count};
        ResidentTerm second = none();
        if (more) second = {rows(more_p, outputs).transposed(), rows(more_q, inputs), count};
        small_product(room, outputs, inputs, first, second, [&](u32 row, u32 column, float sum) {
            finish(padded + row * (inputs | 1) + column, sum);
        });
        for (u32 i = threadIdx.x; i < outputs; i += THREADS) {
            float sum = 0.0f;
            for (u32 k = 0; k < count; ++k) sum += room[p + k * outputs + i];
            finish(padded + outputs * (inputs | 1) + i, sum);
        }
    }

    // theta <- theta - rate v, v <- momentum v + g + decay theta.
    __device__ void update(u32 s) const {
        ResidentPass pass = step(s);
        u32 from = weights(s), to = weights(s + 1);
        for (u32 l = 0; l < op.layers; ++l) {
            if (l < op.first_moving) {
                if (from != to) each_parameter(l, [&](u32, u32 at) { room[to + at] = room[from + at]; });
                continue;
            }
            u32 plain = plain_before(l), padded = padded_before(l), inputs = op.widths[l], outputs = op.widths[l + 1];
            gradient(l, pass.rows, delta(pass, l), level(pass, l), false, 0, 0, [&](u32 at, float g) {
                float before = room[from + at];
                float v = g + op.decay * before;
                if (op.velocity_slots > 0) {
                    if (s > 0 && op.momentum != 0.0f) v += op.momentum * room[velocity(s - 1) + at];
                    room[velocity(s) + at] = v;
                }
                // The parameter's place without the padding.
                u32 inside = at - padded, weights = outputs * (inputs | 1);
                u32 row = inside / (inputs | 1);
                u32 parameter = plain + (inside < weights ? inside - row * ((inputs | 1) - inputs)
                                                          : inside - outputs * ((inputs | 1) - inputs));
                room[to + at] = before - rate(l, s, parameter) * v;
            });
        }
        __syncthreads();
    }

    // From the cotangent of the weights after a step to that of its gradient, and to the gradient of the rates.
    __device__ void reverse(u32 s) const {
        for (u32 l = op.first_moving; l < op.layers; ++l) {
            double dot = 0.0;
            each_parameter(l, [&](u32 parameter, u32 at) {
                float cotangent = room[op.cotangent + at];
                if (op.rate_gradients != NOWHERE) {
                    float product = cotangent * room[velocity(s) + at];
                    dot += (double)cotangent * (double)room[velocity(s) + at];
                    if (op.per_parameter) {
                        u64 count = plain_before(op.layers);
                        float* sum = arena + op.rate_gradients + task * count + parameter;
                        *sum += product;
                    }
                }
                float* direction = room + op.direction + at;
                float moved = -rate(l, s, parameter) * cotangent;
                *direction = s + 1 < op.steps && op.momentum != 0.0f ? op.momentum * *direction + moved : moved;
                room[op.cotangent + at] = cotangent + op.decay * *direction;
            });
            if (op.rate_gradients != NOWHERE && !op.per_parameter) {
                dot = block_sum(partials, dot);
                u64 at = ((u64)task * op.steps + s) * op.layers + l;
                if (threadIdx.x == 0) arena[op.rate_gradients + at] = (float)dot;
            }
        }
        __syncthreads();
    }

    __device__ bool curved(u32 layer) const {
        u32 activation = op.activations[layer];
        return layer >= op.first_moving && (activation == TANH || activation == SIGMOID);
    }

    // z (+)= act'(a) L''(a) e at the top.
    __device__ void loss_curvature(const ResidentPass& pass) const {
        u32 outputs = op.widths[op.layers], activation = op.activations[op.layers - 1];
        const float *p = room + level(pass, op.layers), *y = room + pass.targets, *top = room + e(op.layers);
        float* out = room + z(op.layers - 1);
        float scale = loss_scale(pass.rows);
        bool begun = curved(op.layers - 1);
        if (op.loss == CROSS_ENTROPY) {
            for (u32 row = threadIdx.x / 32; row < pass.rows; row += WARPS) {
                u32 at = row * outputs;
                cross_entropy_curvature_row(p + at, y + at, top + at, out + at, outputs, scale, activation, begun);
            }
        } else {
            for (u32 i = threadIdx.x; i < pass.rows * outputs; i += THREADS) {
                float part = loss_second(op.loss, scale, p[i]) * top[i] * act_derivative(activation, p[i]);
                out[i] = begun ? out[i] + part : part;
            }
        }
        __syncthreads();
    }

    // The cotangent of the weights before a step, from that of its gradient.
    __device__ void adjoint(u32 s) const {
        ResidentPass pass = step(s);
        for (u32 l = op.first_moving; l < op.layers; ++l) {
            u32 inputs = op.widths[l], outputs = op.widths[l + 1], activation = op.activations[l];
            ResidentTerm own = {rows(level(pass, l), inputs), weight(op.direction, l).transposed(), inputs};
            ResidentTerm below = none();
            if (l > op.first_moving) below = {rows(e(l), inputs), weight(weights(s), l).transposed(), inputs};
            u32 biases = bias(op.direction, l), values = level(pass, l + 1), deltas = delta(pass, l);
            u32 above = e(l + 1), bent = z(l);
            bool curves = curved(l);
            small_product(room, pass.rows, outputs, own, below, [&](u32 row, u32 column, float sum) {
                u32 at = row * outputs + column;
                float g = sum + room[biases + column], a = room[values + at];
                if (curves) room[bent + at] = g * room[deltas + at] * act_curvature(activation, a);
                room[above + at] = g * act_derivative(activation, a);
            });
            __syncthreads();
        }
        loss_curvature(pass);
        for (u32 l = op.layers; l-- > 0;) {
            bool lower = l > op.first_moving;
            gradient(l, pass.rows, z(l), level(pass, l), lower, delta(pass, l), lower ? e(l) : 0,
                     [&](u32 at, float g) { room[op.cotangent + at] += g; });
            if (l == 0) break;
            u32 inputs = op.widths[l], outputs = op.widths[l + 1], activation = op.activations[l - 1];
            ResidentTerm down = {rows(z(l), outputs), weight(weights(s), l), outputs};
            ResidentTerm own = none();
            if (l >= op.first_moving) own = {rows(delta(pass, l), outputs), weight(op.direction, l), outputs};
            u32 values = level(pass, l), out = z(l - 1);
            bool begun = curved(l - 1);
            small_product(room, pass.rows, inputs, down, own, [&](u32 row, u32 column, float sum) {
                u32 at = row * inputs + column;
                float part = sum * act_derivative(activation, room[values + at]);
                room[out + at] = begun ? room[out + at] + part : part;
            });
            __syncthreads();
        }
        __syncthreads();
    }

    __device__ void trace(u32 after) const {
        if (op.trace_loss == NOWHERE) return;
        forward(op.query, after);
        const float* p = room + level(op.query, op.layers);
        u32 count = op.query.rows * op.widths[op.layers];
        double mean = task_mean<1>(partials, op.loss, p, room + op.query.targets, op.query.rows, op.widths[op.layers]);
        u64 at = (u64)after * op.tasks + task;
        if (threadIdx.x == 0) arena[op.trace_loss + at] = (float)mean;
        for (u32 i = threadIdx.x; i < count; i += THREADS) arena[op.trace_output + at * count + i] = p[i];
        __syncthreads();
    }

    // To [T, P] of the arena.
    __device__ void store(u32 from, u64 to) const {
        u64 count = plain_before(op.layers);
        for (u32 l = 0; l < op.layers; ++l) {
            each_parameter(l, [&](u32 parameter, u32 at) { arena[to + task * count + parameter] = room[from + at]; });
        }
    }

    __device__ void query() const {
        ResidentPass pass = op.query;
        u32 outputs = op.widths[op.layers];
        forward(pass, op.steps);
        if (op.task_loss != NOWHERE) {
            const float* p = room + level(pass, op.layers);
            double mean = task_mean<1>(partials, op.loss, p, room + pass.targets, pass.rows, outputs);
            if (threadIdx.x == 0) arena[op.task_loss + task] = (float)mean;
        }
        if (!op.goes_back) return;
        loss_delta(pass);
        backward(pass, op.steps, 0);
        for (u32 l = 0; l < op.layers; ++l) {
            gradient(l, pass.rows, delta(pass, l), level(pass, l), false, 0, 0,
                     [&](u32 at, float g) { room[op.cotangent + at] = g; });
        }
        __syncthreads();
    }

    __device__ void run() const {
        load(op.support_x, op.support.inputs, op.support.rows * op.widths[0]);
        load(op.support_y, op.support.targets, op.support.rows * op.widths[op.layers]);
        load(op.query_x, op.query.inputs, op.query.rows * op.widths[0]);
        load(op.query_y, op.query.targets, op.query.rows * op.widths[op.layers]);
        for (u32 l = 0; l < op.layers; ++l) {
            each_parameter(l, [&](u32 parameter, u32 at) { room[weights(0) + at] = arena[op.parameters + parameter]; });
        }
        if (op.rate_gradients != NOWHERE) {
            u64 count = op.per_parameter ? plain_before(op.layers) : op.steps * op.layers;
            for (u64 i = threadIdx.x; i < count; i += THREADS) arena[op.rate_gradients + task * count + i] = 0.0f;
        }
        __syncthreads();
        for (u32 s = 0; s < op.steps; ++s) {
            trace(s);
            ResidentPass pass = step(s);
            forward(pass, s);
            loss_delta(pass);
            backward(pass, s, op.first_moving);
            update(s);
        }
        trace(op.steps);
        if (op.adapted != NOWHERE) store(weights(op.steps), op.adapted);
        if (op.task_loss != NOWHERE || op.goes_back) query();
        if (op.displacement) {
            u32 adapted = weights(op.steps);
            for (u32 l = 0; l < op.layers; ++l) {
                each_parameter(l, [&](u32 parameter, u32 at) {
                    room[op.cotangent + at] = room[adapted + at] - arena[op.parameters + parameter];
                });
            }
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

KERNEL(resident, Resident) {
    SHARED(Partials, partials);
    SHARED_NUMBERS(room, op.length);
    ResidentTask{op, arena, room, partials, blockIdx.x}.run();
}
