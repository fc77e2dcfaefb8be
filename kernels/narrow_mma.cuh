// How a warp holds matrices of up to 40 units and 16 rows for the tensor cores' products in tf32 (see narrow_mma.cu): as mma.cuh has
// a product's result. With lane = 4g + t, a lane has the numbers of
//   UnitRows [16 rows, 40 units]:     at[j][2h + e]   row g + 8h, unit 8j + 2t + e
//   UnitColumns [40 units, 16 rows]:  at[q][h][e]     unit 8q + g, row 8h + 2t + e
//   Square [40 units, 40 units]:  (q, i, e)       unit 8q + g, of the other side 8i + 2t + e
// The order of a sum's numbers is free as long as both operands have the same: with number 2t where a product has t, and 2t + 1 where
// it has t + 4, every result is an operand as it is, and nothing goes from lane to lane.
#pragma once

#include "mma.cuh"
#include "narrow.cuh"

constexpr u32 OCTETS = WIDTH / 8;

struct UnitRows {
    float at[OCTETS][4];
};
struct UnitColumns {
    float at[OCTETS][2][2];
};

// The same, rounded.
struct RowsOperand {
    u32 at[OCTETS][4];

    __device__ explicit RowsOperand(const UnitRows& rows) {
#pragma unroll
        for (u32 j = 0; j < OCTETS; ++j) {
#pragma unroll
            for (u32 c = 0; c < 4; ++c) at[j][c] = round_tf32(rows.at[j][c]);
        }
    }
};
struct ColumnsOperand {
    u32 at[OCTETS][2][2];

    __device__ explicit ColumnsOperand(const UnitColumns& columns, float factor = 1.0f) {
#pragma unroll
        for (u32 q = 0; q < OCTETS; ++q) {
#pragma unroll
            for (u32 n = 0; n < 4; ++n) at[q][n / 2][n % 2] = round_tf32(factor * columns.at[q][n / 2][n % 2]);
        }
    }
};

// A square in registers.
struct HeldSquare {
    float at[OCTETS][OCTETS][2];

    __device__ float2 get(u32 q, u32 i) const { return {at[q][i][0], at[q][i][1]}; }
    __device__ void put(u32 q, u32 i, float2 pair) {
        at[q][i][0] = pair.x;
        at[q][i][1] = pair.y;
    }
};

// One in the task's memory, in which a lane keeps its own numbers.
struct KeptSquare {
    float* room;

    __device__ float2* place(u32 q, u32 i) const { return (float2*)room + (q * OCTETS + i) * 32 + threadIdx.x % 32; }
    __device__ float2 get(u32 q, u32 i) const { return *place(q, i); }
    __device__ void put(u32 q, u32 i, float2 pair) { *place(q, i) = pair; }
};
constexpr u32 KEPT_SQUARE = WIDTH * WIDTH;

// Pairs of octets of a square's units, as many as a product has; the last octet is alone.
constexpr u32 OCTET_PAIRS = (OCTETS + 1) / 2;

// UnitColumns `i` of a square, as an operand.
struct SquareOperand {
    u32 at[OCTETS + 1][2] = {};

    template <class Square>
    __device__ SquareOperand(const Square& square, u32 i) {
#pragma unroll
        for (u32 q = 0; q < OCTETS; ++q) {
            float2 pair = square.get(q, i);
            at[q][0] = round_tf32(pair.x);
            at[q][1] = round_tf32(pair.y);
        }
    }
};

// to += square rows^T, for its columns `i`: six products that do not wait for one another.
__device__ inline void add_columns(UnitColumns& to, const SquareOperand& square, const RowsOperand& rows, u32 i) {
#pragma unroll
    for (u32 p = 0; p < OCTET_PAIRS; ++p) {
        const u32(&lower)[2] = square.at[2 * p], (&upper)[2] = square.at[2 * p + 1];
        u32 a[4] = {lower[0], upper[0], lower[1], upper[1]};
        bool both = 2 * p + 1 < OCTETS;
        u32 last = both ? 2 * p + 1 : 2 * p;
#pragma unroll
        for (u32 h = 0; h < 2; ++h) {
            u32 b[2] = {rows.at[i][2 * h], rows.at[i][2 * h + 1]};
            float d[4] = {to.at[2 * p][h][0], to.at[2 * p][h][1], both ? to.at[last][h][0] : 0.0f, both ? to.at[last][h][1] : 0.0f};
            mma_tf32(d, a, b);
            to.at[2 * p][h][0] = d[0];
            to.at[2 * p][h][1] = d[1];
            if (both) {
                to.at[last][h][0] = d[2];
                to.at[last][h][1] = d[3];
            }
        }
    }
}

// to += rows square^T, for its columns `i`.
__device__ inline void add_rows(UnitRows& to, const SquareOperand& square, const RowsOperand& rows, u32 i) {
    u32 a[4] = {rows.at[i][0], rows.at[i][2], rows.at[i][1], rows.at[i][3]};
#pragma unroll
    for (u32 j = 0; j < OCTETS; ++j) mma_tf32(to.at[j], a, square.at[j]);
}

// to += square rows^T
template <class Square>
__device__ inline void multiply_columns(UnitColumns& to, const Square& square, const RowsOperand& rows) {
#pragma unroll
    for (u32 i = 0; i < OCTETS; ++i) add_columns(to, SquareOperand(square, i), rows, i);
}

// to += left right^T, a sum over the rows
template <class Square>
__device__ inline void multiply_outer(Square& to, const ColumnsOperand& left, const ColumnsOperand& right) {
#pragma unroll
    for (u32 p = 0; p < OCTET_PAIRS; ++p) {
        bool both = 2 * p + 1 < OCTETS;
        u32 last = both ? 2 * p + 1 : 2 * p;
#pragma unroll
        for (u32 i = 0; i < OCTETS; ++i) {
            float2 lower = to.get(2 * p, i), upper = both ? to.get(last, i) : float2{0.0f, 0.0f};
            float d[4] = {lower.x, lower.y, upper.x, upper.y};
#pragma unroll
            for (u32 h = 0; h < 2; ++h) {
                u32 a[4] = {left.at[2 * p][h][0], both ? left.at[last][h][0] : 0, left.at[2 * p][h][1], both ? left.at[last][h][1] : 0};
                u32 b[2] = {right.at[i][h][0], right.at[i][h][1]};
                mma_tf32(d, a, b);
            }
            to.put(2 * p, i, {d[0], d[1]});
            if (both) to.put(last, i, {d[2], d[3]});
        }
    }
}
