// As hopper_outer.cu, of rows whose copies in bf16 are there already: both operands are multiplied as they lie, and nothing is packed.

#include "hopper_outer.cuh"
#include "tensor.cuh"

// Of one launch: as many as arguments of 4 KB hold.
constexpr int COPIED_TERMS = 14;

struct CopiedTerm {
    u32 rows;
    float bias;
    // Not 0.
    float scale;
    u32 unused;
};

struct HopperCopied {
    TensorMap p[COPIED_TERMS];
    TensorMap q[COPIED_TERMS];
    CopiedTerm terms[COPIED_TERMS];
    u64 partials;
    u32 count;
    u32 inputs;
    u32 outputs;
    u32 unused[3];
};
static_assert(sizeof(HopperCopied) == 3840, "mirrored in Rust");

using Copied128x128 = OuterTile<128, 128 / PANEL, 6>;
using Copied128x256 = OuterTile<256, 128 / PANEL, 4>;
static_assert(Copied128x128::SHARED_BYTES == 197728 && Copied128x256::SHARED_BYTES == 197696, "mirrored in Rust");

#ifdef WARPGROUPS

// Has every stage of the block's part copied.
template <class Tile>
__device__ inline void produce_copied(typename Tile::Shared& shared, const HopperCopied& op, const Part& part) {
    int row = blockIdx.x * Tile::ROWS, column = blockIdx.y * Tile::COLUMNS;
    Turn<Tile::STAGES> turn;
    Cursor<PANEL> at(op.terms, part.first);
#pragma unroll 1
    for (u32 stage = 0; stage < part.count; ++stage, turn.next(), at.row += PANEL) {
        at.settle(op.terms);
        await_phase(shared.empty[turn.stage], turn.parity ^ 1);
        Barrier& full = shared.full[turn.stage];
        arrive_expecting(full, (Tile::LEFT + Tile::RIGHT) * PANEL_BYTES);
        for (int i = 0; i < Tile::LEFT; ++i) {
            copy_tile(shared.left[turn.stage][i], op.p[at.term], row + i * PANEL, at.row, full);
        }
        for (int i = 0; i < Tile::RIGHT; ++i) {
            copy_tile(shared.right[turn.stage][i], op.q[at.term], column + i * PANEL, at.row, full);
        }
    }
}

// Adds the sums of two columns over 16 of a tile's rows: lane by lane, and warp by warp.
__device__ inline void add_columns(float (&total)[2], const unsigned char* tile) {
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
#pragma unroll
    for (u32 i = 0; i < PANEL / 4; ++i) {
        u32 row = warp * (PANEL / 4) + i, piece = lane / 4 ^ row % 8;
        float2 pair = pair_of_bf16(*(const u32*)(tile + row * ROW_BYTES + piece * 16 + lane % 4 * 4));
        total[0] += pair.x;
        total[1] += pair.y;
    }
}

template <class Tile>
__device__ inline void consume_copied(OuterSums<Tile>& sums, typename Tile::Shared& shared, const HopperCopied& op,
                                      const Part& part, int consumer) {
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    float bias[2] = {}, scale = 1.0f;
    Turn<Tile::STAGES> turn;
    Cursor<PANEL> at(op.terms, part.first);
#pragma unroll 1
    for (u32 left = part.count; left > 0;) {
        const CopiedTerm& term = at.settle(op.terms);
        u32 stages = min((term.rows - at.row + PANEL - 1) / PANEL, left);
        float change = scale / term.scale;
        scale = term.scale;
#pragma unroll
        for (float& sum : sums.d) sum *= change;
        bool biased = blockIdx.y == 0 && term.bias != 0.0f;
        float total[2] = {};
        int before = 0;
#pragma unroll 1
        for (u32 stage = 0; stage < stages; ++stage, turn.next()) {
            await_phase(shared.full[turn.stage], turn.parity);
            const unsigned char* tile = shared.left[turn.stage][consumer];
            u64 p = describe(shared_address(tile), true), q = describe(shared_address(shared.right[turn.stage]), true);
            begin_products(sums.d);
#pragma unroll
            for (int k = 0; k < PANEL / 16; ++k) {
                multiply_bf16<true, true>(sums.d, p + k * step_of(true), q + k * step_of(true), true);
            }
            end_products();
            if (biased) add_columns(total, tile);
            // The stage before is multiplied, so its room is free.
            await_products<1>(sums.d);
            if (stage > 0) give_back(shared.empty[before]);
            before = turn.stage;
        }
        await_products<0>(sums.d);
        give_back(shared.empty[before]);
#pragma unroll
        for (int i = 0; i < 2; ++i) bias[i] += term.bias * term.scale * total[i];
        at.row += stages * PANEL;
        left -= stages;
    }
#pragma unroll
    for (float& sum : sums.d) sum *= scale;
    // The warps' shares of the bias, where nothing comes any more: only this consumer reads there.
    auto& shares = *(float(*)[4][PANEL])shared.left[0][consumer];
    await_warpgroup(consumer);
    *(float2*)&shares[warp][2 * lane] = float2{bias[0], bias[1]};
    await_warpgroup(consumer);
    // As the lanes hold the weight's rows, of four the first.
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
        u32 row = warp * 16 + lane / 4 + 8 * half;
        float sum = 0.0f;
#pragma unroll
        for (u32 other = 0; other < 4; ++other) sum += shares[other][row];
        sums.bias[half] = lane % 4 == 0 ? sum : 0.0f;
    }
}

#endif

// Grid: x the tiles of outputs, y those of inputs, z the parts of the sum.
template <class Tile>
__device__ inline void hopper_copied(float* arena, const HopperCopied& op, typename Tile::Shared& shared) {
#ifdef WARPGROUPS
    if (threadIdx.x < op.count) {
        prefetch_map(op.p[threadIdx.x]);
        prefetch_map(op.q[threadIdx.x]);
    }
    sum_outer<Tile>(
        arena, op, shared, [&](const Part& part) { produce_copied<Tile>(shared, op, part); },
        [&](OuterSums<Tile>& sums, const Part& part, int consumer) { consume_copied<Tile>(sums, shared, op, part, consumer); });
#endif
}

KERNEL_OF(hopper_copied_128x128, HopperCopied, Copied128x128::BLOCK_THREADS, 1) {
    SHARED_FROM_1024(Copied128x128::Shared, shared);
    hopper_copied<Copied128x128>(arena, op, shared);
}

KERNEL_OF(hopper_copied_128x256, HopperCopied, Copied128x256::BLOCK_THREADS, 1) {
    SHARED_FROM_1024(Copied128x256::Shared, shared);
    hopper_copied<Copied128x256>(arena, op, shared);
}
