// Ends what Hopper's products have left as sums, or takes rows as they are: adds the parts of the inner dimension and the
// corrections, and does what their own ends would. It leaves a copy in 16 bits where the outputs are rows of a product to come, and
// goes on with the loss and the inner products that are asked for next, while the rows are at hand.

#include "ended.cuh"
#include "ends.cuh"
#include "history.cuh"

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
    // Whether the steps' rows are copies in bf16.
    u32 copied;
    // Numbers of shared memory, see `Staged`.
    u32 staged;
    // Whether what the loss reads is the gate's values, row by row.
    u32 loss_of_gate;
};
static_assert(sizeof(Finish) == 3976, "mirrored in Rust");

// What is read beside the sums, but for a bias, is on its way to shared memory while the corrections are added up: for each row of
// the group the parts of the sums, the gate's values, delta and what the loss reads, in this order, the block's columns. A lane
// copies what it reads itself.
struct Staged {
    float* room;
    // From one row to the next, and from one thing to the next.
    u32 row_stride, stride;
    u32 gate, delta, loss;

    // The lane's piece of thing `thing`, in row `row` of the group.
    __device__ float* piece(const Corrections& of, u32 thing, u32 row) const {
        return room + thing * stride + row * row_stride + (threadIdx.x / 32 >> of.spread) * 128 + threadIdx.x % 32 * 4;
    }
};

template <class End>
struct Ending {
    static constexpr bool FORWARD = std::is_same_v<End, Forward>, ADJOINT = std::is_same_v<End, Adjoint>;

    float* arena;
    const Finish& op;
    const Corrections& of;
    const Product& product;
    Staged staged;
    // Whether a gate's values and delta are read; whether a loss follows, and reads more than these.
    bool gated, curved, follows, reads;
    u64 part;

    __device__ Ending(float* arena, const Finish& op, float* room)
        : arena(arena), op(op), of(op.corrections), product(op.product),
          gated(is_gated<End>(op.product)), curved(is_curved<End>(op.product)),
          follows(op.loss.kind != NOTHING), reads(follows && beside_loss() != NOWHERE),
          part((u64)op.product.group_rows * op.product.blocks * op.product.width) {
        u32 columns = (WARPS >> of.spread) * 128;
        u32 gate = op.parts, delta = gate + gated;
        staged = {room, columns, min(of.rows, GROUP) * columns, gate, delta, op.loss_of_gate ? gate : delta + curved};
    }

    // The output's row, and that of its gate's values.
    __device__ u32 row(const OwnRows& own, u32 within) const { return (own.block * of.tasks + own.task) * of.rows + own.first + within; }
    __device__ u64 gate_row(const OwnRows& own, u32 row) const {
        const Gate& gate = product.gate;
        if (of.tasks * of.rows != gate.block_rows) return gate.row(row);
        return gate.block[own.block] * gate.block_rows + row - own.block * gate.block_rows;
    }
    __device__ u64 beside_loss() const { return op.loss.kind >= MSE_CURVATURE ? op.loss.prediction : op.loss.target; }

    __device__ void stage(const OwnRows& own) const {
        if (own.column >= of.width) return;
#pragma unroll 1
        for (u32 k = 0; own.row(k) < own.rows; ++k) {
            u32 within = own.row(k), row = this->row(own, within);
            u64 at = (u64)row * of.width + own.column;
            auto copy = [&](u32 thing, u64 from) { copy_async<4>(staged.piece(of, thing, within), arena + from, true); };
#pragma unroll 1
            for (u32 p = 0; p < op.parts; ++p) copy(p, op.raw + p * part + at);
            if (gated) copy(staged.gate, product.gate.values + gate_row(own, row) * of.width + own.column);
            if (curved) copy(staged.delta, product.delta + at);
            if (reads && !op.loss_of_gate) copy(staged.loss, beside_loss() + at);
        }
    }

    // Ends the warp's rows in turn, by the same code: there is too much of it to be fetched for each. Their corrections are where
    // `own_piece` has them.
    template <u32 ACTIVATION, u32 PIECE, bool COPIED>
    __device__ void rows(const OwnRows& own, Coefficients& shared) const {
        const Source& source = product.sources[0];
        bool here = PIECE == 4 && op.staged > 0, biased = FORWARD && source.bias != NOWHERE;
        Outputs<1, PIECE> all = {};
        load_piece_or_zero(all.bias, arena + source.bias + own.column, biased);
        all.share = share_of(arena, product);
        u32 row = this->row(own, own.part), parts = 1u << own.spread;
        u64 at = (u64)row * of.width + own.column, gate_at = gated ? gate_row(own, row) * of.width + own.column : 0;
        // Within a group both go on from row to row: those of one block are one after the other, and gated by such.
        u32 step = parts * of.width;
#pragma unroll 1
        for (u32 within = own.part; within < own.rows; within += parts, row += parts, at += step, gate_at += step) {
            auto load = [&](float (&to)[PIECE], u32 thing, u64 from) {
                load_piece(to, here ? staged.piece(of, thing, within) : arena + from);
            };
            float* piece = own_piece<PIECE>(of, shared, within);
            load_piece(all.added[0], piece);
            load_piece_or_zero(all.sums[0], here ? staged.piece(of, 0, within) : arena + op.raw + at, op.parts > 0);
#pragma unroll 1
            for (u32 p = 1; p < op.parts; ++p) {
                float more[PIECE];
                load(more, p, op.raw + p * part + at);
                all.each([&](int i, int c) { all.sums[i][c] += more[c]; });
            }
            all.biased[0] = biased && row - source.first < source.rows;
            if (gated) {
                if (of.tasks * of.rows != product.gate.block_rows) gate_at = gate_row(own, row) * of.width + own.column;
                load(all.gate[0], staged.gate, product.gate.values + gate_at);
            }
            if (curved) load(all.delta[0], staged.delta, product.delta + at);
            float* output = arena + product.output + at;
            all.each([&](int i, int c) { all.output[i][c] = 0.0f; });
            if (product.begun) {
                load_piece(all.output[0], output);
                // What a forward or an adjoint output holds already goes into the activation too.
                if (FORWARD || ADJOINT) all.each([&](int i, int c) { all.added[i][c] += all.output[i][c]; });
            }
            all.template end_by<ACTIVATION>((End*)nullptr);
            if (curved) store_piece(arena + product.z + gate_at, all.delta[0]);
            if (product.output != NOWHERE) store_piece(output, all.output[0]);
            if constexpr (PIECE == 4) {
                store_copy(arena, op.packed, at, product.operands, all.output[0]);
                if ((FORWARD || ADJOINT) && follows) {
                    const float* beside = nullptr;
                    if (reads) beside = here ? staged.piece(of, staged.loss, within) : arena + beside_loss() + at;
                    follow<ACTIVATION>(arena, op.loss, product.operands, at, beside, all.output[0]);
                }
                if constexpr (COPIED) leave_ended(piece, all.output[0]);
            }
        }
    }
};

template <class End, u32 PIECE, bool COPIED>
__device__ inline void finish_pieces(float* arena, const Finish& op, Coefficients& shared, float* room, u32& last) {
    const Ending<End> ending(arena, op, room);
    const Corrections& of = op.corrections;
    const OwnRows own(of, PIECE);
    if constexpr (PIECE == 4) {
        if (op.staged > 0) ending.stage(own);
        end_copies();
    }
    if constexpr (COPIED) {
        add_copied_corrections(arena, of, shared);
    } else {
        apply<PIECE>(arena, of, shared, [&](const OwnRows&, float (&sum)[GROUP][PIECE]) {
#pragma unroll
            for (u32 k = 0; k < GROUP; ++k) {
                if (own.row(k) < own.rows) store_piece(own_piece<PIECE>(of, shared, own.row(k)), sum[k]);
            }
        });
    }
    if constexpr (PIECE == 4) await_copies<0>();
    if (own.column < of.width) {
        choose(activation_of(op.product, (End*)nullptr), [&](auto chosen) {
            ending.template rows<decltype(chosen)::activation, PIECE, COPIED>(own, shared);
        });
    }
    if constexpr (COPIED) {
        if (op.gram.columns > 0) gram_of_ended(arena, of, op.gram, shared, last);
    }
}

#define FINISH(name, End)                                                      \
    KERNEL(name, Finish) {                                                     \
        SHARED(Coefficients, shared);                                          \
        SHARED(u32, last);                                                     \
        SHARED_NUMBERS(room, op.staged);                                       \
        if (op.corrections.piece != 4) {                                       \
            finish_pieces<End, 1, false>(arena, op, shared, room, last);       \
        } else if (op.copied) {                                                \
            finish_pieces<End, 4, true>(arena, op, shared, room, last);        \
        } else {                                                               \
            finish_pieces<End, 4, false>(arena, op, shared, room, last);       \
        }                                                                      \
    }

// Grid: that of `apply_corrections`.
FINISH(finish_forward, Forward)
FINISH(finish_backward, Backward)
FINISH(finish_adjoint, Adjoint)
