// Products on Hopper's warpgroups, D [columns, rows] = A [columns, depth] B [rows, depth]^T, both operands packed to 16 bits.
//
// The rows of a network's products are often few and its widths are not, so it is the columns that take the instruction's fixed
// side of 64, and the rows the one that varies. One warpgroup, of which one thread, has the tiles of a stage (64 of the inner
// dimension) copied as soon as their room is free; the others multiply, 64 columns each. A block goes from tile to tile, and
// copies for the next one while the present one is finished. The order of every sum depends on the depth alone.
#pragma once

#include "wgmma.cuh"

// Blocks of a cluster lie side by side: they have the same rows, of which each copies a share to all.
template <int COLUMNS_, int ROWS_, int STAGES_, int BLOCKS_, int SHARES_, int SLOTS_>
struct HopperTile {
    static constexpr int COLUMNS = COLUMNS_, ROWS = ROWS_, STAGES = STAGES_;
    // Blocks that a multiprocessor is to hold.
    static constexpr int BLOCKS = BLOCKS_;
    static constexpr int SHARES = SHARES_, SHARE = ROWS / SHARES;
    static_assert(SHARE % 8 == 0 && SHARE * SHARES == ROWS, "whole patterns of the swizzle");
    // Blocks of a cluster. One that is alone copies all shares itself, so does an emulated one.
#ifdef INNERLOOP_EMULATE
    static constexpr int TEAM = 1;
#else
    static constexpr int TEAM = SHARES;
#endif
    static constexpr int CONSUMERS = COLUMNS / PANEL;
    // Of a consumer's thread, when the warpgroup that copies has left what it does not need.
    static constexpr int REGISTERS = CONSUMERS == 1 ? 216 : 232;
    static constexpr int BLOCK_THREADS = 128 * (CONSUMERS + 1);
    // Outputs leave a consumer by pairs of tiles of so many rows, for which there is room so often.
    static constexpr int HANDED = 32, SLOTS = SLOTS_;
    static constexpr u32 STAGE_BYTES = (COLUMNS + ROWS) * ROW_BYTES;

    struct Shared {
        unsigned char left[STAGES][COLUMNS / PANEL][PANEL_BYTES];
        unsigned char right[STAGES][ROWS * ROW_BYTES];
        unsigned char outputs[CONSUMERS][SLOTS][2][HANDED * ROW_BYTES];
        Barrier full[STAGES];
        Barrier empty[STAGES];
    };
    // With room to begin at a multiple of 1024.
    static constexpr int SHARED_BYTES = sizeof(Shared) + 1024;
};

using Hopper64x64 = HopperTile<64, 64, 5, 2, 1, 2>;
using Hopper64x160 = HopperTile<64, 160, 6, 1, 1, 5>;
using Hopper128x128 = HopperTile<128, 128, 5, 1, 2, 4>;
using Hopper128x160 = HopperTile<128, 160, 5, 1, 1, 2>;
using Hopper128x256 = HopperTile<128, 256, 4, 1, 2, 2>;

// The stages' turn: which one, and the parity of its present phase.
template <int STAGES>
struct Turn {
    int stage = 0;
    u32 parity = 0;

    __device__ void next() {
        if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
};

#ifdef WARPGROUPS

// Which block of its cluster this is.
template <class Tile>
__device__ inline u32 rank() {
    return Tile::TEAM == 1 ? 0 : rank_in_cluster();
}

// The tiles of [rows, columns], in the order that blocks take them: bands of a few rows of tiles, so that the blocks of one time
// share what they read. Those of a cluster's blocks are one, of which `place` gives each its own.
template <class Tile>
struct Tiling {
    static constexpr u32 BAND = 8, WIDE = Tile::COLUMNS * Tile::TEAM;
    u32 down, across;

    __device__ Tiling(u32 rows, u32 columns)
        : down((rows + Tile::ROWS - 1) / Tile::ROWS), across((columns + WIDE - 1) / WIDE) {}

    __device__ u32 count() const { return down * across; }
    // Divisions are slow, and the first copy waits for them.
    __device__ void place(u32 tile, u32& row, u32& column) const {
        u32 band = down > BAND ? tile / (BAND * across) : 0, within = tile - band * BAND * across;
        u32 height = min(BAND, down - band * BAND), strip = within / height;
        row = (band * BAND + within - strip * height) * Tile::ROWS;
        column = strip * WIDE + rank<Tile>() * Tile::COLUMNS;
    }
};

// What a block does at a time: a part of a tile's inner dimension, of which each has one stage at least.
struct Item {
    u32 part, tile, begin, end;

    __device__ Item(u32 item, u32 tiles, u32 parts, u32 stages) : part(0), tile(item), begin(0), end(stages) {
        if (parts == 1) return;
        part = item / tiles;
        tile = item - part * tiles;
        begin = part * stages / parts;
        end = (part + 1) * stages / parts;
    }
};

#define MULTIPLY(type)                                                          \
    struct Multiply_##type {                                                    \
        template <bool A_OUTER, bool B_OUTER, int N>                            \
        __device__ static void add(float (&d)[N], u64 a, u64 b) {               \
            multiply_##type<A_OUTER, B_OUTER>(d, a, b, true);                   \
        }                                                                       \
    };
MULTIPLY(bf16)
MULTIPLY(f16)
#undef MULTIPLY

// Where an operand's tile lies: its place in the outer dimension and in the inner one.
template <bool OUTER>
__device__ inline void copy_panel(void* to, const TensorMap& map, int outer, int inner, Barrier& barrier) {
    copy_tile(to, map, OUTER ? outer : inner, OUTER ? inner : outer, barrier);
}

// Has every stage of every tile and part of the block copied. `first` is subtracted from rows: the first row of the operand's.
template <class Tile, bool LEFT_OUTER>
__device__ inline void produce(typename Tile::Shared& shared, const TensorMap& left, const TensorMap& right,
                               const Tiling<Tile>& tiling, u32 parts, u32 stages, u32 first) {
    Turn<Tile::STAGES> turn;
#pragma unroll 1
    for (u32 item = blockIdx.x / Tile::TEAM; item < tiling.count() * parts; item += gridDim.x / Tile::TEAM) {
        u32 row, column;
        Item here(item, tiling.count(), parts, stages);
        tiling.place(here.tile, row, column);
#pragma unroll 1
        for (u32 stage = here.begin; stage < here.end; ++stage, turn.next()) {
            // At first every stage is free: the phase before the first one counts as complete.
            await_phase(shared.empty[turn.stage], turn.parity ^ 1);
            Barrier& full = shared.full[turn.stage];
            arrive_expecting(full, Tile::STAGE_BYTES);
            int inner = stage * PANEL;
            for (int i = 0; i < Tile::COLUMNS / PANEL; ++i) {
                copy_panel<LEFT_OUTER>(shared.left[turn.stage][i], left, column + i * PANEL, inner, full);
            }
            for (int share = rank<Tile>(); share < Tile::SHARES; share += Tile::TEAM) {
                int at = share * Tile::SHARE;
                void* to = shared.right[turn.stage] + at * ROW_BYTES;
                if constexpr (Tile::TEAM == 1) {
                    copy_tile(to, right, inner, (int)row + at - (int)first, full);
                } else {
                    copy_tile_to_all<Tile::TEAM>(to, right, inner, (int)row + at - (int)first, full);
                }
            }
        }
    }
}

// Lets the next copies into a stage begin, of all blocks of the cluster; every warp of the consumers does.
template <int TEAM = 1>
__device__ inline void give_back(Barrier& empty) {
    if constexpr (TEAM == 1) {
        if (threadIdx.x % 32 == 0) arrive(empty);
    } else {
        if (threadIdx.x % 32 < TEAM) arrive_at(empty, threadIdx.x % 32);
    }
}

// Adds the product of one tile to d.
template <class Multiply, class Tile, bool LEFT_OUTER>
__device__ inline void consume(typename Tile::Shared& shared, float (&d)[Tile::ROWS / 2], Turn<Tile::STAGES>& turn, int consumer,
                               u32 stages) {
    int before = 0;
#pragma unroll 1
    for (u32 stage = 0; stage < stages; ++stage, turn.next()) {
        await_phase(shared.full[turn.stage], turn.parity);
        u64 left = describe(shared_address(shared.left[turn.stage][consumer]), LEFT_OUTER);
        u64 right = describe(shared_address(shared.right[turn.stage]), false);
        begin_products(d);
#pragma unroll
        for (int k = 0; k < PANEL / 16; ++k) {
            Multiply::template add<LEFT_OUTER, false>(d, left + k * step_of(LEFT_OUTER), right + k * step_of(false));
        }
        end_products();
        // The stage before is multiplied, so its room is free.
        await_products<1>(d);
        if (stage > 0) give_back<Tile::TEAM>(shared.empty[before]);
        before = turn.stage;
    }
    await_products<0>(d);
    give_back<Tile::TEAM>(shared.empty[before]);
}

#endif
