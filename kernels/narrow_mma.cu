// The loop of narrow.cu in tf32, on tensor cores: a warp a task, all products of the weight between the hidden layers. Rows are at
// most 16, a product's.
//
// The weight and its cotangent lie in the task's memory, and are read from either side. Values lie in registers by units, as a
// product leaves them, and are turned by way of memory where a product sums over the units. The weight before a step is made of that
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
    // rates; the cotangent of the edges; the middle weight and its cotangent; and room to turn rows.
    u32 slot;
    u32 deltas;
    u32 active;
    u32 rate;
    u32 cotangent;
    u32 weight;
    u32 moved_weight;
    u32 turned;
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
static_assert(sizeof(NarrowMma) == 168, "mirrored in Rust");

// A number for each of the lane's rows.
struct OfRows {
    float at[2][2];
};

struct MmaTask : TaskPlaces<NarrowMma> {
    u32 lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    // The middle weight, and its cotangent.
    KeptSquare weight, moved_weight;

    __device__ MmaTask(const NarrowMma& op, float* arena, float* room, u32 task)
        : TaskPlaces<NarrowMma>{op, arena, room, task}, weight{room + op.weight}, moved_weight{room + op.moved_weight} {}

    template <class Operand>
    __device__ RowsOperand turned(const Operand& columns) const { return RowsOperand(columns, room + op.turned); }

    // The lane's row, of those it has.
    __device__ u32 row(u32 h, u32 e) const { return 8 * h + 2 * t + e; }
    // What lies for units, for one of the lane's.
    __device__ float of_unit(const float* from, u32 q) const { return from[8 * q + g]; }

    // The same for all rows.
    __device__ UnitColumns of_units(const float* from) const {
        UnitColumns to;
#pragma unroll
        for (u32 q = 0; q < OCTETS; ++q) {
            float unit = of_unit(from, q);
#pragma unroll
            for (u32 n = 0; n < 4; ++n) to.at[q][n / 2][n % 2] = unit;
        }
        return to;
    }

    // The first layer of `edges`, before its activation.
    __device__ UnitColumns first_layer(const float* edges, const NarrowPass& pass) const {
        UnitColumns to = of_units(edges + first_bias());
#pragma unroll 1
        for (u32 i = 0; i < op.inputs; ++i) {
            float value[2][2], factor[OCTETS];
            each_row([&](u32 h, u32 e) { value[h][e] = room[pass.inputs + row(h, e) * op.inputs + i]; });
#pragma unroll
            for (u32 q = 0; q < OCTETS; ++q) factor[q] = of_unit(edges + i * WIDTH, q);
            to.each([&](u32 q, u32 h, u32 e, float& sum) { sum += value[h][e] * factor[q]; });
        }
        return to;
    }

    __device__ static void activate(UnitColumns& columns) {
        columns.each([](u32, u32, u32, float& value) { value = act(HIDDEN, value); });
    }
    // to *= act'(of), of what is 0 or more.
    __device__ static void gate(UnitColumns& to, const RightOperand& of) {
        to.each([&](u32 q, u32 h, u32 e, float& value) { value = (of.at[q][h][e] & 0x7fffffff) != 0 ? value : 0.0f; });
    }

    // Which are active, a bit each; and whether one is.
    __device__ static u32 active(UnitColumns& columns) {
        u32 bits = 0;
        columns.each([&](u32 q, u32 h, u32 e, float value) { bits |= value > 0.0f ? 1u << (4 * q + 2 * h + e) : 0; });
        return bits;
    }
    __device__ static bool is_active(u32 bits, u32 q, u32 h, u32 e) { return bits >> (4 * q + 2 * h + e) & 1; }

    template <class Work>
    __device__ static void each_row(Work work) {
#pragma unroll
        for (u32 n = 0; n < 4; ++n) work(n / 2, n % 2);
    }

    // The rows' numbers times the units', where active.
    __device__ UnitColumns spread(u32 bits, const OfRows& rows, const float* units) const {
        UnitColumns to = of_units(units);
        to.each([&](u32 q, u32 h, u32 e, float& value) { value = is_active(bits, q, h, e) ? rows.at[h][e] * value : 0.0f; });
        return to;
    }

    // put(edge, its gradient, the layer): sums over the rows, of the units' numbers times the rows'.
    template <class Put>
    __device__ void sum_rows(const UnitColumns& columns, const OfRows& by, u32 edge, u32 layer, Put put) const {
#pragma unroll
        for (u32 q = 0; q < OCTETS; ++q) {
            float sum = 0.0f;
            each_row([&](u32 h, u32 e) { sum += by.at[h][e] * columns.at[q][h][e]; });
            sum = over_lanes(sum);
            if (q % 4 == t) put(edge + 8 * q + g, sum, layer);
        }
    }
    __device__ static float over_lanes(float sum) {
        sum += from_lane(sum, 1);
        return sum + from_lane(sum, 2);
    }
    __device__ static float sum_rows(const OfRows& of) {
        return over_lanes(of.at[0][0] + of.at[0][1] + of.at[1][0] + of.at[1][1]);
    }
    // The same over the units, of numbers of rows: to all lanes that have the row.
    __device__ static void sum_units(OfRows& of) {
        each_row([&](u32 h, u32 e) {
#pragma unroll
            for (u32 distance = 4; distance < 32; distance *= 2) of.at[h][e] += from_lane(of.at[h][e], distance);
        });
    }
    // The gradient of the first layer and of the second one's bias.
    template <class Put>
    __device__ void sum_lower(const NarrowPass& pass, const UnitColumns& lower, const UnitColumns& upper, Put put) const {
        OfRows ones = {{{1.0f, 1.0f}, {1.0f, 1.0f}}};
#pragma unroll 1
        for (u32 i = 0; i < op.inputs; ++i) {
            OfRows x;
            each_row([&](u32 h, u32 e) { x.at[h][e] = room[pass.inputs + row(h, e) * op.inputs + i]; });
            sum_rows(lower, x, i * WIDTH, 0, put);
        }
        sum_rows(lower, ones, first_bias(), 0, put);
        sum_rows(upper, ones, second_bias(), 1, put);
    }

    // Copies numbers to the task's memory, and zeros up to `padded`.
    __device__ void load(u64 from, u32 to, u32 count, u32 padded) const {
#pragma unroll 1
        for (u32 i = lane; i < padded; i += 32) copy_async<1>(room + to + i, arena + from + (i < count ? i : 0), i < count);
    }
    __device__ void load_pass(const NarrowPass& pass) const {
        u32 count = pass.rows * op.inputs;
        load(pass.x + (u64)task * count, pass.inputs, count, MMA_ROWS * op.inputs);
        load(pass.y + (u64)task * pass.rows, pass.targets, pass.rows, MMA_ROWS);
    }

    __device__ void begin() const {
        each_edge<32>(op, lane, [&](u32 parameter, bool there, u32 edge) {
            copy_async<1>(room + edge, arena + op.parameters + (there ? parameter : 0), there);
        });
        load(op.rates, op.rate, op.steps * 3, op.steps * 3);
        load_pass(op.support);
        load_pass(op.query);
        u64 from = op.parameters + op.lower * op.inputs + op.lower;
#pragma unroll 2
        for (u32 n = lane; n < SQUARE; n += 32) {
            u32 up = n / WIDTH, low = n % WIDTH;
            bool there = up < op.upper && low < op.lower;
            copy_async<1>(room + op.weight + place_in_square(up, low), arena + from + (there ? up * op.lower + low : 0), there);
        }
        end_copies();
        await_copies<0>();
        __syncwarp();
    }

    // The deltas of a step or of the query, and what becomes of the edges and the weight; of the query the cotangents, and the loss.
    __device__ void forward_and_back(const NarrowPass& pass, u32 s, bool query) {
        float *edges = slot(s), *to = query ? room + op.cotangent : slot(s + 1);
        float rates[3];
#pragma unroll
        for (u32 layer = 0; layer < 3; ++layer) rates[layer] = query ? 0.0f : rate(s, layer);
        auto put = [&](u32 edge, float gradient, u32 layer) {
            to[edge] = query ? gradient : edges[edge] - rates[layer] * gradient;
        };
        UnitColumns lower = first_layer(edges, pass), upper = of_units(edges + second_bias());
        activate(lower);
        const RightOperand values(lower);
        multiply_columns(upper, weight, turned(values));
        activate(upper);
        // The output, and the loss.
        OfRows sums = {}, slopes;
        const float* out = edges + top();
        upper.each([&](u32 q, u32 h, u32 e, float value) { sums.at[h][e] += value * of_unit(out, q); });
        sum_units(sums);
        float loss = 0.0f;
        each_row([&](u32 h, u32 e) {
            u32 row = this->row(h, e);
            float p = sums.at[h][e] + edges[op.edges], y = room[pass.targets + row];
            bool there = row < pass.rows;
            slopes.at[h][e] = there ? loss_slope(MSE, pass.scale, p, y) : 0.0f;
            loss += there ? loss_term(MSE, p, y) : 0.0f;
            if (g == 0) edges[op.deltas + row] = slopes.at[h][e];
        });
        u32 bits = active(upper);
        ((u32*)edges)[op.active + lane] = bits;
        sum_rows(upper, slopes, top(), 2, put);
        float last = sum_rows(slopes);
        if (lane == 0) put(op.edges, last, 2);
        upper = spread(bits, slopes, out);
        const LeftOperand deltas(upper);
        UnitColumns below = {};
        multiply_columns(below, TurnedSquare{weight.room}, turned(deltas));
        gate(below, values);
        sum_lower(pass, below, upper, put);
        if (query) {
            multiply_outer<false>(moved_weight, deltas, values);
            if (op.task_loss != NOWHERE) {
                loss = over_lanes(loss);
                if (lane == 0) arena[op.task_loss + task] = loss / pass.rows;
            }
        } else {
            // By the other side's columns nothing is read any more.
            __syncwarp();
            multiply_outer<true>(weight, LeftOperand(upper, -rates[1]), values);
        }
        __syncwarp();
    }

    // The cotangent of the parameters before step `s`, from that of those after it.
    __device__ void reverse(u32 s) {
        const NarrowPass& pass = op.support;
        float *edges = slot(s), *moved = room + op.cotangent;
        const float *out = edges + top(), *turned_out = moved + top();
        float rates[3] = {-rate(s, 0), -rate(s, 1), -rate(s, 2)};
        u32 bits = ((u32*)edges)[op.active + lane];
        OfRows slopes, second = {};
        each_row([&](u32 h, u32 e) { slopes.at[h][e] = edges[op.deltas + row(h, e)]; });
        UnitColumns lower = first_layer(edges, pass);
        activate(lower);
        const RightOperand values(lower);
        multiply_outer<true>(weight, LeftOperand(spread(bits, slopes, out), -rates[1]), values);
        lower = first_layer(moved, pass);
        gate(lower, values);
        const RightOperand changes(lower, rates[0]);
        // What the change of the lower values, and of the weight, makes of the upper ones.
        UnitColumns upper = of_units(edges + second_bias()), change = of_units(moved + second_bias());
        {
            const RowsOperand rows = turned(values);
            multiply_columns(change, moved_weight, rows);
            change.each([&](u32, u32, u32, float& value) { value *= rates[1]; });
            const RowsOperand of_rows = turned(changes);
#pragma unroll
            for (u32 i = 0; i < OCTETS; ++i) {
                const SquareOperand square = weight.columns(i);
                multiply_columns(upper, square, rows, i);
                multiply_columns(change, square, of_rows, i);
            }
        }
        upper.each([&](u32 q, u32 h, u32 e, float& value) {
            // What was active is told by the step, of whose values these are but for a rounding.
            float& by = change.at[q][h][e];
            value = is_active(bits, q, h, e) ? value : 0.0f;
            by = is_active(bits, q, h, e) ? by : 0.0f;
            second.at[h][e] += value * (rates[2] * of_unit(turned_out, q)) + by * of_unit(out, q);
        });
        sum_units(second);
        each_row([&](u32 h, u32 e) {
            float g = second.at[h][e] + rates[2] * moved[op.edges];
            second.at[h][e] = row(h, e) < pass.rows ? loss_second(MSE, pass.scale, 0.0f) * g : 0.0f;
        });
        // The cotangents of the upper sums, and what comes down of them.
        UnitColumns bent = spread(bits, second, out), below = {};
        bent.each([&](u32 q, u32 h, u32 e, float& value) {
            float more = slopes.at[h][e] * (rates[2] * of_unit(turned_out, q));
            value = is_active(bits, q, h, e) ? value + more : 0.0f;
        });
        const LeftOperand bents(bent), deltas(spread(bits, slopes, out));
        multiply_columns(below, TurnedSquare{moved_weight.room}, turned(deltas));
        below.each([&](u32, u32, u32, float& value) { value *= rates[1]; });
        multiply_columns(below, TurnedSquare{weight.room}, turned(bents));
        gate(below, values);
        // What the cotangents of the edges were is not read any more.
        __syncwarp();
        auto put = [&](u32 edge, float gradient, u32) { moved[edge] += gradient; };
        upper.each([&](u32 q, u32 h, u32 e, float& value) {
            value = value * second.at[h][e] + change.at[q][h][e] * slopes.at[h][e];
        });
        sum_rows(upper, OfRows{{{1.0f, 1.0f}, {1.0f, 1.0f}}}, top(), 2, put);
        float last = sum_rows(second);
        if (lane == 0) put(op.edges, last, 2);
        sum_lower(pass, below, bent, put);
        multiply_outer<true, 2>(moved_weight, {&bents, &deltas}, {&values, &changes});
        __syncwarp();
    }

    __device__ void run() {
        begin();
#pragma unroll 1
        for (u32 s = 0; s <= op.steps; ++s) forward_and_back(s == op.steps ? op.query : op.support, s, s == op.steps);
        if (op.exact) {
#pragma unroll 1
            for (u32 s = op.steps; s-- > 0;) reverse(s);
        }
    }
};

// Tasks a block; the sum of their gradients is row blockIdx.x of what the launcher has summed.
constexpr u32 MMA_TASKS = 4;

KERNEL_OF(narrow_mma, NarrowMma, MMA_TASKS * 32, 2) {
    SHARED_NUMBERS(room, MMA_TASKS * op.length);
    u32 mine = warp_number(), first = blockIdx.x * MMA_TASKS, task = first + mine;
    if (task < op.tasks) {
        MmaTask loop(op, arena, room + mine * op.length, task);
        loop.run();
    }
    __syncthreads();
    u32 tasks = min(MMA_TASKS, op.tasks - first);
    float* to = arena + op.gradients + (u64)blockIdx.x * op.count;
    auto total = [&](u32 at) {
        float sum = room[at];
#pragma unroll 1
        for (u32 t = 1; t < tasks; ++t) sum += room[t * op.length + at];
        return sum;
    };
    each_edge<MMA_TASKS * 32>(op, threadIdx.x, [&](u32 parameter, bool there, u32 edge) {
        float sum = total(op.cotangent + edge);
        if (there) to[parameter] = sum;
    });
    to += op.lower * op.inputs + op.lower;
#pragma unroll 1
    for (u32 n = threadIdx.x; n < SQUARE; n += MMA_TASKS * 32) {
        u32 up = n / WIDTH, low = n % WIDTH;
        float sum = total(op.moved_weight + place_in_square(up, low));
        if (up < op.upper && low < op.lower) to[up * op.lower + low] = sum;
    }
}
