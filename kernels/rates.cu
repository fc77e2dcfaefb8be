// What learned rates make of the dual form's corrections, and the way back; in double precision.

#include "tile.cuh"

// Of one layer: -c, [S + 1, S]; the bias's column, [S]; 1; the shares, [S + 1]; for each query pass, the last first, the weight of its
// loss times a row of -c.
struct RateTables {
    u64 rates;
    // The bias's column, or NOWHERE: 1.
    u64 bias;
    // Of the query passes' losses, or NOWHERE: 1.
    u64 weights;
    u64 tables;
    // Back: of c, and behind it in each layer, where there is a bias's column, what that one's is made of.
    u64 of_tables;
    // Of the shares, or NOWHERE: they do not depend on the rates.
    u64 of_shares;
    u64 gradient;
    u64 bias_gradient;
    double momentum;
    double decay;
    u32 steps;
    u32 layers;
    // Query passes.
    u32 queries;
    // Whether there is one rate for all steps and layers.
    u32 single;
    // The first layer that moves.
    u32 first;
    u32 unused;
};
static_assert(sizeof(RateTables) == 104, "mirrored in Rust");

__device__ inline u32 table_of(const RateTables& op) { return (op.steps + 1) * op.steps; }
__device__ inline u32 width_of(const RateTables& op) { return table_of(op) + 2 * (op.steps + 1) + op.queries * op.steps; }

__device__ inline double rate_of(const float* arena, const RateTables& op, u32 s, u32 layer) {
    return arena[op.rates + (op.single ? 0 : s * op.layers + layer)];
}

// A column of a linear recursion in the rates, step by step: v = momentum v + decay x; x = x - rate v. Into its first step may go
// what is no part of x: with 1, x becomes -c; begun at x = 1, it is the share.
struct RateColumn {
    double x, v;
    __device__ void step(const RateTables& op, double rate, double impulse) {
        v = op.momentum * v + op.decay * x + impulse;
        x -= rate * v;
    }
};

// -c[i][j].
__device__ inline double entry_of(const float* arena, const RateTables& op, u32 layer, u32 i, u32 j) {
    RateColumn column = {0.0, 0.0};
    for (u32 s = j; s < i; ++s) column.step(op, rate_of(arena, op, s, layer), s == j ? 1.0 : 0.0);
    return column.x;
}

// A thread has a number.
KERNEL(rate_tables, RateTables) {
    u32 at = blockIdx.x * THREADS + threadIdx.x, steps = op.steps, table = table_of(op), width = width_of(op);
    if (at >= op.layers * width) return;
    u32 layer = at / width, place = at % width, shares = table + steps + 1, queries = shares + steps + 1;
    double value = 1.0;
    if (place < table) {
        value = entry_of(arena, op, layer, place / steps, place % steps);
    } else if (place >= queries) {
        u32 pass = (place - queries) / steps;
        value = entry_of(arena, op, layer, steps - pass, (place - queries) % steps);
        if (op.weights != NOWHERE) value *= arena[op.weights + pass];
    } else if (place >= shares) {
        RateColumn share = {1.0, 0.0};
        for (u32 s = 0; s < place - shares; ++s) share.step(op, rate_of(arena, op, s, layer), 0.0);
        value = share.x;
    } else if (place < table + steps && op.bias != NOWHERE) {
        value = arena[op.bias + (place - table) * op.layers + layer];
    }
    arena[op.tables + at] = (float)value;
}

// One block; a thread has a step and a layer.
KERNEL(rate_tables_gradient, RateTables) {
    SHARED(Partials, partials);
    u32 steps = op.steps, table = table_of(op);
    bool biased = op.bias != NOWHERE, shared = op.of_shares != NOWHERE;
    double single = 0.0;
    for (u32 at = threadIdx.x; at < steps * op.layers; at += THREADS) {
        u32 s = at / op.layers, layer = at % op.layers;
        const float* own = arena + op.tables + (u64)layer * width_of(op);
        const float* of_c = arena + op.of_tables + (u64)layer * table * (biased ? 2 : 1);
        const float* of_bias = of_c + table;
        const float* of_shares = arena + op.of_shares + (u64)layer * (steps + 1);
        // What the rate moves is its step's v, from the next step on: -v in the shares, and in each column of c, the other way.
        auto moved = [&](auto of) {
            RateColumn change = {1.0, 0.0};
            double sum = 0.0;
            for (u32 i = s + 1; i <= steps; ++i) {
                if (i > s + 1) change.step(op, rate_of(arena, op, i - 1, layer), 0.0);
                sum += change.x * of(i);
            }
            return sum;
        };
        double rate = 0.0, bias = 0.0;
        if (layer >= op.first) {
            // Of steps before this one nothing is left without momentum and decay.
            u32 earliest = op.momentum != 0.0 || op.decay != 0.0 ? 0 : s;
            for (u32 j = earliest; j <= s; ++j) {
                RateColumn column = {0.0, 0.0};
                for (u32 i = j; i < s; ++i) column.step(op, rate_of(arena, op, i, layer), i == j ? 1.0 : 0.0);
                column.step(op, 0.0, s == j ? 1.0 : 0.0);
                rate += column.v * moved([&](u32 i) {
                    double of = of_c[i * steps + j];
                    return biased ? of + (double)own[table + j] * of_bias[i * steps + j] : of;
                });
            }
            if (shared) {
                RateColumn share = {1.0, 0.0};
                for (u32 i = 0; i < s; ++i) share.step(op, rate_of(arena, op, i, layer), 0.0);
                share.step(op, 0.0, 0.0);
                rate -= share.v * moved([&](u32 i) { return (double)of_shares[i]; });
            }
            if (biased) {
                for (u32 i = s + 1; i <= steps; ++i) bias -= (double)own[i * steps + s] * of_bias[i * steps + s];
            }
        }
        single += rate;
        if (!op.single) arena[op.gradient + at] = (float)rate;
        if (biased) arena[op.bias_gradient + at] = (float)bias;
    }
    single = block_sum(partials, single);
    if (op.single && threadIdx.x == 0) arena[op.gradient] = (float)single;
}
