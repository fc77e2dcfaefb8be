// Matrix products on the tensor cores. Everything is stored as f32; operands are rounded to tf32, bf16 or f16 as they are
// multiplied, and sums are f32.
//
// A stage is 16 of the inner dimension. Its two tiles travel as they are, by asynchronous copies, while the stages before it are
// multiplied: 16 bytes a copy where rows are aligned so, else 4. Whatever lies outside an operand is 0 in shared memory. The order
// of every sum depends on the shapes alone.
//
// Of a stage, lane 4g + t multiplies the inner elements 4t..4t+3 of its rows: an instruction may take the inner dimension in any
// order that both operands share, and in this one a lane's elements lie together. No two lanes of a load meet in a bank.
#pragma once

#include "mma.cuh"
#include "pieces.cuh"
#include "tile.cuh"

// What operands are rounded to: `MatrixPrecision` in src/device/cuda/tensor.rs.
enum Rounding : u32 { AS_F32, AS_TF32, AS_BF16, AS_F16 };

// Whether rows of `stride` numbers from `base` on can be copied by 16 bytes.
__device__ inline bool by_16_bytes(const float* base, u32 stride) { return (u64)base % 16 == 0 && stride % 4 == 0; }

// Two numbers in 16 bits: `Rounding`, AS_BF16 or AS_F16.
__device__ inline u32 round_pair(u32 operands, float lower, float upper) {
    return operands == AS_BF16 ? round_bf16(lower, upper) : round_f16(lower, upper);
}

// Eight consecutive numbers in 16 bits, to the nearest with ties to even; of them `count` are there, the others are 0.
__device__ inline uint4 pack_eight(const float* from, u32 count, bool wide, u32 operands) {
    float v[8];
    if (wide && count >= 8) {
        *(float4*)&v[0] = *(const float4*)from;
        *(float4*)&v[4] = *(const float4*)(from + 4);
    } else {
#pragma unroll
        for (u32 i = 0; i < 8; ++i) v[i] = i < count ? from[i] : 0.0f;
    }
    u32 pair[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) pair[i] = round_pair(operands, v[2 * i], v[2 * i + 1]);
    return {pair[0], pair[1], pair[2], pair[3]};
}

// Stores a copy of four numbers, number `at` and those behind it, if there is one; `packed` is where it begins, in numbers of 32 bits.
__device__ inline void store_copy(float* arena, u64 packed, u64 at, u32 operands, const float (&from)[4]) {
    if (packed == NOWHERE) return;
    u32 lower = round_pair(operands, from[0], from[1]), upper = round_pair(operands, from[2], from[3]);
    *(u64*)((u32*)arena + packed + at / 2) = lower | (u64)upper << 32;
}

// The thread's numbers in 16 bits.
__device__ inline void store_packed(const Span& span, float* to, u32 operands, const float (&from)[OWN]) {
    span.store_pairs((u32*)to, from, [&](float lower, float upper) { return round_pair(operands, lower, upper); });
}

// One operand, OUTER of its outer dimension a tile, whose inner dimension lies contiguous: element (row, k) at
// `base[row * depth + k]`. In the tile at `row * DEPTH + k`.
template <int OUTER>
struct InnerMajor {
    const float* base;
    u32 depth;
    // The row that the tile's first is; there is none before 0.
    int first;
    int rows;
    bool wide;

    __device__ InnerMajor(const float* base, u32 depth, int first, u32 rows)
        : base(base), depth(depth), first(first), rows(rows), wide(by_16_bytes(base, depth)) {}

    template <int CHUNK>
    __device__ void fetch_by(float* tile, u32 start) const {
        constexpr int CHUNKS = OUTER * DEPTH / CHUNK;
#pragma unroll 4
        for (int begin = 0; begin < CHUNKS; begin += THREADS) {
            int i = begin + threadIdx.x;
            if (CHUNKS % THREADS != 0 && i >= CHUNKS) break;
            int row = first + i * CHUNK / DEPTH;
            u32 k = start + i * CHUNK % DEPTH;
            bool inside = row >= 0 && row < rows && k < depth;
            copy_async<CHUNK>(tile + i * CHUNK, inside ? base + (u64)row * depth + k : base, inside);
        }
    }

    __device__ static float4 four(const float* tile, int row, int t) { return *(const float4*)(tile + row * DEPTH + 4 * t); }
};

// The same where the outer dimension lies contiguous: element (column, k) at `base[k * columns + column]`. In the tile the
// columns of row k are permuted in groups of 8, so that the rows that lanes read at once lie in different banks.
template <int OUTER>
struct OuterMajor {
    static_assert(OUTER % 32 == 0, "the permutation is of 32 columns");
    const float* base;
    u32 depth;
    u32 first;
    u32 columns;
    bool wide;

    __device__ OuterMajor(const float* base, u32 depth, u32 first, u32 columns)
        : base(base), depth(depth), first(first), columns(columns), wide(by_16_bytes(base, columns)) {}

    __device__ static int place(int column, int k) { return k * OUTER + (column ^ k / 4 * 8); }

    template <int CHUNK>
    __device__ void fetch_by(float* tile, u32 start) const {
        constexpr int CHUNKS = OUTER * DEPTH / CHUNK;
#pragma unroll 4
        for (int begin = 0; begin < CHUNKS; begin += THREADS) {
            int i = begin + threadIdx.x;
            if (CHUNKS % THREADS != 0 && i >= CHUNKS) break;
            int row = i * CHUNK / OUTER, column = i * CHUNK % OUTER;
            bool inside = first + column < columns && start + row < depth;
            const float* from = base + (u64)(start + row) * columns + first + column;
            copy_async<CHUNK>(tile + place(column, row), inside ? from : base, inside);
        }
    }

    __device__ static float4 four(const float* tile, int column, int t) {
        const float* from = tile + place(column, 4 * t);
        return {from[0], from[OUTER], from[2 * OUTER], from[3 * OUTER]};
    }
};

template <class Operand>
__device__ inline void fetch(const Operand& operand, float* tile, u32 start) {
    if (operand.wide) {
        operand.template fetch_by<4>(tile, start);
    } else {
        operand.template fetch_by<1>(tile, start);
    }
}

// Four numbers of a row as instructions take them, and the product of two rows of A, 8 apart, with a row of B.
template <auto ROUND, auto MULTIPLY>
struct Pairs {
    u32 pair[2];

    Pairs() = default;
    __device__ explicit Pairs(float4 v) : pair{ROUND(v.x, v.y), ROUND(v.z, v.w)} {}

    __device__ static void multiply(float (&d)[4], const Pairs& upper, const Pairs& lower, const Pairs& right) {
        u32 a[4] = {upper.pair[0], lower.pair[0], upper.pair[1], lower.pair[1]};
        MULTIPLY(d, a, right.pair);
    }
};
using Bf16 = Pairs<round_bf16, mma_bf16>;
using F16 = Pairs<round_f16, mma_f16>;

struct Tf32 {
    u32 number[4];

    Tf32() = default;
    __device__ explicit Tf32(float4 v) : number{round_tf32(v.x), round_tf32(v.y), round_tf32(v.z), round_tf32(v.w)} {}

    __device__ static void multiply(float (&d)[4], const Tf32& upper, const Tf32& lower, const Tf32& right) {
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
            u32 a[4] = {upper.number[i], lower.number[i], upper.number[i + 1], lower.number[i + 1]};
            u32 b[2] = {right.number[i], right.number[i + 1]};
            mma_tf32(d, a, b);
        }
    }
};

// What one thread holds of a tile of outputs; DOWN of the block's warps lie along the rows, each with equal parts of both
// dimensions.
template <int TILE_ROWS_, int TILE_COLUMNS_, int DOWN, int STAGES_>
struct Fragments {
    static constexpr int TILE_ROWS = TILE_ROWS_, TILE_COLUMNS = TILE_COLUMNS_, STAGES = STAGES_;
    static constexpr int ACROSS = WARPS / DOWN;
    // Products of a warp in each dimension, and the outputs that a thread holds of them.
    static constexpr int SLABS = TILE_ROWS / DOWN / 16, STRIPS = TILE_COLUMNS / ACROSS / 8;
    static_assert(SLABS * 16 * DOWN == TILE_ROWS && STRIPS * 8 * ACROSS == TILE_COLUMNS, "whole products");

    // The tile is handed over by so many of its slabs at once; the padding spreads the stores of a warp over the banks.
    static constexpr int PASS = TILE_ROWS < 128 ? SLABS : SLABS / 2, PITCH = TILE_COLUMNS + 8;

    struct Operands {
        float left[STAGES][TILE_ROWS * DEPTH];
        float right[STAGES][TILE_COLUMNS * DEPTH];
    };
    union alignas(16) Shared {
        Operands operands;
        float outputs[DOWN * PASS * 16][PITCH];
    };
    static_assert(sizeof(Shared) <= 48 << 10, "more is there only for who asks the driver");

    float part[SLABS][STRIPS][4] = {};

    // Of the warp.
    __device__ static int first_row() { return threadIdx.x / 32 / ACROSS * SLABS * 16; }
    __device__ static int first_column() { return threadIdx.x / 32 % ACROSS * STRIPS * 8; }

    // Adds the product of one stage's tiles.
    template <class Numbers, class Left, class Right>
    __device__ void add(const float* left, const float* right, float scale) {
        int lane_row = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
        Numbers rows[2 * SLABS];
#pragma unroll
        for (int i = 0; i < 2 * SLABS; ++i) {
            float4 v = Left::four(left, first_row() + i * 8 + lane_row, t);
            rows[i] = Numbers(float4{scale * v.x, scale * v.y, scale * v.z, scale * v.w});
        }
#pragma unroll
        for (int strip = 0; strip < STRIPS; ++strip) {
            Numbers columns(Right::four(right, first_column() + strip * 8 + lane_row, t));
#pragma unroll
            for (int slab = 0; slab < SLABS; ++slab) {
                Numbers::multiply(part[slab][strip], rows[2 * slab], rows[2 * slab + 1], columns);
            }
        }
    }

    // As that of `Micro`, whole rows to a warp, by way of shared memory: so that their accesses are of successive numbers.
    template <class Take>
    __device__ void each_row(Shared& shared, Take take) const {
        int warp_row = threadIdx.x / 32 / ACROSS * PASS * 16 + threadIdx.x % 32 / 4;
        int column = first_column() + threadIdx.x % 4 * 2;
#pragma unroll
        for (int pass = 0; pass < SLABS; pass += PASS) {
            __syncthreads();
#pragma unroll
            for (int slab = 0; slab < PASS; ++slab) {
#pragma unroll
                for (int strip = 0; strip < STRIPS; ++strip) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        float* to = &shared.outputs[warp_row + slab * 16 + i / 2 * 8][column + strip * 8 + i % 2];
                        *to = part[pass + slab][strip][i];
                    }
                }
            }
            __syncthreads();
#pragma unroll 1
            for (int row = threadIdx.x / 32; row < DOWN * PASS * 16; row += WARPS) {
                take(row / (PASS * 16) * SLABS * 16 + pass * 16 + row % (PASS * 16), [&](auto take) {
#pragma unroll
                    for (int n = 0; n < TILE_COLUMNS; n += 32) {
                        take(n + threadIdx.x % 32, shared.outputs[row][n + threadIdx.x % 32]);
                    }
                });
            }
        }
    }
};

// By the rows of the output: few, some, many.
using Tile16x64 = Fragments<16, 64, 1, 4>;
using Tile64x64 = Fragments<64, 64, 2, 4>;
using Tile128x128 = Fragments<128, 128, 2, 3>;

// Adds a sequence of stages: `work.stages()` of them, each fetched and then, in the same order, multiplied.
template <class Numbers, class Tile, class Work>
__device__ inline void multiply_stages(Tile& tile, typename Tile::Operands& shared, Work& work) {
    constexpr int AHEAD = Tile::STAGES - 1;
    int stages = work.stages();
    int fetching = 0, multiplying = 0;
    auto next = [](int stage) { return stage + 1 == Tile::STAGES ? 0 : stage + 1; };
#pragma unroll 1
    for (int step = -AHEAD; step < stages; ++step) {
        if (step >= 0) {
            await_copies<AHEAD - 1>();
            // Everyone's copies of this stage are there, and everyone has done with the one that is fetched into next.
            __syncthreads();
        }
        if (step + AHEAD < stages) work.fetch(shared.left[fetching], shared.right[fetching]);
        fetching = next(fetching);
        // An empty group too, so that the count of those that may be pending holds at the end.
        end_copies();
        if (step >= 0) {
            work.template multiply<Numbers>(tile, shared.left[multiplying], shared.right[multiplying]);
            multiplying = next(multiplying);
        }
    }
}

template <class Tile, class Work>
__device__ inline void multiply_stages_as(u32 operands, Tile& tile, typename Tile::Operands& shared, Work& work) {
    switch (operands) {
    case AS_TF32:
        return multiply_stages<Tf32>(tile, shared, work);
    case AS_BF16:
        return multiply_stages<Bf16>(tile, shared, work);
    default:
        return multiply_stages<F16>(tile, shared, work);
    }
}
