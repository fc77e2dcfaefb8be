// How a warp has matrices of up to 40 units and 16 rows for the tensor cores' products in tf32 (see narrow_mma.cu). With
// lane = 4g + t, a lane has the numbers of
//   UnitColumns [40 units, 16 rows]:  at[q][h][e]     unit 8q + g, row 8h + 2t + e
//   UnitRows    [16 rows, 40 units]:  at[i][h][e]     row 8h + g, unit 8i + 2t + e
//   a square    [40 units, 40 units]: (q, i, e)       unit 8q + g, of the other side 8i + 2t + e
// The first and the last are a product's result as it lies. The order of a sum's numbers is free as long as both operands have the
// same: with number 2t where a product has t, and 2t + 1 where it has t + 4, all are operands as they lie, too.
#pragma once

#include "mma.cuh"
#include "narrow.cuh"

constexpr u32 OCTETS = WIDTH / 8;
// Rows of a pass at most.
constexpr u32 MMA_ROWS = 16;

struct UnitColumns {
    float at[OCTETS + 1][2][2] = {};

    // work(octet, half, place in it, the number)
    template <class Work>
    __device__ void each(Work work) {
#pragma unroll
        for (u32 q = 0; q < OCTETS; ++q) {
#pragma unroll
            for (u32 h = 0; h < 2; ++h) {
#pragma unroll
                for (u32 e = 0; e < 2; ++e) work(q, h, e, at[q][h][e]);
            }
        }
    }
};

// Pairs of octets of units, as many as a product's left side has; the last octet is alone.
constexpr u32 OCTET_PAIRS = (OCTETS + 1) / 2;

// The same, rounded, for the left side of a product that sums over the rows, and for its right side.
struct LeftOperand {
    u32 at[OCTET_PAIRS][2][4];

    __device__ explicit LeftOperand(const UnitColumns& columns, float factor = 1.0f) {
#pragma unroll
        for (u32 p = 0; p < OCTET_PAIRS; ++p) {
#pragma unroll
            for (u32 n = 0; n < 8; ++n) {
                u32 q = 2 * p + n % 2, h = n / 4, e = n / 2 % 2;
                at[p][h][n % 4] = q < OCTETS ? round_tf32(factor * columns.at[q][h][e]) : 0;
            }
        }
    }
    __device__ void leave(u32* to, u32 step) const {
#pragma unroll
        for (u32 q = 0; q < OCTETS; ++q) {
#pragma unroll
            for (u32 n = 0; n < 4; ++n) to[q * step + n / 2 * 8 + n % 2] = at[q / 2][n / 2][n % 2 * 2 + q % 2];
        }
    }
};
struct RightOperand {
    u32 at[OCTETS][2][2];

    __device__ explicit RightOperand(const UnitColumns& columns, float factor = 1.0f) {
#pragma unroll
        for (u32 q = 0; q < OCTETS; ++q) {
#pragma unroll
            for (u32 n = 0; n < 4; ++n) at[q][n / 2][n % 2] = round_tf32(factor * columns.at[q][n / 2][n % 2]);
        }
    }
    __device__ void leave(u32* to, u32 step) const {
#pragma unroll
        for (u32 q = 0; q < OCTETS; ++q) {
#pragma unroll
            for (u32 h = 0; h < 2; ++h) *(u64*)(to + q * step + 8 * h) = at[q][h][0] | (u64)at[q][h][1] << 32;
        }
    }
};

// The same by rows: by way of memory. Units lie so far apart that numbers which a warp reads meet in no bank.
constexpr u32 TURNED_UNIT = 20;
struct RowsOperand {
    u32 at[OCTETS][2][2];

    template <class Operand>
    __device__ RowsOperand(const Operand& columns, float* room) {
        u32 lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
        u32* of = (u32*)room;
        __syncwarp();
        columns.leave(of + g * TURNED_UNIT + 2 * t, 8 * TURNED_UNIT);
        __syncwarp();
#pragma unroll
        for (u32 i = 0; i < OCTETS; ++i) {
#pragma unroll
            for (u32 n = 0; n < 4; ++n) at[i][n / 2][n % 2] = of[(8 * i + 2 * t + n % 2) * TURNED_UNIT + 8 * (n / 2) + g];
        }
    }
};

// Columns `i` of a square, as an operand: two octets of units, of each its two numbers.
struct SquareOperand {
    u32 at[OCTET_PAIRS][4];

    // value(unit's octet, e): the lane's number of 8i + 2t + e.
    template <class Value>
    __device__ explicit SquareOperand(Value value) {
#pragma unroll
        for (u32 p = 0; p < OCTET_PAIRS; ++p) {
#pragma unroll
            for (u32 n = 0; n < 4; ++n) at[p][n] = 2 * p + n % 2 < OCTETS ? round_tf32(value(2 * p + n % 2, n / 2)) : 0;
        }
    }
};

// A square in memory, row by row. In every second four rows the octets are moved on by one, the last to the first's place: so that
// neither by rows nor by columns a warp reads numbers that meet in a bank, but for the last octet.
constexpr u32 SQUARE = WIDTH * WIDTH;
__device__ inline u32 place_in_square(u32 row, u32 column) {
    u32 octet = column / 8 + row / 4 % 2;
    return row * WIDTH + (octet < OCTETS ? octet : 0) * 8 + column % 8;
}

struct KeptSquare {
    float* room;

    __device__ float2* place(u32 q, u32 i) const {
        u32 lane = threadIdx.x % 32;
        return (float2*)(room + q * 8 * WIDTH + place_in_square(lane / 4, 8 * i + lane % 4 * 2));
    }
    __device__ float2 get(u32 q, u32 i) const { return *place(q, i); }
    __device__ void put(u32 q, u32 i, float2 pair) const { *place(q, i) = pair; }
    // As an operand: of the lane's own numbers.
    __device__ SquareOperand columns(u32 i) const {
        float2 pair[OCTETS];
#pragma unroll
        for (u32 q = 0; q < OCTETS; ++q) pair[q] = get(q, i);
        return SquareOperand([&](u32 q, u32 e) { return e == 0 ? pair[q].x : pair[q].y; });
    }
};
// The same seen from the other side: of other lanes' numbers, which must not be put meanwhile.
struct TurnedSquare {
    const float* room;

    __device__ SquareOperand columns(u32 i) const {
        u32 lane = threadIdx.x % 32;
        const float* from = room + i * 8 * WIDTH;
        return SquareOperand([&](u32 q, u32 e) { return from[place_in_square(lane % 4 * 2 + e, 8 * q + lane / 4)]; });
    }
};

// to += square rows^T, for its columns `i`: six products that do not wait for one another.
__device__ inline void multiply_columns(UnitColumns& to, const SquareOperand& square, const RowsOperand& rows, u32 i) {
#pragma unroll
    for (u32 p = 0; p < OCTET_PAIRS; ++p) {
#pragma unroll
        for (u32 h = 0; h < 2; ++h) {
            float(&lower)[2] = to.at[2 * p][h], (&upper)[2] = to.at[2 * p + 1][h];
            float d[4] = {lower[0], lower[1], upper[0], upper[1]};
            mma_tf32(d, square.at[p], rows.at[i][h]);
            lower[0] = d[0];
            lower[1] = d[1];
            upper[0] = d[2];
            upper[1] = d[3];
        }
    }
}
template <class Square>
__device__ inline void multiply_columns(UnitColumns& to, const Square& square, const RowsOperand& rows) {
#pragma unroll
    for (u32 i = 0; i < OCTETS; ++i) multiply_columns(to, square.columns(i), rows, i);
}

// to = [to +] the sum of left right^T, each a sum over the rows.
template <bool BEGUN, u32 COUNT>
__device__ inline void multiply_outer(const KeptSquare& to, const LeftOperand* const (&left)[COUNT],
                                      const RightOperand* const (&right)[COUNT]) {
#pragma unroll
    for (u32 p = 0; p < OCTET_PAIRS; ++p) {
        bool both = 2 * p + 1 < OCTETS;
        u32 last = both ? 2 * p + 1 : 2 * p;
#pragma unroll
        for (u32 i = 0; i < OCTETS; ++i) {
            float2 lower = {0.0f, 0.0f}, upper = {0.0f, 0.0f};
            if (BEGUN) lower = to.get(2 * p, i);
            if (BEGUN && both) upper = to.get(last, i);
            float d[4] = {lower.x, lower.y, upper.x, upper.y};
#pragma unroll
            for (u32 n = 0; n < 2 * COUNT; ++n) mma_tf32(d, left[n / 2]->at[p][n % 2], right[n / 2]->at[i][n % 2]);
            to.put(2 * p, i, {d[0], d[1]});
            if (both) to.put(last, i, {d[2], d[3]});
        }
    }
}
template <bool BEGUN>
__device__ inline void multiply_outer(const KeptSquare& to, const LeftOperand& left, const RightOperand& right) {
    multiply_outer<BEGUN, 1>(to, {&left}, {&right});
}
