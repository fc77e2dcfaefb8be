// What learned rates make of the dual form's corrections, and the way back; in double precision.

#include "tile.cuh"

struct RateTables {
    u64 rates;
    // The bias's column, or NOWHERE: 1.
    u64 bias;
    // For each layer -c, [S + 1, S]; the bias's column; 1; the last row of -c.
    u64 tables;
    // Back: of c, and behind it in each layer, where there is a bias's column, what that one's is made of.
    u64 of_tables;
    u64 gradient;
    u64 bias_gradient;
    double momentum;
    u32 steps;
    u32 layers;
    // Whether there is one rate for all steps and layers.
    u32 single;
    // The first layer that moves.
    u32 first;
};
static_assert(sizeof(RateTables) == 72, "mirrored in Rust");

__device__ inline u32 table_of(const RateTables& op) { return (op.steps + 1) * op.steps; }
__device__ inline u32 width_of(const RateTables& op) { return table_of(op) + 2 * op.steps + 1; }

// A thread has a number.
KERNEL(rate_tables, RateTables) {
    u32 at = blockIdx.x * THREADS + threadIdx.x, table = table_of(op), width = width_of(op);
    if (at >= op.layers * width) return;
    u32 layer = at / width, place = at % width;
    double value = 1.0;
    if (place < table || place > table + op.steps) {
        u32 i = place < table ? place / op.steps : op.steps, j = place < table ? place % op.steps : place - table - op.steps - 1;
        value = 0.0;
        for (u32 s = i; s-- > j;) value = value * op.momentum - arena[op.rates + (op.single ? 0 : s * op.layers + layer)];
    } else if (place < table + op.steps && op.bias != NOWHERE) {
        value = arena[op.bias + (place - table) * op.layers + layer];
    }
    arena[op.tables + at] = (float)value;
}

// One block; a thread has a step and a layer.
KERNEL(rate_tables_gradient, RateTables) {
    SHARED(Partials, partials);
    u32 steps = op.steps, table = table_of(op);
    bool biased = op.bias != NOWHERE;
    double single = 0.0;
    for (u32 at = threadIdx.x; at < steps * op.layers; at += THREADS) {
        u32 s = at / op.layers, layer = at % op.layers;
        const float* own = arena + op.tables + (u64)layer * width_of(op);
        const float* of_c = arena + op.of_tables + (u64)layer * table * (biased ? 2 : 1);
        const float* of_bias = of_c + table;
        double rate = 0.0, bias = 0.0;
        if (layer >= op.first) {
            // Of steps too far before this one momentum has left nothing.
            double share = 1.0;
            for (u32 j = s + 1; j-- > 0 && share != 0.0; share *= op.momentum) {
                double sum = 0.0;
                for (u32 i = s + 1; i <= steps; ++i) {
                    sum += of_c[i * steps + j];
                    if (biased) sum += (double)own[table + j] * of_bias[i * steps + j];
                }
                rate += share * sum;
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
