// The loop of narrow.cu in tf32, on tensor cores: a warp a task, all products of the weight between the hidden layers. UnitRows are at
// most 16, a product's.
//
// The weight lies in the task's memory twice, by its upper units and by its lower ones, so that either is an operand as it lies; the
// cotangent does in registers. UnitRows of values are made where and how they are wanted. The weights before a step are made of those
// after it: what the step took off is given back.

#include "loss.cuh"
#include "narrow_edges.cuh"
#include "narrow_mma.cuh"

struct NarrowMma {
    // The arena's.
    u64 parameters;
    u64 rates;
    u64 task_loss;
    u64 gradients;
    NarrowPass support;
    NarrowPass query;
    // The task's own: a slot for each step and the query, in it the edges, the output's deltas and which upper units are active;
    // rates; the cotangent of the edges; the middle weight twice.
    u32 slot;
    u32 deltas;
    u32 active;
    u32 rate;
    u32 cotangent;
    u32 weight;
    u32 length;
    u32 edges;
    u32 tasks;
    u32 steps;
    u32 inputs;
    u32 lower;
    u32 upper;
    u32 count;
    u32 exact;
    u32 unused;
};
static_assert(sizeof(NarrowMma) == 160, "mirrored in Rust");

// UnitRows of a pass at most.
constexpr u32 MMA_ROWS = 16;

// A number for each of the lane's rows, of `UnitRows` and of `UnitColumns`.
struct OfRows {
    float at[2];
};
struct OfColumns {
    float at[2][2];
};

struct MmaTask {
    const NarrowMma& op;
    float* arena;
    float* room;
    u32 task;
    u32 lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    // By upper units, and by lower ones.
    KeptSquare weight, turned;
    HeldSquare cotangent, turned_cotangent;

    __device__ MmaTask(const NarrowMma& op, float* arena, float* room, u32 task)
        : op(op), arena(arena), room(room), task(task), weight{room + op.weight}, turned{room + op.weight + KEPT_SQUARE} {}

    __device__ float* slot(u32 step) const { return room + step * op.slot; }
    __device__ u32 first_bias() const { return op.inputs * WIDTH; }
    __device__ u32 second_bias() const { return first_bias() + WIDTH; }
    __device__ u32 top() const { return second_bias() + WIDTH; }
    __device__ float rate(u32 step, u32 layer) const { return room[op.rate + step * 3 + layer]; }

    // What lies for units, for those of a lane.
    __device__ float2 of_pair(const float* from, u32 j) const { return *(const float2*)(from + 8 * j + 2 * t); }
    __device__ float of_unit(const float* from, u32 q) const { return from[8 * q + g]; }
    __device__ static float part(float2 pair, u32 e) { return e == 0 ? pair.x : pair.y; }

    // Of the lane's rows in `UnitColumns` what lies there.
    __device__ float of_row(const float* from, u32 h, u32 e) const { return from[8 * h + 2 * t + e]; }

    // to = the first layer of `edges`, before its activation
    __device__ void first_layer(UnitRows& to, const float* edges, const float* x) const {
#pragma unroll
        for (u32 j = 0; j < OCTETS; ++j) {
            float2 bias = of_pair(edges + first_bias(), j);
#pragma unroll
            for (u32 c = 0; c < 4; ++c) to.at[j][c] = part(bias, c % 2);
        }
#pragma unroll 1
        for (u32 i = 0; i < op.inputs; ++i) {
            float value[2] = {x[g * op.inputs + i], x[(g + 8) * op.inputs + i]};
#pragma unroll
            for (u32 j = 0; j < OCTETS; ++j) {
                float2 factor = of_pair(edges + i * WIDTH, j);
#pragma unroll
                for (u32 c = 0; c < 4; ++c) to.at[j][c] += value[c / 2] * part(factor, c % 2);
            }
        }
    }
    __device__ void first_layer(UnitColumns& to, const float* edges, const float* x) const {
#pragma unroll
        for (u32 q = 0; q < OCTETS; ++q) {
            float bias = of_unit(edges + first_bias(), q);
#pragma unroll
            for (u32 n = 0; n < 4; ++n) to.at[q][n / 2][n % 2] = bias;
        }
#pragma unroll 1
        for (u32 i = 0; i < op.inputs; ++i) {
            float value[4];
#pragma unroll
            for (u32 n = 0; n < 4; ++n) value[n] = x[(n / 2 * 8 + 2 * t + n % 2) * op.inputs + i];
#pragma unroll
            for (u32 q = 0; q < OCTETS; ++q) {
                float factor = of_unit(edges + i * WIDTH, q);
#pragma unroll
                for (u32 n = 0; n < 4; ++n) to.at[q][n / 2][n % 2] += value[n] * factor;
            }
        }
    }

    __device__ static void activate(UnitRows& rows) {
#pragma unroll
        for (u32 j = 0; j < OCTETS; ++j) {
#pragma unroll
            for (u32 c = 0; c < 4; ++c) rows.at[j][c] = act(RELU, rows.at[j][c]);
        }
    }
    __device__ static void activate(UnitColumns& columns) {
#pragma unroll
        for (u32 q = 0; q < OCTETS; ++q) {
#pragma unroll
            for (u32 n = 0; n < 4; ++n) columns.at[q][n / 2][n % 2] = act(RELU, columns.at[q][n / 2][n % 2]);
        }
    }
    // to *= act'(of)
    __device__ static void gate(UnitColumns& to, const UnitColumns& of) {
#pragma unroll
        for (u32 q = 0; q < OCTETS; ++q) {
#pragma unroll
            for (u32 n = 0; n < 4; ++n) to.at[q][n / 2][n % 2] *= act_derivative(RELU, of.at[q][n / 2][n % 2]);
        }
    }

    // Which are active, a bit each.
    __device__ static u32 active(const UnitRows& rows) {
        u32 bits = 0;
#pragma unroll
        for (u32 j = 0; j < OCTETS; ++j) {
#pragma unroll
            for (u32 c = 0; c < 4; ++c) bits |= (rows.at[j][c] > 0.0f ? 1u : 0u) << (4 * j + c);
        }
        return bits;
    }
    __device__ static u32 active(const UnitColumns& columns) {
        u32 bits = 0;
#pragma unroll
        for (u32 q = 0; q < OCTETS; ++q) {
#pragma unroll
            for (u32 n = 0; n < 4; ++n) bits |= (columns.at[q][n / 2][n % 2] > 0.0f ? 1u : 0u) << (4 * q + n);
        }
        return bits;
    }

    // to = numbers of the rows times numbers of the units, where active; the second time added, times a factor.
    __device__ void spread(UnitRows& to, u32 bits, const OfRows& by, const float* of) const {
#pragma unroll
        for (u32 j = 0; j < OCTETS; ++j) {
            float2 unit = of_pair(of, j);
#pragma unroll
            for (u32 c = 0; c < 4; ++c) to.at[j][c] = bits >> (4 * j + c) & 1 ? by.at[c / 2] * part(unit, c % 2) : 0.0f;
        }
    }
    __device__ void spread(UnitColumns& to, u32 bits, const OfColumns& by, const float* of) const {
#pragma unroll
        for (u32 q = 0; q < OCTETS; ++q) {
            float unit = of_unit(of, q);
#pragma unroll
            for (u32 n = 0; n < 4; ++n) to.at[q][n / 2][n % 2] = bits >> (4 * q + n) & 1 ? by.at[n / 2][n % 2] * unit : 0.0f;
        }
    }
    __device__ void spread_more(UnitRows& to, u32 bits, const OfRows& by, const float* of, float factor) const {
#pragma unroll
        for (u32 j = 0; j < OCTETS; ++j) {
            float2 unit = of_pair(of, j);
#pragma unroll
            for (u32 c = 0; c < 4; ++c) {
                if (bits >> (4 * j + c) & 1) to.at[j][c] += by.at[c / 2] * (factor * part(unit, c % 2));
            }
        }
    }
    __device__ void spread_more(UnitColumns& to, u32 bits, const OfColumns& by, const float* of, float factor) const {
#pragma unroll
        for (u32 q = 0; q < OCTETS; ++q) {
            float unit = factor * of_unit(of, q);
#pragma unroll
            for (u32 n = 0; n < 4; ++n) {
                if (bits >> (4 * q + n) & 1) to.at[q][n / 2][n % 2] += by.at[n / 2][n % 2] * unit;
            }
        }
    }

    // put(layer, edge, its gradient): the sums over the rows of each unit's numbers times numbers of the rows.
    template <class Put>
    __device__ void sum_rows(const UnitColumns& columns, const OfColumns& by, u32 edge, u32 layer, Put put) const {
#pragma unroll
        for (u32 q = 0; q < OCTETS; ++q) {
            float sum = 0.0f;
#pragma unroll
            for (u32 n = 0; n < 4; ++n) sum += by.at[n / 2][n % 2] * columns.at[q][n / 2][n % 2];
            sum += from_lane(sum, 1);
            sum += from_lane(sum, 2);
            if (q % 4 == t) put(edge + 8 * q + g, sum, layer);
        }
    }
    // The gradient of the first layer and of the second one's bias.
    template <class Put>
    __device__ void sum_lower(const NarrowPass& pass, const UnitColumns& lower, const UnitColumns& upper, Put put) const {
        OfColumns ones = {{{1.0f, 1.0f}, {1.0f, 1.0f}}};
#pragma unroll 1
        for (u32 i = 0; i < op.inputs; ++i) {
            OfColumns x;
            const float* from = room + pass.inputs + i;
#pragma unroll
            for (u32 n = 0; n < 4; ++n) x.at[n / 2][n % 2] = from[(n / 2 * 8 + 2 * t + n % 2) * op.inputs];
            sum_rows(lower, x, i * WIDTH, 0, put);
        }
        sum_rows(lower, ones, first_bias(), 0, put);
        sum_rows(upper, ones, second_bias(), 1, put);
    }
    __device__ static float over_rows(const OfColumns& of) {
        float sum = of.at[0][0] + of.at[0][1] + of.at[1][0] + of.at[1][1];
        sum += from_lane(sum, 1);
        return sum + from_lane(sum, 2);
    }

    // Zeros up to 16 rows.
    __device__ void load(u64 from, u32 to, u32 count, u32 padded) const {
#pragma unroll 1
        for (u32 i = lane; i < padded; i += 32) copy_async<1>(room + to + i, arena + from + (i < count ? i : 0), i < count);
    }
    __device__ void load_pass(const NarrowPass& pass) const {
        u32 count = pass.rows * op.inputs;
        load(pass.x + (u64)task * count, pass.inputs, count, MMA_ROWS * op.inputs);
        load(pass.y + (u64)task * pass.rows, pass.targets, pass.rows, MMA_ROWS);
    }

    __device__ void begin() {
        each_edge<32>(op, lane, [&](u32 parameter, bool there, u32 edge) {
            copy_async<1>(room + edge, arena + op.parameters + (there ? parameter : 0), there);
        });
        load(op.rates, op.rate, op.steps * 3, op.steps * 3);
        load_pass(op.support);
        load_pass(op.query);
        const float* from = arena + op.parameters + op.lower * op.inputs + op.lower;
#pragma unroll
        for (u32 q = 0; q < OCTETS; ++q) {
#pragma unroll
            for (u32 i = 0; i < OCTETS; ++i) {
                float* to[2] = {(float*)weight.place(q, i), (float*)turned.place(q, i)};
#pragma unroll
                for (u32 e = 0; e < 2; ++e) {
                    u32 row = 8 * q + g, column = 8 * i + 2 * t + e;
                    bool up = row < op.upper && column < op.lower, down = column < op.upper && row < op.lower;
                    copy_async<1>(to[0] + e, from + (up ? row * op.lower + column : 0), up);
                    copy_async<1>(to[1] + e, from + (down ? column * op.lower + row : 0), down);
                }
            }
        }
        end_copies();
        await_copies<0>();
        __syncwarp();
    }

    // From a number of each row of `UnitRows`, which four lanes have, to those of `UnitColumns`.
    __device__ OfColumns columns_of(const OfRows& of) const {
        OfColumns to;
#pragma unroll
        for (u32 n = 0; n < 4; ++n) to.at[n / 2][n % 2] = __shfl_sync(~0u, of.at[n / 2], 4 * (2 * t + n % 2));
        return to;
    }
    // And back, where eight lanes have each.
    __device__ OfRows rows_of(const OfColumns& of) const {
        OfRows to;
#pragma unroll
        for (u32 h = 0; h < 2; ++h) {
            float even = __shfl_sync(~0u, of.at[h][0], g / 2), odd = __shfl_sync(~0u, of.at[h][1], g / 2);
            to.at[h] = g % 2 == 0 ? even : odd;
        }
        return to;
    }

    // The deltas of a step or of the query, and what becomes of the edges and the weight; of the query the cotangents, and the loss.
    __device__ void forward_and_back(const NarrowPass& pass, u32 s, bool query) {
        float *edges = slot(s), *to = query ? room + op.cotangent : slot(s + 1);
        const float* x = room + pass.inputs;
        float rates[3] = {};
#pragma unroll
        for (u32 layer = 0; layer < 3; ++layer) rates[layer] = query ? 0.0f : rate(s, layer);
        auto put = [&](u32 edge, float gradient, u32 layer) {
            to[edge] = query ? gradient : edges[edge] - rates[layer] * gradient;
        };
        UnitRows rows;
        UnitColumns lower, upper;
        first_layer(rows, edges, x);
        first_layer(lower, edges, x);
        activate(rows);
        activate(lower);
        UnitRows above;
        {
            const RowsOperand operand(rows);
#pragma unroll
            for (u32 j = 0; j < OCTETS; ++j) {
                float2 pair = of_pair(edges + second_bias(), j);
                float unit = of_unit(edges + second_bias(), j);
#pragma unroll
                for (u32 c = 0; c < 4; ++c) {
                    above.at[j][c] = part(pair, c % 2);
                    upper.at[j][c / 2][c % 2] = unit;
                }
            }
#pragma unroll
            for (u32 i = 0; i < OCTETS; ++i) {
                const SquareOperand square(weight, i);
                add_rows(above, square, operand, i);
                add_columns(upper, square, operand, i);
            }
        }
        activate(above);
        activate(upper);
        // The output, and the loss.
        float p[2] = {};
        const float* out = edges + top();
#pragma unroll
        for (u32 j = 0; j < OCTETS; ++j) {
            float2 unit = of_pair(out, j);
#pragma unroll
            for (u32 c = 0; c < 4; ++c) p[c / 2] += above.at[j][c] * part(unit, c % 2);
        }
        OfRows slopes;
        double loss = 0.0;
#pragma unroll
        for (u32 h = 0; h < 2; ++h) {
            p[h] += from_lane(p[h], 1);
            p[h] += from_lane(p[h], 2);
            u32 row = g + 8 * h;
            float value = p[h] + edges[op.edges], y = room[pass.targets + row];
            bool there = row < pass.rows;
            slopes.at[h] = there ? loss_slope(MSE, pass.scale, value, y) : 0.0f;
            if (there && t == 0) {
                edges[op.deltas + row] = slopes.at[h];
                loss += loss_term(MSE, value, y);
            } else if (t == 0) {
                edges[op.deltas + row] = 0.0f;
            }
        }
        const OfColumns slopes_of_columns = columns_of(slopes);
        u32 bits = active(above), bits_of_columns = active(upper);
        ((u32*)edges)[op.active + lane] = bits;
        ((u32*)edges)[op.active + 32 + lane] = bits_of_columns;
        sum_rows(upper, slopes_of_columns, top(), 2, put);
        float last = over_rows(slopes_of_columns);
        if (lane == 0) put(op.edges, last, 2);
        // The deltas, from here on in the place of values.
        spread(above, bits, slopes, out);
        spread(upper, bits_of_columns, slopes_of_columns, out);
        UnitColumns below = {};
        multiply_columns(below, turned, RowsOperand(above));
        gate(below, lower);
        sum_lower(pass, below, upper, put);
        const ColumnsOperand left(upper, query ? 1.0f : -rates[1]), right(lower);
        if (query) {
            cotangent = {};
            turned_cotangent = {};
            multiply_outer(cotangent, left, right);
            multiply_outer(turned_cotangent, right, left);
            if (op.task_loss != NOWHERE) {
                loss = warp_sum(loss);
                if (lane == 0) arena[op.task_loss + task] = (float)(loss / pass.rows);
            }
        } else {
            multiply_outer(weight, left, right);
            multiply_outer(turned, right, left);
        }
        __syncwarp();
    }

    // The cotangent of the parameters before step `s`, from that of those after it.
    __device__ void reverse(u32 s) {
        const NarrowPass& pass = op.support;
        float *edges = slot(s), *moved = room + op.cotangent;
        const float *x = room + pass.inputs, *out = edges + top(), *turned_out = moved + top();
        float rates[3] = {-rate(s, 0), -rate(s, 1), -rate(s, 2)};
        u32 bits = ((u32*)edges)[op.active + lane], bits_of_columns = ((u32*)edges)[op.active + 32 + lane];
        OfColumns slopes;
#pragma unroll
        for (u32 n = 0; n < 4; ++n) slopes.at[n / 2][n % 2] = of_row(edges + op.deltas, n / 2, n % 2);
        OfRows slopes_of_rows = {{edges[op.deltas + g], edges[op.deltas + g + 8]}};
        {
            UnitColumns lower, delta;
            first_layer(lower, edges, x);
            activate(lower);
            spread(delta, bits_of_columns, slopes, out);
            const ColumnsOperand left(delta, -rates[1]), right(lower);
            multiply_outer(weight, left, right);
            multiply_outer(turned, right, left);
        }
        // What the change of the lower values, and of the weight, makes of the upper ones.
        UnitColumns upper, change = {};
        {
            UnitRows rows, of_rows;
            first_layer(rows, edges, x);
            activate(rows);
            first_layer(of_rows, moved, x);
#pragma unroll
            for (u32 j = 0; j < OCTETS; ++j) {
#pragma unroll
                for (u32 c = 0; c < 4; ++c) of_rows.at[j][c] *= rates[0] * act_derivative(RELU, rows.at[j][c]);
            }
            const RowsOperand values(rows), changes(of_rows);
#pragma unroll
            for (u32 q = 0; q < OCTETS; ++q) {
                float bias = of_unit(edges + second_bias(), q), turned_bias = of_unit(moved + second_bias(), q);
#pragma unroll
                for (u32 n = 0; n < 4; ++n) {
                    upper.at[q][n / 2][n % 2] = bias;
                    change.at[q][n / 2][n % 2] = turned_bias;
                }
            }
            multiply_columns(change, cotangent, values);
#pragma unroll
            for (u32 q = 0; q < OCTETS; ++q) {
#pragma unroll
                for (u32 n = 0; n < 4; ++n) change.at[q][n / 2][n % 2] *= rates[1];
            }
#pragma unroll
            for (u32 i = 0; i < OCTETS; ++i) {
                const SquareOperand square(weight, i);
                add_columns(upper, square, values, i);
                add_columns(change, square, changes, i);
            }
        }
        OfColumns second = {};
#pragma unroll
        for (u32 q = 0; q < OCTETS; ++q) {
            float of = of_unit(out, q), turned_of = rates[2] * of_unit(turned_out, q);
#pragma unroll
            for (u32 n = 0; n < 4; ++n) {
                // What was active is told by the step, of whose values these are but for a rounding.
                bool is = bits_of_columns >> (4 * q + n) & 1;
                float &value = upper.at[q][n / 2][n % 2], &by = change.at[q][n / 2][n % 2];
                value = is ? value : 0.0f;
                by = is ? by : 0.0f;
                second.at[n / 2][n % 2] += value * turned_of + by * of;
            }
        }
#pragma unroll
        for (u32 n = 0; n < 4; ++n) {
            float& sum = second.at[n / 2][n % 2];
            for (u32 distance = 4; distance < 32; distance *= 2) sum += from_lane(sum, distance);
            bool there = n / 2 * 8 + 2 * t + n % 2 < pass.rows;
            sum = there ? loss_second(MSE, pass.scale, 0.0f) * (sum + rates[2] * moved[op.edges]) : 0.0f;
        }
        const OfRows second_of_rows = rows_of(second);
        // The cotangents of the deltas' sums, and what comes down of them.
        UnitColumns bent, below = {};
        {
            UnitRows rows;
            spread(rows, bits, slopes_of_rows, out);
            multiply_columns(below, turned_cotangent, RowsOperand(rows));
#pragma unroll
            for (u32 q = 0; q < OCTETS; ++q) {
#pragma unroll
                for (u32 n = 0; n < 4; ++n) below.at[q][n / 2][n % 2] *= rates[1];
            }
            spread(rows, bits, second_of_rows, out);
            spread_more(rows, bits, slopes_of_rows, turned_out, rates[2]);
            multiply_columns(below, turned, RowsOperand(rows));
        }
        spread(bent, bits_of_columns, second, out);
        spread_more(bent, bits_of_columns, slopes, turned_out, rates[2]);
        UnitColumns lower, of_lower, delta;
        first_layer(lower, edges, x);
        activate(lower);
        gate(below, lower);
        first_layer(of_lower, moved, x);
        gate(of_lower, lower);
        // What the cotangents of the edges were is not read any more.
        __syncwarp();
        auto put = [&](u32 edge, float gradient, u32) { moved[edge] += gradient; };
        sum_rows(upper, second, top(), 2, put);
        __syncwarp();
        sum_rows(change, slopes, top(), 2, put);
        float last = over_rows(second);
        if (lane == 0) put(op.edges, last, 2);
        sum_lower(pass, below, bent, put);
        {
            const ColumnsOperand left(bent), right(lower);
            multiply_outer(cotangent, left, right);
            multiply_outer(turned_cotangent, right, left);
        }
        spread(delta, bits_of_columns, slopes, out);
        const ColumnsOperand left(delta), right(of_lower, rates[0]);
        multiply_outer(cotangent, left, right);
        multiply_outer(turned_cotangent, right, left);
        __syncwarp();
    }

    __device__ void run() {
        begin();
#pragma unroll 1
        for (u32 s = 0; s < op.steps; ++s) forward_and_back(op.support, s, false);
        forward_and_back(op.query, op.steps, true);
        if (op.exact) {
#pragma unroll 1
            for (u32 s = op.steps; s-- > 0;) reverse(s);
        }
        // In the place of the weight.
#pragma unroll
        for (u32 q = 0; q < OCTETS; ++q) {
#pragma unroll
            for (u32 i = 0; i < OCTETS; ++i) weight.put(q, i, cotangent.get(q, i));
        }
    }
};

// TASKS tasks a block; the sum of their gradients is row blockIdx.x of what the launcher has summed.
template <u32 TASKS>
__device__ inline void narrow_mma(const NarrowMma& op, float* arena, float* room) {
    u32 mine = warp_number(), first = blockIdx.x * TASKS, task = first + mine;
    if (task < op.tasks) {
        MmaTask loop(op, arena, room + mine * op.length, task);
        loop.run();
    }
    __syncthreads();
    u32 tasks = min(TASKS, op.tasks - first);
    float* to = arena + op.gradients + (u64)blockIdx.x * op.count;
    auto total = [&](u32 at) {
        float sum = room[at];
#pragma unroll 1
        for (u32 t = 1; t < tasks; ++t) sum += room[t * op.length + at];
        return sum;
    };
    each_edge<TASKS * 32>(op, threadIdx.x, [&](u32 parameter, bool there, u32 edge) {
        float sum = total(op.cotangent + edge);
        if (there) to[parameter] = sum;
    });
    to += op.lower * op.inputs + op.lower;
#pragma unroll 1
    for (u32 n = threadIdx.x; n < KEPT_SQUARE; n += TASKS * 32) {
        u32 lane = n / 2 % 32, q = n / (64 * OCTETS), i = n / 64 % OCTETS;
        u32 up = 8 * q + lane / 4, low = 8 * i + lane % 4 * 2 + n % 2;
        float sum = total(op.weight + n);
        if (up < op.upper && low < op.lower) to[up * op.lower + low] = sum;
    }
}

// Where there are many tasks, and where there are few.
constexpr u32 MANY_MMA_TASKS = 8;

KERNEL_OF(narrow_mma_many, NarrowMma, MANY_MMA_TASKS * 32, 1) {
    SHARED_NUMBERS(room, MANY_MMA_TASKS * op.length);
    narrow_mma<MANY_MMA_TASKS>(op, arena, room);
}

KERNEL_OF(narrow_mma_few, NarrowMma, 32, 8) {
    SHARED_NUMBERS(room, op.length);
    narrow_mma<1>(op, arena, room);
}
