// What a whole inner loop is told (see resident.cu), and its products: small ones in shared memory.
//
// Every row, of weights as of values, begins at a multiple of 16 bytes and takes an odd number of such pieces: threads that
// read pieces of neighbouring rows, or numbers of one row, meet in no bank. What lies between a row's end and the next one is
// never read into a number that counts.
#pragma once

#include "activation.cuh"
#include "pieces.cuh"

// Layers at most.
constexpr int LAYERS = 16;
// Threads a block, and blocks that a multiprocessor is to hold.
constexpr int TASK_THREADS = 256;
constexpr int TASK_WARPS = TASK_THREADS / 32;
constexpr int TASK_BLOCKS = 2;
// Rows of a product that one thread computes.
constexpr int ROWS = 5;

// Rows of one pass, as offsets into the task's numbers.
struct ResidentPass {
    u32 rows;
    u32 inputs;
    u32 targets;
    u32 values;
    u32 deltas;
    // 1 / (the elements that the loss is a mean of).
    float scale;
};

struct ResidentLayer {
    u32 inputs;
    u32 outputs;
    // Numbers from row to row, of the weight and of what goes in, and of what comes out.
    u32 row;
    u32 above;
    // Where the weight and the bias begin among the padded parameters, and both in the flat ones.
    u32 weight;
    u32 bias;
    u32 plain;
    // Numbers that one row takes in the levels between the input and this layer's.
    u32 level;
    u32 activation;
    // See `divided`: by the inputs, by their pieces of four, and by the outputs.
    u32 by_inputs;
    u32 by_pieces;
    u32 by_outputs;
};

struct Resident {
    // The arena's.
    u64 parameters;
    u64 rates;
    u64 support_x;
    u64 support_y;
    u64 query_x;
    u64 query_y;
    u64 task_loss;
    u64 gradients;
    u64 rate_gradients;
    u64 adapted;
    u64 trace_loss;
    u64 trace_output;
    // The task's own: each slot of the weights and of v is `padded` numbers, of the rows `slot`. Where there are several, each
    // step has its own.
    u32 weights;
    u32 weight_slots;
    u32 velocities;
    u32 velocity_slots;
    u32 padded;
    u32 slots;
    u32 slot;
    ResidentPass support;
    ResidentPass query;
    u32 e;
    u32 z;
    u32 cotangent;
    u32 direction;
    u32 length;
    u32 tasks;
    u32 steps;
    u32 layers;
    u32 first_moving;
    // Parameters without padding.
    u32 count;
    u32 loss;
    u32 per_parameter;
    u32 goes_back;
    u32 exact;
    u32 reverses;
    u32 displacement;
    float momentum;
    float decay;
    u32 unused;
    ResidentLayer layer[LAYERS];
};
static_assert(sizeof(Resident) == 1016, "mirrored in Rust");

// n / d, where `by` is 2^32 / d + 1, or 0 for d = 1; n * d is less than 2^32.
__device__ inline u32 divided(u32 n, u32 by) { return by == 0 ? n : (u32)((u64)n * by >> 32); }

// The thread's place among those that share a piece of work whose first unit is thread `first`'s.
__device__ inline u32 turn(u32 first) { return (threadIdx.x - first) % TASK_THREADS; }
// Where the next piece of work begins after one of `units`, so that other warps do it at the same time.
__device__ inline u32 next_turn(u32 first, u32 units) { return (first + units + 31) / 32 * 32; }

// The same place in shared memory, of which the compiler does not know that it is always the same: it would work it out anew
// wherever it is needed.
__device__ inline float* kept(float* room) {
#ifdef INNERLOOP_EMULATE
    return room;
#else
    u32 place;
    asm volatile("mov.u32 %0, %1;" : "=r"(place) : "r"((u32)__cvta_generic_to_shared(room)));
    return (float*)__cvta_shared_to_generic(place);
#endif
}

// A piece of four into shared memory; told of the store alone, the compiler makes four of it.
__device__ inline void put_piece(float* to, const float (&from)[4]) {
#ifdef INNERLOOP_EMULATE
    store_piece(to, from);
#else
    asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"((u32)__cvta_generic_to_shared(to)), "f"(from[0]),
                 "f"(from[1]), "f"(from[2]), "f"(from[3])
                 : "memory");
#endif
}

enum class Way { UP, DOWN };

// The rows at `left` times a weight at `right`: transposed on the way up, where each sum goes along one of its rows.
struct RowTerm {
    u32 left;
    u32 left_row;
    u32 right;
    u32 right_row;
    u32 depth;
};

// What a thread reads of a piece of four of the depth.
struct RowPiece {
    float left[ROWS][4];
    float right[4];

    template <Way WAY>
    __device__ void load(const float* room, const u32 (&rows)[ROWS], u32 column, u32 right_row, u32 d) {
        if constexpr (WAY == Way::UP) {
            load_piece(right, room + column + d);
        } else {
#pragma unroll
            for (u32 k = 0; k < 4; ++k) right[k] = room[column + (d + k) * right_row];
        }
#pragma unroll
        for (int i = 0; i < ROWS; ++i) load_piece(left[i], room + rows[i] + d);
    }

    __device__ void add(float (&sums)[ROWS]) const {
#pragma unroll
        for (u32 k = 0; k < 4; ++k) {
#pragma unroll
            for (int i = 0; i < ROWS; ++i) sums[i] += left[i][k] * right[k];
        }
    }
};

// Adds the thread's half of the sums over the depth, every other piece of four; two of them are on their way at once.
template <Way WAY>
__device__ inline void add_rows(const float* room, const RowTerm& term, u32 rows, u32 row, u32 column, u32 half,
                                float (&sums)[ROWS]) {
    u32 left[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; ++i) left[i] = term.left + min(row + i, rows - 1) * term.left_row;
    u32 right = term.right + (WAY == Way::UP ? column * term.right_row : column), fours = term.depth & ~3u;
    u32 d = half * 4;
#pragma unroll 1
    for (; d + 8 < fours; d += 16) {
        RowPiece now, next;
        now.load<WAY>(room, left, right, term.right_row, d);
        next.load<WAY>(room, left, right, term.right_row, d + 8);
        now.add(sums);
        next.add(sums);
    }
    if (d < fours) {
        RowPiece last;
        last.load<WAY>(room, left, right, term.right_row, d);
        last.add(sums);
    }
#pragma unroll 1
    for (d = fours + half; d < term.depth; d += 2) {
        float factor = room[right + (WAY == Way::UP ? d : d * term.right_row)];
#pragma unroll
        for (int i = 0; i < ROWS; ++i) sums[i] += room[left[i] + d] * factor;
    }
}

// finish(the activation as a `Chosen`, row, column, the sum of both terms), for every element of a product of so many rows and
// columns; the second term may be empty. Lanes i and i + 16 share 5 rows of a column, and its sums. The last warps begin, as
// `layer_gradient` begins with the first.
template <Way WAY, class Finish>
__device__ inline void row_product(const float* room, u32 rows, u32 columns, u32 by_columns, const RowTerm& first,
                                   const RowTerm& second, u32 activation, Finish finish) {
    constexpr u32 MINE = (ROWS + 1) / 2;
    u32 own = threadIdx.x % 16, half = threadIdx.x % 32 / 16;
    u32 units = columns * ((rows + ROWS - 1) / ROWS);
#pragma unroll 1
    for (u32 base = (TASK_WARPS - 1 - threadIdx.x / 32) * 16; base < units; base += TASK_WARPS * 16) {
        u32 unit = min(base + own, units - 1);
        u32 tile = divided(unit, by_columns), column = unit - tile * columns, row = tile * ROWS;
        float sums[ROWS] = {};
        add_rows<WAY>(room, first, rows, row, column, half, sums);
        if (second.depth > 0) add_rows<WAY>(room, second, rows, row, column, half, sums);
        float mine[MINE];
#pragma unroll
        for (u32 i = 0; i < MINE; ++i) {
            float low = sums[i], high = MINE + i < ROWS ? sums[MINE + i] : 0.0f;
            mine[i] = (half ? high : low) + __shfl_xor_sync(~0u, half ? low : high, 16);
        }
        row += half * MINE;
        // As many rows as there are, none where another lane has the column.
        u32 count = base + own < units && row < rows ? min(rows - row, half ? ROWS - MINE : MINE) : 0;
        choose(activation, [&](auto chosen) {
#pragma unroll
            for (u32 i = 0; i < MINE; ++i) {
                if (i < count) finish(chosen, row + i, column, mine[i]);
            }
        });
    }
}

// Adds the 4 x 4 elements of p^T q from (the column `p` begins at, the one `q` begins at) on.
__device__ inline void add_outer(const float* room, u32 p, u32 p_row, u32 q, u32 q_row, u32 count, float (&sums)[4][4]) {
#pragma unroll 4
    for (u32 k = 0; k < count; ++k) {
        float left[4], right[4];
        load_piece(left, room + p + k * p_row);
        load_piece(right, room + q + k * q_row);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
            for (int j = 0; j < 4; ++j) sums[i][j] += left[i] * right[j];
        }
    }
}

// work(place among the padded parameters, the parameter's number, parameters that are left of the row, the numbers, those that
// lie at the place in the copy of the parameters at `copy`), for every piece of four of a layer's p^T [q, 1], and of `more` p^T q.
// The first unit is thread `first`'s; returns where the next begins.
template <class Work>
__device__ inline u32 layer_gradient(const float* room, const ResidentLayer& layer, u32 count, u32 p, u32 q, bool more,
                                     u32 more_p, u32 more_q, u32 copy, u32 first, Work work) {
    u32 inputs = layer.inputs, outputs = layer.outputs;
    u32 across = (inputs + 3) / 4, down = (outputs + 3) / 4, tiles = across * down;
#pragma unroll 1
    for (u32 unit = turn(first); unit < tiles + down; unit += TASK_THREADS) {
        if (unit < tiles) {
            u32 tile = divided(unit, layer.by_pieces), row = tile * 4, column = (unit - tile * across) * 4;
            float sums[4][4] = {};
            add_outer(room, p + row, layer.above, q + column, layer.row, count, sums);
            if (more) add_outer(room, more_p + row, layer.above, more_q + column, layer.row, count, sums);
            u32 at = layer.weight + row * layer.row + column, parameter = layer.plain + row * inputs + column;
            float there[4][4];
#pragma unroll
            for (u32 i = 0; i < 4; ++i) load_piece(there[i], room + copy + at + min(i, outputs - 1 - row) * layer.row);
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                if (row + i < outputs) work(at + i * layer.row, parameter + i * inputs, inputs - column, sums[i], there[i]);
            }
        } else {
            u32 row = (unit - tiles) * 4;
            float sum[4] = {}, there[4];
            load_piece(there, room + copy + layer.bias + row);
#pragma unroll 2
            for (u32 k = 0; k < count; ++k) {
                float value[4];
                load_piece(value, room + p + k * layer.above + row);
#pragma unroll
                for (u32 i = 0; i < 4; ++i) sum[i] += value[i];
            }
            work(layer.bias + row, layer.plain + inputs * outputs + row, outputs - row, sum, there);
        }
    }
    return next_turn(first, tiles + down);
}

// work(place, parameter, parameters that are left of the row), for every piece of four of a layer's parameters.
template <class Work>
__device__ inline u32 each_piece(const ResidentLayer& layer, u32 first, Work work) {
    u32 inputs = layer.inputs, outputs = layer.outputs;
    u32 across = (inputs + 3) / 4, pieces = across * outputs, units = pieces + (outputs + 3) / 4;
#pragma unroll 1
    for (u32 unit = turn(first); unit < units; unit += TASK_THREADS) {
        if (unit < pieces) {
            u32 row = divided(unit, layer.by_pieces), column = (unit - row * across) * 4;
            work(layer.weight + row * layer.row + column, layer.plain + row * inputs + column, inputs - column);
        } else {
            u32 row = (unit - pieces) * 4;
            work(layer.bias + row, layer.plain + inputs * outputs + row, outputs - row);
        }
    }
    return next_turn(first, units);
}

// Numbers that a thread has on their way at once from or to the arena.
constexpr u32 ON_THE_WAY = 8;

// put(parameter, place, get(parameter, place)), for each of a layer's parameters.
template <class Get, class Put>
__device__ inline u32 each_parameter(const ResidentLayer& layer, u32 first, Get get, Put put) {
    u32 inputs = layer.inputs, weights = inputs * layer.outputs, count = weights + layer.outputs;
#pragma unroll 1
    for (u32 start = turn(first); start < count; start += ON_THE_WAY * TASK_THREADS) {
        u32 place[ON_THE_WAY];
        float value[ON_THE_WAY];
#pragma unroll
        for (u32 a = 0; a < ON_THE_WAY; ++a) {
            u32 i = start + a * TASK_THREADS, row = divided(i, layer.by_inputs);
            place[a] = i < weights ? layer.weight + row * layer.row + i - row * inputs : layer.bias + i - weights;
            if (i < count) value[a] = get(layer.plain + i, place[a]);
        }
#pragma unroll
        for (u32 a = 0; a < ON_THE_WAY; ++a) {
            u32 i = start + a * TASK_THREADS;
            if (i < count) put(layer.plain + i, place[a], value[a]);
        }
    }
    return next_turn(first, count);
}
