// What the loop of a narrow network is told (see narrow.cu), and how a warp holds its middle weight.
#pragma once

#include "resident.cuh"

// Units of a hidden layer at most; what is fewer is filled up with zeros.
constexpr u32 WIDTH = 40;
// Their activation.
constexpr u32 HIDDEN = RELU;

// Where a row has what belongs to its units: the lower values, their cotangent, their deltas or second deltas; and of the upper
// units the cotangent, the deltas and the second deltas. Rows lie so that those of a pair meet in no bank.
enum RowPart : u32 {
    LOWER,
    LOWER_MOVED = WIDTH,
    LOWER_DELTA = 2 * WIDTH,
    UPPER_MOVED = 3 * WIDTH,
    UPPER_DELTA = 4 * WIDTH,
    UPPER_BENT = 5 * WIDTH,
};
constexpr u32 ROW = 6 * WIDTH;

// Rows of one pass; two are a pair, and where their number is odd the last pair's second row counts for nothing.
struct NarrowPass {
    u64 x;
    u64 y;
    // Where both lie in the task's memory.
    u32 inputs;
    u32 targets;
    u32 rows;
    // 1 / rows.
    float scale;
};

struct Narrow {
    // The arena's.
    u64 parameters;
    u64 rates;
    u64 task_loss;
    u64 gradients;
    NarrowPass support;
    NarrowPass query;
    // The task's own: a slot for each step and the query, in it the edges (all parameters but the middle weight), the upper
    // values and the output's deltas; rows; rates; the cotangent of the edges; the ends, a number a row; with several warps
    // a gradient of the middle weight that they share, and that weight in every step.
    u32 slot;
    u32 upper_values;
    u32 deltas;
    u32 work;
    u32 rate;
    u32 cotangent;
    u32 ends;
    u32 shared;
    u32 kept;
    u32 length;
    // Numbers of the edges before the output's bias.
    u32 edges;
    u32 tasks;
    u32 steps;
    u32 inputs;
    u32 lower;
    u32 upper;
    // Parameters.
    u32 count;
    u32 exact;
};
static_assert(sizeof(Narrow) == 168, "mirrored in Rust");

// A lane's numbers of a row of the lower units, of one of the upper ones, and of the weight between: 4 lanes by 8.
constexpr u32 OWN_LOWER = 10;
constexpr u32 OWN_UPPER = 5;
constexpr u32 MIDDLE_PIECES = OWN_LOWER * OWN_UPPER / 4;

// The warp's number in its block, in a way that tells the compiler that it is the same for all lanes.
__device__ inline u32 warp_number() {
#ifdef INNERLOOP_EMULATE
    return threadIdx.x / 32;
#else
    return __shfl_sync(~0u, threadIdx.x / 32, 0);
#endif
}

// The number, which the compiler is not to work out anew wherever it is needed.
__device__ inline u32 held(u32 number) {
#ifndef INNERLOOP_EMULATE
    asm volatile("" : "+r"(number));
#endif
    return number;
}

__device__ inline float from_lane(float value, u32 distance) { return __shfl_xor_sync(~0u, value, distance); }

// Which numbers those are. Sums are handed from lane to lane by halves, each keeping what its partner gives away: so that this
// takes no choices, neighbours have their rows of a pair, and their pieces of a row, the other way round. Of the lane's number,
// bits 1 and 2 are of the lower units, the others of the upper ones: shared memory reads pieces at half the cost where two
// neighbours want the same.
struct Lane {
    // Where its pieces of a row begin.
    u32 across[4];
    u32 down[2];
    // The pair's row that it ends up with on the way up. Where the two rows begin, first that one, and on the way down.
    u32 up_row;
    u32 up[2];
    u32 back[2];
    // Two lanes end up with the same numbers, of which each stores a part. And whether it stores its row's number.
    bool first_up;
    bool first_down;
    bool tells;

    __device__ Lane() {
        u32 lane = threadIdx.x % 32, column = column_of(lane), row = lane / 8 * 2 + lane % 2, swap = swap_of(lane);
        up_row = held(column % 2);
        across[0] = held(16 * swap + 4 * column);
        across[1] = held(16 * (1 - swap) + 4 * column);
        across[2] = held(32 + 2 * column + swap);
        across[3] = held(32 + 2 * column + 1 - swap);
        down[0] = held(4 * row);
        down[1] = held(32 + row);
#pragma unroll
        for (u32 k = 0; k < 2; ++k) {
            up[k] = held((up_row ^ k) * ROW);
            back[k] = held((row % 2 ^ k) * ROW);
        }
        first_up = column < 2;
        first_down = row < 4;
        tells = row == 0 && first_up;
    }

    __device__ static u32 column_of(u32 lane) { return lane / 2 % 4; }
    __device__ static u32 swap_of(u32 lane) { return lane / 8 % 2; }

    // Its columns of the middle weight, and its rows.
    __device__ static u32 lower(u32 m) {
        u32 column = column_of(threadIdx.x), swap = swap_of(threadIdx.x);
        return m < 8 ? 16 * (m / 4 ^ swap) + 4 * column + m % 4 : 32 + 2 * column + (m % 2 ^ swap);
    }
    __device__ u32 upper(u32 i) const { return i < 4 ? down[0] + i : down[1]; }

    __device__ static void load(float (&to)[OWN_LOWER], const float* from, const u32 (&at)[4]) {
        float piece[4], other[4];
        load_piece(piece, from + at[0]);
        load_piece(other, from + at[1]);
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            to[i] = piece[i];
            to[4 + i] = other[i];
        }
        to[8] = from[at[2]];
        to[9] = from[at[3]];
    }

    // A piece, and one number.
    __device__ static void load(float (&to)[OWN_UPPER], const float* from, u32 piece_at, u32 at) {
        float piece[4];
        load_piece(piece, from + piece_at);
#pragma unroll
        for (u32 i = 0; i < 4; ++i) to[i] = piece[i];
        to[4] = from[at];
    }

    // One of the two.
    __device__ static void store(float* to, u32 piece_at, u32 at, const float (&from)[OWN_UPPER], bool first) {
        if (first) {
            put_piece(to + piece_at, {from[0], from[1], from[2], from[3]});
        } else {
            to[at] = from[4];
        }
    }

    // Its numbers of a row: of lower units, of upper ones; and those of lower ones that it ends up with on the way down.
    __device__ void load(float (&to)[OWN_LOWER], const float* row) const { load(to, row, across); }
    __device__ void load(float (&to)[OWN_UPPER], const float* row) const { load(to, row, down[0], down[1]); }
    __device__ void store(float* row, const float (&from)[OWN_UPPER]) const { store(row, down[0], down[1], from, first_up); }
    __device__ void load_back(float (&to)[OWN_UPPER], const float* row) const { load(to, row, across[0], across[2]); }
    __device__ void store_back(float* row, const float (&from)[OWN_UPPER]) const {
        store(row, across[0], across[2], from, first_down);
    }

    // The sums of a pair over the lower units, all of them: of row `up_row`.
    __device__ static void ends_up(float (&sums)[2][OWN_UPPER]) {
#pragma unroll
        for (u32 i = 0; i < OWN_UPPER; ++i) sums[0][i] += from_lane(sums[1][i], 2);
#pragma unroll
        for (u32 i = 0; i < OWN_UPPER; ++i) sums[0][i] += from_lane(sums[0][i], 4);
    }

    // Those over the upper units.
    __device__ static void ends_down(float (&sums)[2][OWN_LOWER], float (&to)[OWN_UPPER]) {
#pragma unroll
        for (u32 m = 0; m < OWN_LOWER; ++m) sums[0][m] += from_lane(sums[1][m], 1);
#pragma unroll
        for (u32 i = 0; i < OWN_UPPER; ++i) {
            u32 mine = i < 4 ? i : 8, given = i < 4 ? 4 + i : 9;
            to[i] = sums[0][mine] + from_lane(sums[0][given], 8);
        }
#pragma unroll
        for (u32 i = 0; i < OWN_UPPER; ++i) to[i] += from_lane(to[i], 16);
    }

    // The sum over the upper units of what lanes have of one row.
    __device__ static float over_rows(float sum) {
        sum += from_lane(sum, 1);
        sum += from_lane(sum, 8);
        return sum + from_lane(sum, 16);
    }
};

// A warp's middle weight, or something of its shape.
struct Middle {
    float at[OWN_UPPER][OWN_LOWER];

    __device__ void clear() {
#pragma unroll
        for (u32 i = 0; i < OWN_UPPER; ++i) {
#pragma unroll
            for (u32 m = 0; m < OWN_LOWER; ++m) at[i][m] = 0.0f;
        }
    }

    // sums += the weight times a row of lower units; of upper ones.
    __device__ void add_up(float (&sums)[OWN_UPPER], const float (&row)[OWN_LOWER]) const {
#pragma unroll
        for (u32 m = 0; m < OWN_LOWER; ++m) {
#pragma unroll
            for (u32 i = 0; i < OWN_UPPER; ++i) sums[i] += at[i][m] * row[m];
        }
    }
    __device__ void add_down(float (&sums)[OWN_LOWER], const float (&row)[OWN_UPPER]) const {
#pragma unroll
        for (u32 i = 0; i < OWN_UPPER; ++i) {
#pragma unroll
            for (u32 m = 0; m < OWN_LOWER; ++m) sums[m] += at[i][m] * row[i];
        }
    }
    __device__ void add_outer(const float (&upper)[OWN_UPPER], const float (&lower)[OWN_LOWER]) {
#pragma unroll
        for (u32 i = 0; i < OWN_UPPER; ++i) {
#pragma unroll
            for (u32 m = 0; m < OWN_LOWER; ++m) at[i][m] += upper[i] * lower[m];
        }
    }
    __device__ void add(float factor, const Middle& other) {
#pragma unroll
        for (u32 i = 0; i < OWN_UPPER; ++i) {
#pragma unroll
            for (u32 m = 0; m < OWN_LOWER; ++m) at[i][m] += factor * other.at[i][m];
        }
    }

    // Where the warps of a task hand it on: a lane's number `n` of its 50, by pieces of four, and the last two.
    __device__ static u32 place(u32 n) {
        u32 lane = threadIdx.x % 32;
        return n < MIDDLE_PIECES * 4 ? n / 4 * 128 + lane * 4 + n % 4 : MIDDLE_PIECES * 128 + lane * 2 + n % 4;
    }
    template <class Take>
    __device__ static void each(const float* from, Take take) {
#pragma unroll
        for (u32 p = 0; p < MIDDLE_PIECES; ++p) {
            float piece[4];
            load_piece(piece, from + place(4 * p));
#pragma unroll
            for (u32 k = 0; k < 4; ++k) take((4 * p + k) / OWN_LOWER, (4 * p + k) % OWN_LOWER, piece[k]);
        }
        float2 last = *(const float2*)(from + place(4 * MIDDLE_PIECES));
        take(OWN_UPPER - 1, OWN_LOWER - 2, last.x);
        take(OWN_UPPER - 1, OWN_LOWER - 1, last.y);
    }
    // take(i, m, the sum over the tasks), of the warp's part of what tasks have stored `stride` numbers apart.
    template <class Take>
    __device__ static void each_total(const float* from, u32 stride, u32 tasks, u32 warp, u32 warps, Take take) {
#pragma unroll
        for (u32 p = 0; p <= MIDDLE_PIECES; ++p) {
            if (p % warps != warp) continue;
            float sum[4] = {};
#pragma unroll 1
            for (u32 t = 0; t < tasks; ++t) {
                const float* at = from + t * stride + place(4 * p);
                float piece[4] = {};
                if (p < MIDDLE_PIECES) {
                    load_piece(piece, at);
                } else {
                    piece[0] = at[0];
                    piece[1] = at[1];
                }
#pragma unroll
                for (u32 k = 0; k < 4; ++k) sum[k] += piece[k];
            }
#pragma unroll
            for (u32 k = 0; k < (p < MIDDLE_PIECES ? 4 : 2); ++k) {
                take((4 * p + k) / OWN_LOWER, (4 * p + k) % OWN_LOWER, sum[k]);
            }
        }
    }
    __device__ void load(const float* from) {
        each(from, [&](u32 i, u32 m, float value) { at[i][m] = value; });
    }
    __device__ void add(const float* from) {
        each(from, [&](u32 i, u32 m, float value) { at[i][m] += value; });
    }
    // A part of it, by each of several warps that have the same.
    __device__ void store(float* to, u32 warp, u32 warps) const {
#pragma unroll
        for (u32 p = 0; p <= MIDDLE_PIECES; ++p) {
            float piece[4];
#pragma unroll
            for (u32 k = 0; k < 4; ++k) {
                u32 n = min(4 * p + k, OWN_UPPER * OWN_LOWER - 1);
                piece[k] = at[n / OWN_LOWER][n % OWN_LOWER];
            }
            if (p % warps != warp) continue;
            if (p < MIDDLE_PIECES) {
                put_piece(to + place(4 * p), piece);
            } else {
                *(float2*)(to + place(4 * p)) = float2{piece[0], piece[1]};
            }
        }
    }
};

// work(where the parameter lies, whether there is such a one, the number in registers), for those of the middle weight, of
// parameters that begin at `from`.
template <class Work>
__device__ inline void each_middle(const Narrow& op, const Lane& own, const float* from, Work work) {
    from += op.lower * op.inputs + op.lower;
#pragma unroll
    for (u32 i = 0; i < OWN_UPPER; ++i) {
        u32 up = own.upper(i);
#pragma unroll
        for (u32 p = 0; p < 4; ++p) {
            const float* piece = from + (up * op.lower + own.across[p]);
#pragma unroll
            for (u32 k = 0; k < (p < 2 ? 4 : 1); ++k) {
                work(piece + k, up < op.upper && own.across[p] + k < op.lower, i, p < 2 ? 4 * p + k : 6 + p);
            }
        }
    }
}

// to += factor * the rows' upper numbers at `upper` times their lower ones at `lower`; a row that counts for nothing has zeros.
template <bool SCALED>
__device__ inline void add_rows(Middle& to, const Lane& own, const float* from, u32 rows, RowPart upper, RowPart lower,
                                float factor) {
#pragma unroll 1
    for (u32 r = 0; r < rows; r += 2, from += 2 * ROW) {
        float up[2][OWN_UPPER], low[2][OWN_LOWER];
#pragma unroll
        for (u32 k = 0; k < 2; ++k) {
            own.load(up[k], from + k * ROW + upper);
            own.load(low[k], from + k * ROW + lower);
        }
#pragma unroll
        for (u32 k = 0; k < 2; ++k) {
#pragma unroll
            for (u32 i = 0; SCALED && i < OWN_UPPER; ++i) up[k][i] *= factor;
            to.add_outer(up[k], low[k]);
        }
    }
}

// Of several warps each makes a part of the sum, of two columns a lane: of the rows' upper numbers times the lower values, and of
// `more` the upper deltas times the lower cotangents.
__device__ inline void share_rows(float* shared, u32 warp, const Lane& own, const float* from, u32 rows, RowPart upper,
                                  bool more) {
    u32 first = own.lower(2 * warp), second = own.lower(2 * warp + 1);
    float sums[OWN_UPPER][2] = {};
#pragma unroll 4
    for (u32 r = 0; r < rows; ++r, from += ROW) {
        float up[OWN_UPPER], left = from[LOWER + first], right = from[LOWER + second];
        own.load(up, from + upper);
#pragma unroll
        for (u32 i = 0; i < OWN_UPPER; ++i) {
            sums[i][0] += up[i] * left;
            sums[i][1] += up[i] * right;
        }
        if (!more) continue;
        left = from[LOWER_MOVED + first];
        right = from[LOWER_MOVED + second];
        own.load(up, from + UPPER_DELTA);
#pragma unroll
        for (u32 i = 0; i < OWN_UPPER; ++i) {
            sums[i][0] += up[i] * left;
            sums[i][1] += up[i] * right;
        }
    }
#pragma unroll
    for (u32 i = 0; i < OWN_UPPER; ++i) {
        float* to = shared + Middle::place(i * OWN_LOWER + 2 * warp);
        *(float2*)to = float2{sums[i][0], sums[i][1]};
    }
}
