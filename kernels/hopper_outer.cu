// The weight gradient of many rows on Hopper's warpgroups: partial sums of scale * p^T [q, bias] over the terms.
//
// Both operands lie with the dimension of the sum outermost. q, in most layers the narrower one, is packed to 16 bits before, all
// terms in one matrix, each filled up with rows of 0 to whole stages of 64. To pack p would take as long as the product: the engine
// copies its numbers as they are, 32 columns where 64 numbers of 16 bits have room, and the consumers read the fragments of 64
// columns each, round them and multiply them from registers. In the engine's permutation no two lanes of a read meet in a bank.
//
// Operands are rounded before they are scaled, so it is the sums that are: rescaled from term to term, scaled in the end.

#include "hopper_outer.cuh"
#include "tensor.cuh"

struct HopperTerm {
    u64 q;
    u32 rows;
    float bias;
    // Not 0.
    float scale;
    u32 unused;
};

struct HopperOuter {
    // Of the terms' p: rows of `outputs` pairs of 16 bits.
    TensorMap p[HOPPER_TERMS];
    TensorMap q;
    HopperTerm terms[HOPPER_TERMS];
    u64 packed;
    u64 partials;
    u32 count;
    u32 inputs;
    u32 outputs;
    // `Rounding`: AS_BF16 or AS_F16.
    u32 operands;
    u32 unused[8];
};
static_assert(sizeof(HopperOuter) == 3840, "mirrored in Rust");

// Packs eight numbers of a row of q a thread. Grid: x the stages, y the pieces of one.
KERNEL(hopper_outer_pack, HopperOuter) {
    u32 pieces = (op.inputs + 7) / 8;
    u32 piece = blockIdx.y * THREADS + threadIdx.x;
    if (piece >= PANEL * pieces) return;
    Cursor<PANEL> at(op.terms, blockIdx.x);
    const HopperTerm& term = at.settle(op.terms);
    u32 row = at.row + piece / pieces, column = piece % pieces * 8;
    const float* from = arena + term.q + (u64)row * op.inputs + column;
    bool wide = by_16_bytes(arena + term.q, op.inputs);
    u32 count = row < term.rows ? op.inputs - column : 0;
    *(uint4*)(arena + op.packed + ((u64)blockIdx.x * PANEL * pieces + piece) * 4) = pack_eight(from, count, wide, op.operands);
}

// Columns of p that a tile of the engine's holds.
constexpr int HALF_PANEL = PANEL / 2;
using Outer128x128 = OuterTile<128, 128 / HALF_PANEL, 4>;
using Outer128x256 = OuterTile<256, 128 / HALF_PANEL, 3>;
static_assert(Outer128x128::SHARED_BYTES == 197696 && Outer128x256::SHARED_BYTES == 197680, "mirrored in Rust");

#ifdef WARPGROUPS

#define HELD(type)                                                                                            \
    struct Held_##type {                                                                                      \
        __device__ static u32 round(float lower, float upper) { return round_##type(lower, upper); }          \
        template <int N>                                                                                      \
        __device__ static void add(float (&d)[N], const u32 (&a)[4], u64 b) { multiply_held_##type<true>(d, a, b); } \
    };
HELD(bf16)
HELD(f16)
#undef HELD

// Has every stage of the block's part copied.
template <class Tile>
__device__ inline void produce_outer(typename Tile::Shared& shared, const HopperOuter& op, const Part& part) {
    int row = blockIdx.x * Tile::ROWS, column = blockIdx.y * Tile::COLUMNS;
    Turn<Tile::STAGES> turn;
    Cursor<PANEL> at(op.terms, part.first);
    prefetch_map(op.q);
#pragma unroll 1
    for (u32 stage = part.first; stage < part.first + part.count; ++stage, turn.next(), at.row += PANEL) {
        at.settle(op.terms);
        await_phase(shared.empty[turn.stage], turn.parity ^ 1);
        Barrier& full = shared.full[turn.stage];
        arrive_expecting(full, (Tile::LEFT + Tile::RIGHT) * PANEL_BYTES);
        for (int i = 0; i < Tile::LEFT; ++i) {
            copy_tile(shared.left[turn.stage][i], op.p[at.term], 2 * (row + i * HALF_PANEL), at.row, full);
        }
        for (int i = 0; i < Tile::RIGHT; ++i) {
            copy_tile(shared.right[turn.stage][i], op.q, column + i * PANEL, stage * PANEL, full);
        }
    }
}

template <class Numbers, class Tile>
__device__ inline void consume_outer(OuterSums<Tile>& sums, typename Tile::Shared& shared, const HopperOuter& op,
                                     const Part& part, int consumer) {
    int warp = threadIdx.x / 32 % 4, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    // Where columns g and g + 8 of rows 2t and 2t + 1 lie in a tile; those of the other rows lie whole groups of 8 behind.
    int place[2][2];
#pragma unroll
    for (int row = 0; row < 2; ++row) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            int piece = warp % 2 * 4 + half * 2 + g / 4;
            place[row][half] = (2 * t + row) * HALF_PANEL + (piece ^ (2 * t + row)) * 4 + g % 4;
        }
    }
    u32 a[2][4];
    float scale = 1.0f;
    Turn<Tile::STAGES> turn;
    Cursor<PANEL> at(op.terms, part.first);
#pragma unroll 1
    for (u32 left = part.count; left > 0;) {
        const HopperTerm& term = at.settle(op.terms);
        u32 stages = min((term.rows - at.row + PANEL - 1) / PANEL, left);
        float change = scale / term.scale;
        scale = term.scale;
#pragma unroll
        for (float& sum : sums.d) sum *= change;
        float total[2] = {};
        int before = 0;
#pragma unroll 1
        for (u32 stage = 0; stage < stages; ++stage, turn.next()) {
            await_phase(shared.full[turn.stage], turn.parity);
            const float* tile = (const float*)shared.left[turn.stage][consumer * 2 + warp / 2];
            u64 right = describe(shared_address(shared.right[turn.stage]), true);
#pragma unroll
            for (int k = 0; k < PANEL / 16; ++k) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const float* from = tile + (2 * k + i / 2) * 8 * HALF_PANEL;
                    float lower = from[place[0][i % 2]], upper = from[place[1][i % 2]];
                    a[k % 2][i] = Numbers::round(lower, upper);
                    total[i % 2] += lower + upper;
                }
                begin_products(sums.d);
                Numbers::add(sums.d, a[k % 2], right + k * step_of(true));
                end_products();
                // The product before has been, so that its registers are free, and with the first of a stage the room of the
                // stage before.
                await_products<1>(sums.d);
                if (k == 0 && stage > 0) give_back(shared.empty[before]);
            }
            before = turn.stage;
        }
        await_products<0>(sums.d);
        give_back(shared.empty[before]);
#pragma unroll
        for (int half = 0; half < 2; ++half) sums.bias[half] += term.bias * term.scale * total[half];
        at.row += stages * PANEL;
        left -= stages;
    }
#pragma unroll
    for (float& sum : sums.d) sum *= scale;
}

#endif

// Grid: x the tiles of outputs, y those of inputs, z the parts of the sum.
template <class Tile>
__device__ inline void hopper_outer(float* arena, const HopperOuter& op, typename Tile::Shared& shared) {
#ifdef WARPGROUPS
    if (threadIdx.x < op.count) prefetch_map(op.p[threadIdx.x]);
    sum_outer<Tile>(
        arena, op, shared, [&](const Part& part) { produce_outer<Tile>(shared, op, part); },
        [&](OuterSums<Tile>& sums, const Part& part, int consumer) {
            if (op.operands == AS_BF16) {
                consume_outer<Held_bf16, Tile>(sums, shared, op, part, consumer);
            } else {
                consume_outer<Held_f16, Tile>(sums, shared, op, part, consumer);
            }
        });
#endif
}

KERNEL_OF(hopper_outer_128x128, HopperOuter, Outer128x128::BLOCK_THREADS, 1) {
    SHARED_FROM_1024(Outer128x128::Shared, shared);
    hopper_outer<Outer128x128>(arena, op, shared);
}

KERNEL_OF(hopper_outer_128x256, HopperOuter, Outer128x256::BLOCK_THREADS, 1) {
    SHARED_FROM_1024(Outer128x256::Shared, shared);
    hopper_outer<Outer128x256>(arena, op, shared);
}
