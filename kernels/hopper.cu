// The products with shared weights on Hopper: those of linear.cu, of operands that pack.cu has packed, with the same ends.

#include "hopper.cuh"
#include "ends.cuh"
#include "tensor.cuh"

struct HopperProduct {
    TensorMap weight;
    TensorMap rows;
    // One group, and so one source, which has rows.
    Product product;
    // Where the sums of each part of the inner dimension go, [parts, rows, width], for another kernel to end; NOWHERE when this one
    // does.
    u64 raw;
    u32 parts;
};
static_assert(sizeof(HopperProduct) == 512, "mirrored in Rust");
static_assert(Hopper64x64::SHARED_BYTES == 109664 && Hopper128x128::SHARED_BYTES == 218208 &&
                  Hopper128x256::SHARED_BYTES == 218176,
              "mirrored in Rust");

// Four numbers, of which `count` are there: at once where they lie so.
struct Four {
    bool whole;
    u32 count;

    __device__ void load(float (&to)[4], const float* from) const {
        if (whole) return load_piece(to, from);
#pragma unroll
        for (u32 i = 0; i < 4; ++i) to[i] = i < count ? from[i] : 0.0f;
    }
    __device__ void store(float* to, const float (&from)[4]) const {
        if (whole) return store_piece(to, from);
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            if (i < count) to[i] = from[i];
        }
    }
};

// The outputs that a warp holds, from (row, column) of the output on: ended, or as they are where another kernel ends them.
template <class End, class Tile>
__device__ inline void finish_tile(float (&outputs)[Tile::HANDED][Tile::PITCH], const float (&d)[Tile::ROWS / 2], float* arena,
                                   const HopperProduct& op, u32 part, u32 first_row, u32 first_column) {
    const Product& product = op.product;
    u32 rows = product.group_rows * product.blocks;
    bool raw = op.raw != NOWHERE, whole = raw ? in_fours(product.width, op.raw) : ends_in_fours<End>(product);
    hand_over<Tile>(outputs, d, [&](u32 row, u32 column, auto& sums) {
        constexpr int N = std::extent_v<std::remove_reference_t<decltype(sums)>>;
        row += first_row;
        column += first_column;
        if (column >= product.width) return;
        Four four = {whole, product.width - column};
        if (raw) {
            float* out = arena + op.raw + (part * (u64)rows + row) * product.width + column;
#pragma unroll
            for (int i = 0; i < N; ++i) {
                if (row + 8 * i < rows) four.store(out + (u64)(8 * i) * product.width, sums[i]);
            }
            return;
        }
        Outputs<N, 4> all;
        int at[N];
#pragma unroll
        for (int i = 0; i < N; ++i) {
            at[i] = row + 8 * i < rows ? (int)row + 8 * i : -1;
#pragma unroll
            for (int c = 0; c < 4; ++c) {
                all.sums[i][c] = sums[i][c];
                all.added[i][c] = 0.0f;
            }
        }
        end_outputs<End>(arena, product, at, column, all, four, [](int, auto&) {});
    });
}

template <class End, class Tile>
__device__ inline void hopper_product(float* arena, const HopperProduct& op, typename Tile::Shared& shared) {
#ifdef WARPGROUPS
    constexpr bool LEFT_OUTER = !End::TRANSPOSED;
    const Product& product = op.product;
    Tiling<Tile> tiling(product.group_rows * product.blocks, product.width);
    u32 stages = (product.sources[0].inner + PANEL - 1) / PANEL;
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < Tile::STAGES; ++stage) {
            begin_barrier(shared.full[stage], 1);
            begin_barrier(shared.empty[stage], 4 * Tile::CONSUMERS);
        }
        show_barriers();
    }
    __syncthreads();
    if (threadIdx.x >= 128 * Tile::CONSUMERS) {
        leave_registers<40>();
        if (threadIdx.x == 128 * Tile::CONSUMERS) {
            produce<Tile, LEFT_OUTER>(shared, op.weight, op.rows, tiling, op.parts, stages, product.sources[0].first);
        }
    } else {
        take_registers<Tile::REGISTERS>();
        int consumer = threadIdx.x / 128, warp = threadIdx.x / 32;
        Turn<Tile::STAGES> turn;
#pragma unroll 1
        for (u32 item = blockIdx.x; item < tiling.count() * op.parts; item += gridDim.x) {
            float d[Tile::ROWS / 2];
            u32 row, column, part = item / tiling.count();
            tiling.place(item % tiling.count(), row, column);
            Stretch here(part, op.parts, stages);
            if (product.operands == AS_BF16) {
                consume<Multiply_bf16, Tile, LEFT_OUTER>(shared, d, turn, consumer, here.end - here.begin);
            } else {
                consume<Multiply_f16, Tile, LEFT_OUTER>(shared, d, turn, consumer, here.end - here.begin);
            }
            finish_tile<End, Tile>(shared.outputs[warp], d, arena, op, part, row, column + warp * 16);
        }
    }
#endif
}

#define HOPPER_PRODUCT(name, End, Tile)                                \
    KERNEL_OF(name, HopperProduct, Tile::BLOCK_THREADS, Tile::BLOCKS) { \
        SHARED_FROM_1024(Tile::Shared, shared);                        \
        hopper_product<End, Tile>(arena, op, shared);                  \
    }

HOPPER_PRODUCT(hopper_forward_64x64, Forward, Hopper64x64)
HOPPER_PRODUCT(hopper_forward_128x128, Forward, Hopper128x128)
HOPPER_PRODUCT(hopper_forward_128x256, Forward, Hopper128x256)
HOPPER_PRODUCT(hopper_backward_64x64, Backward, Hopper64x64)
HOPPER_PRODUCT(hopper_backward_128x128, Backward, Hopper128x128)
HOPPER_PRODUCT(hopper_backward_128x256, Backward, Hopper128x256)
HOPPER_PRODUCT(hopper_adjoint_64x64, Adjoint, Hopper64x64)
HOPPER_PRODUCT(hopper_adjoint_128x128, Adjoint, Hopper128x128)
HOPPER_PRODUCT(hopper_adjoint_128x256, Adjoint, Hopper128x256)
