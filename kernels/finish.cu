// Ends what Hopper's products have left as sums: adds the parts of the inner dimension and the corrections, and does what their own
// ends would. It leaves a copy in 16 bits where the outputs are rows of a product to come, and goes on with the loss and the inner
// products that are asked for next, while the rows are at hand.

#include "ended.cuh"
#include "ends.cuh"

struct Finish {
    Corrections corrections;
    // One group.
    Product product;
    // The sums, [parts, rows, width]; with one part they may lie in the output, without any they are 0.
    u64 raw;
    // Of the copy, in numbers of 32 bits; NOWHERE without one.
    u64 packed;
    EndedLoss loss;
    EndedGram gram;
    u32 parts;
    // `Rounding` of the steps' rows: AS_F32, or that of their copies.
    u32 history;
};
static_assert(sizeof(Finish) == 3968, "mirrored in Rust");

// Rows that are ended at once.
constexpr u32 ENDED = 4;

template <u32 PIECE>
struct Piece {
    __device__ void load(float (&to)[PIECE], const float* from) const { load_piece(to, from); }
    __device__ void store(float* to, const float (&from)[PIECE]) const { store_piece(to, from); }
};

template <class End, class History, u32 PIECE = History::PIECE>
__device__ inline void finish_pieces(float* arena, const Finish& op, Coefficients& shared, u32& last) {
    const Corrections& of = op.corrections;
    u32 operands = op.product.operands;
    u64 part = (u64)op.product.group_rows * op.product.blocks * op.product.width;
    apply<History>(arena, of, shared, [&](const OwnRows& own, float (&sum)[GROUP][PIECE]) {
#pragma unroll
        for (u32 start = 0; start < GROUP; start += ENDED) {
            if (own.row(start) >= own.rows) break;
            int row[ENDED];
            u64 at[ENDED];
            Outputs<ENDED, PIECE> all;
#pragma unroll
            for (u32 i = 0; i < ENDED; ++i) {
                u32 within = own.row(start + i);
                bool there = within < own.rows;
                row[i] = there ? (int)((own.block * of.tasks + own.task) * of.rows + own.first + within) : -1;
                at[i] = there ? (u64)row[i] * of.width + own.column : 0;
                load_piece_or_zero(all.sums[i], arena + op.raw + at[i], there && op.parts > 0);
#pragma unroll
                for (u32 p = 0; p < PIECE; ++p) all.added[i][p] = sum[start + i][p];
            }
            for (u32 p = 1; p < op.parts; ++p) {
                float more[ENDED][PIECE];
#pragma unroll
                for (u32 i = 0; i < ENDED; ++i) load_piece_or_zero(more[i], arena + op.raw + p * part + at[i], row[i] >= 0);
                all.each([&](int i, int c) { all.sums[i][c] += more[i][c]; });
            }
            end_outputs<End>(arena, op.product, row, own.column, all, Piece<PIECE>(), [&](int i, const float (&output)[PIECE]) {
                if constexpr (PIECE == 4) store_copy(arena, op.packed, at[i], operands, output);
            });
            if constexpr (PIECE == 4) {
                if (!std::is_same_v<End, Backward> && op.loss.kind != NOTHING) follow(arena, op.loss, operands, row, at, all.output);
                if (op.gram.columns > 0) {
#pragma unroll
                    for (u32 i = 0; i < ENDED; ++i) {
                        if (row[i] >= 0) store_piece(ended_piece(of, shared, own.row(start + i)), all.output[i]);
                    }
                }
            }
        }
    });
    if constexpr (PIECE == 4) {
        if (op.gram.columns > 0) gram_of_ended<History>(arena, of, op.gram, shared, last);
    }
}

#define FINISH(name, End)                                                  \
    KERNEL(name, Finish) {                                                 \
        SHARED(Coefficients, shared);                                      \
        SHARED(u32, last);                                                 \
        if (op.corrections.piece != 4) {                                   \
            finish_pieces<End, Plain<1>>(arena, op, shared, last);         \
        } else if (op.history == AS_BF16) {                                \
            finish_pieces<End, CopiedBf16>(arena, op, shared, last);       \
        } else if (op.history == AS_F16) {                                 \
            finish_pieces<End, CopiedF16>(arena, op, shared, last);        \
        } else {                                                           \
            finish_pieces<End, Plain<4>>(arena, op, shared, last);         \
        }                                                                  \
    }

// Grid: that of `apply_corrections`.
FINISH(finish_forward, Forward)
FINISH(finish_backward, Backward)
FINISH(finish_adjoint, Adjoint)
