// Ends what Hopper's products have left as sums: adds the parts of the inner dimension and the corrections, and does what their own
// ends would. It leaves a copy in 16 bits where the outputs are rows of a product to come.

#include "corrections.cuh"
#include "ends.cuh"
#include "mma.cuh"
#include "tensor.cuh"

struct Finish {
    Corrections corrections;
    // One group.
    Product product;
    // The sums, [parts, rows, width]; with one part they may lie in the output, without any they are 0.
    u64 raw;
    // Of the copy, in numbers of 32 bits; NOWHERE without one.
    u64 packed;
    u32 parts;
    u32 unused;
};
static_assert(sizeof(Finish) == 3376, "mirrored in Rust");

// Rows that are ended at once.
constexpr u32 ENDED = 4;

template <class End, u32 PIECE>
__device__ inline void finish_pieces(float* arena, const Finish& op, Coefficients& shared) {
    struct Piece {
        __device__ void load(float (&to)[PIECE], const float* from) const { load_piece(to, from); }
        __device__ void store(float* to, const float (&from)[PIECE]) const { store_piece(to, from); }
    };
    const Corrections& of = op.corrections;
    u64 part = (u64)op.product.group_rows * op.product.blocks * op.product.width;
    apply<PIECE>(arena, of, shared, [&](const OwnRows& own, float (&sum)[GROUP][PIECE]) {
#pragma unroll
        for (u32 start = 0; start < GROUP; start += ENDED) {
            if (own.row(start) >= own.rows) break;
            int row[ENDED];
            Outputs<ENDED, PIECE> all;
#pragma unroll
            for (u32 i = 0; i < ENDED; ++i) {
                u32 within = own.row(start + i);
                bool there = within < own.rows;
                row[i] = there ? (int)((own.block * of.tasks + own.task) * of.rows + own.first + within) : -1;
                u64 at = there ? (u64)row[i] * of.width + own.column : 0;
                load_piece_or_zero(all.sums[i], arena + op.raw + at, there && op.parts > 0);
#pragma unroll
                for (u32 p = 0; p < PIECE; ++p) all.added[i][p] = sum[start + i][p];
            }
            for (u32 p = 1; p < op.parts; ++p) {
                float more[ENDED][PIECE];
#pragma unroll
                for (u32 i = 0; i < ENDED; ++i) {
                    u64 at = row[i] < 0 ? 0 : (u64)row[i] * of.width + own.column;
                    load_piece_or_zero(more[i], arena + op.raw + p * part + at, row[i] >= 0);
                }
                all.each([&](int i, int c) { all.sums[i][c] += more[i][c]; });
            }
            end_outputs<End>(arena, op.product, row, own.column, all, Piece(), [&](int i, const float (&output)[PIECE]) {
                if constexpr (PIECE == 4) {
                    if (op.packed == NOWHERE) return;
                    u32* to = (u32*)arena + op.packed + ((u64)row[i] * of.width + own.column) / 2;
                    u32 lower = round_pair(op.product.operands, output[0], output[1]);
                    u32 upper = round_pair(op.product.operands, output[2], output[3]);
                    *(u64*)to = lower | (u64)upper << 32;
                }
            });
        }
    });
}

#define FINISH(name, End)                              \
    KERNEL(name, Finish) {                             \
        SHARED(Coefficients, shared);                  \
        if (op.corrections.piece == 4) {               \
            finish_pieces<End, 4>(arena, op, shared);  \
        } else {                                       \
            finish_pieces<End, 1>(arena, op, shared);  \
        }                                              \
    }

// Grid: that of `apply_corrections`.
FINISH(finish_forward, Forward)
FINISH(finish_backward, Backward)
FINISH(finish_adjoint, Adjoint)
