// Products on Hopper's warpgroups, D [columns, rows] = A [columns, depth] B [rows, depth]^T, both operands packed to 16 bits.
//
// The rows of a network's products are often few and its widths are not, so it is the columns that take the instruction's fixed
// side of 64, and the rows the one that varies. One warpgroup, of which one thread, has the tiles of a stage (64 of the inner
// dimension) copied as soon as their room is free; the others multiply, 64 columns each. A block goes from tile to tile, and
// copies for the next one while the present one is finished. The order of every sum depends on the depth alone.
#pragma once

#include "wgmma.cuh"

template <int COLUMNS_, int ROWS_, int STAGES_, int BLOCKS_>
struct HopperTile {
    static constexpr int COLUMNS = COLUMNS_, ROWS = ROWS_, STAGES = STAGES_;
    // Blocks that a multiprocessor is to hold.
    static constexpr int BLOCKS = BLOCKS_;
    static constexpr int CONSUMERS = COLUMNS / PANEL;
    // Of a consumer's thread, when the warpgroup that copies has left what it does not need.
    static constexpr int REGISTERS = CONSUMERS == 1 ? 216 : 232;
    static constexpr int BLOCK_THREADS = 128 * (CONSUMERS + 1);
    // Rows that a warp hands over at once; the padding spreads its stores over the banks.
    static constexpr int HANDED = 32, PITCH = 20;
    static constexpr u32 STAGE_BYTES = (COLUMNS + ROWS) / PANEL * PANEL_BYTES;

    struct Shared {
        unsigned char left[STAGES][COLUMNS / PANEL][PANEL_BYTES];
        unsigned char right[STAGES][ROWS / PANEL][PANEL_BYTES];
        float outputs[4 * CONSUMERS][HANDED][PITCH];
        Barrier full[STAGES];
        Barrier empty[STAGES];
    };
    // With room to begin at a multiple of 1024.
    static constexpr int SHARED_BYTES = sizeof(Shared) + 1024;
};
using Hopper64x64 = HopperTile<64, 64, 6, 2>;
using Hopper128x128 = HopperTile<128, 128, 6, 1>;
using Hopper128x256 = HopperTile<128, 256, 4, 1>;

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

// The tiles of [rows, columns], in the order that blocks take them: bands of a few rows of tiles, so that the blocks of one time
// share what they read.
template <class Tile>
struct Tiling {
    static constexpr u32 BAND = 8;
    u32 down, across;

    __device__ Tiling(u32 rows, u32 columns)
        : down((rows + Tile::ROWS - 1) / Tile::ROWS), across((columns + Tile::COLUMNS - 1) / Tile::COLUMNS) {}

    __device__ u32 count() const { return down * across; }
    __device__ void place(u32 tile, u32& row, u32& column) const {
        u32 band = tile / (BAND * across), within = tile % (BAND * across);
        u32 height = min(BAND, down - band * BAND);
        row = (band * BAND + within % height) * Tile::ROWS;
        column = within / height * Tile::COLUMNS;
    }
};

// The stages of one part of the inner dimension, of which each has one at least.
struct Stretch {
    u32 begin, end;

    __device__ Stretch(u32 part, u32 parts, u32 stages) : begin(part * stages / parts), end((part + 1) * stages / parts) {}
};

#ifdef WARPGROUPS

#define MULTIPLY(type)                                                          \
    struct Multiply_##type {                                                    \
        template <bool A_OUTER, bool B_OUTER, int N>                            \
        __device__ static void add(float (&d)[N], u64 a, u64 b, bool add) {     \
            multiply_##type<A_OUTER, B_OUTER>(d, a, b, add);                    \
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
    prefetch_map(left);
    prefetch_map(right);
#pragma unroll 1
    for (u32 item = blockIdx.x; item < tiling.count() * parts; item += gridDim.x) {
        u32 row, column;
        tiling.place(item % tiling.count(), row, column);
        Stretch here(item / tiling.count(), parts, stages);
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
            for (int i = 0; i < Tile::ROWS / PANEL; ++i) {
                copy_panel<false>(shared.right[turn.stage][i], right, (int)(row + i * PANEL) - (int)first, inner, full);
            }
        }
    }
}

// Lets the next copy into a stage begin; every warp of the consumers does.
__device__ inline void give_back(Barrier& empty) {
    if (threadIdx.x % 32 == 0) arrive(empty);
}

// d = the product of one tile.
template <class Multiply, class Tile, bool LEFT_OUTER>
__device__ inline void consume(typename Tile::Shared& shared, float (&d)[Tile::ROWS / 2], Turn<Tile::STAGES>& turn, int consumer,
                               u32 stages) {
    int before = 0;
#pragma unroll 1
    for (u32 stage = 0; stage < stages; ++stage, turn.next()) {
        await_phase(shared.full[turn.stage], turn.parity);
        u64 left = describe(shared_address(shared.left[turn.stage][consumer]), LEFT_OUTER);
        u64 right = describe(shared_address(shared.right[turn.stage]), false);
        begin_products();
#pragma unroll
        for (int k = 0; k < PANEL / 16; ++k) {
            Multiply::template add<LEFT_OUTER, false>(d, left + k * step_of(LEFT_OUTER), right + k * step_of(false),
                                                      stage > 0 || k > 0);
        }
        end_products();
        // The stage before is multiplied, so its room is free.
        await_products<1>();
        if (stage > 0) give_back(shared.empty[before]);
        before = turn.stage;
    }
    await_products<0>();
    give_back(shared.empty[before]);
}

// Hands over what a warp holds of a tile, by way of shared memory: to each lane four columns of every eighth row, HANDED rows at a
// time. `take(row, column, sums)`: the first of its rows and columns in the tile, and the sums, row by row.
template <class Tile, class Take>
__device__ inline void hand_over(float (&outputs)[Tile::HANDED][Tile::PITCH], const float (&d)[Tile::ROWS / 2], Take take) {
    int lane = threadIdx.x % 32, row = lane / 4, column = lane % 4 * 4;
    // What is done with them is not repeated in the code, or fetching it would take longer than doing it.
#pragma unroll 1
    for (int first = 0; first < Tile::ROWS; first += Tile::HANDED) {
        // Whole, because registers are not to be indexed.
#pragma unroll
        for (int here = 0; here < Tile::ROWS; here += Tile::HANDED) {
            if (here != first) continue;
#pragma unroll
            for (int i = 0; i < Tile::HANDED / 2; ++i) {
                outputs[i / 4 * 8 + lane % 4 * 2 + i % 2][lane / 4 + i / 2 % 2 * 8] = d[here / 2 + i];
            }
        }
        __syncwarp();
        alignas(16) float sums[Tile::HANDED / 8][4];
#pragma unroll
        for (int i = 0; i < Tile::HANDED / 8; ++i) *(float4*)sums[i] = *(const float4*)&outputs[row + 8 * i][column];
        __syncwarp();
        take(first + row, column, sums);
    }
}

#endif
