// What the loop of a narrow network is told (see narrow.cu), and how a warp holds its middle weight.
#pragma once

#include "activation.cuh"
#include "pieces.cuh"

// Units of a hidden layer at most; what is fewer is filled up with zeros.
constexpr u32 WIDTH = 40;

// Where a row has what belongs to its units: the lower values, the cotangent of theirs (see reverse), their deltas or second deltas,
// and of the upper units the cotangent, the deltas and the second deltas. Rows lie so that those of a pair meet in no bank.
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
    // The task's own: a slot for each step and the query, in it the edges (all parameters but the middle weight), the upper values
    // and the output's deltas; rows; rates; the cotangent of the edges; what the ends are; with several warps a gradient of the middle
    // weight that they share, and that weight in every step.
    u32 slot;
    u32 upper_values;
    u32 deltas;
    u32 work;
    u32 rate;
    u32 cotangent;
    u32 ends;
    u32 shared;
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
    u32 unused;
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

__device__ inline float from_lane(float value, u32 distance) { return __shfl_xor_sync(~0u, value, distance); }

// Which numbers those are. Sums are handed from lane to lane by halves, each keeping what its partner gives away: so that this
// takes no choices, neighbours have their rows of a pair, and their pieces of a row, the other way round.
struct Lane {
    u32 up_row;
    u32 down_row;
    u32 across[4];
    u32 down[2];
    bool first_up;
    bool first_down;

    __device__ Lane() {
        u32 lane = threadIdx.x % 32, column = lane % 4, row = lane / 4, swap = row / 2 % 2;
        up_row = column % 2;
        down_row = row % 2;
        across[0] = 16 * swap + 4 * column;
        across[1] = 16 * (1 - swap) + 4 * column;
        across[2] = 32 + 2 * column + swap;
        across[3] = 32 + 2 * column + 1 - swap;
        down[0] = 4 * row;
        down[1] = 32 + row;
        first_up = column < 2;
        first_down = row < 4;
    }

    __device__ static u32 lower(u32 m) {
        u32 column = threadIdx.x % 4, swap = threadIdx.x / 8 % 2;
        return m < 8 ? 16 * (m / 4 ^ swap) + 4 * column + m % 4 : 32 + 2 * column + (m % 2 ^ swap);
    }
    __device__ u32 upper(u32 i) const { return i < 4 ? down[0] + i : down[1]; }

    __device__ void load(float (&to)[OWN_LOWER], const float* row) const {
        float piece[4];
        load_piece(piece, row + across[0]);
#pragma unroll
        for (u32 i = 0; i < 4; ++i) to[i] = piece[i];
        load_piece(piece, row + across[1]);
#pragma unroll
        for (u32 i = 0; i < 4; ++i) to[4 + i] = piece[i];
        to[8] = row[across[2]];
        to[9] = row[across[3]];
    }

    __device__ void load(float (&to)[OWN_UPPER], const float* row) const {
        float piece[4];
        load_piece(piece, row + down[0]);
#pragma unroll
        for (u32 i = 0; i < 4; ++i) to[i] = piece[i];
        to[4] = row[down[1]];
    }

    // What `ends_up` leaves; two lanes have the same numbers, of which each stores a part.
    __device__ void store_up(float* row, const float (&from)[OWN_UPPER]) const {
        if (first_up) {
            *(float4*)(row + down[0]) = float4{from[0], from[1], from[2], from[3]};
        } else {
            row[down[1]] = from[4];
        }
    }

    // What `ends_down` leaves: of a row the lane's pieces 0 and 2.
    __device__ void load_down(float (&to)[OWN_UPPER], const float* row) const {
        float piece[4];
        load_piece(piece, row + across[0]);
#pragma unroll
        for (u32 i = 0; i < 4; ++i) to[i] = piece[i];
        to[4] = row[across[2]];
    }
    __device__ void store_down(float* row, const float (&from)[OWN_UPPER]) const {
        if (first_down) {
            *(float4*)(row + across[0]) = float4{from[0], from[1], from[2], from[3]};
        } else {
            row[across[2]] = from[4];
        }
    }

    // The sums of a pair over the lower units, all of them: of row `up_row`.
    __device__ static void ends_up(float (&sums)[2][OWN_UPPER]) {
#pragma unroll
        for (u32 i = 0; i < OWN_UPPER; ++i) sums[0][i] += from_lane(sums[1][i], 1);
#pragma unroll
        for (u32 i = 0; i < OWN_UPPER; ++i) sums[0][i] += from_lane(sums[0][i], 2);
    }

    // Those over the upper units: of row `down_row`.
    __device__ static void ends_down(float (&sums)[2][OWN_LOWER], float (&to)[OWN_UPPER]) {
#pragma unroll
        for (u32 m = 0; m < OWN_LOWER; ++m) sums[0][m] += from_lane(sums[1][m], 4);
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
        sum += from_lane(sum, 4);
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
                store_piece(to + place(4 * p), piece);
            } else {
                *(float2*)(to + place(4 * p)) = float2{piece[0], piece[1]};
            }
        }
    }
};
