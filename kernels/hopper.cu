// The products with shared weights on Hopper: those of linear.cu, of operands that pack.cu has packed, with the same ends.

#include "hopper.cuh"
#include "ends.cuh"
#include "tensor.cuh"

struct HopperProduct {
    TensorMap weight;
    TensorMap rows;
    // One group, and so one source, which has rows.
    Product product;
};
static_assert(sizeof(HopperProduct) == 448, "mirrored in Rust");
static_assert(Hopper64x64::SHARED_BYTES == 109664 && Hopper128x128::SHARED_BYTES == 218208 &&
                  Hopper128x256::SHARED_BYTES == 218176,
              "mirrored in Rust");

// The outputs that a warp holds, from (row, column) of the output on.
template <class End, class Tile>
__device__ inline void finish_tile(float (&outputs)[Tile::HANDED][Tile::PITCH], const float (&d)[Tile::ROWS / 2], float* arena,
                                   const Product& op, u32 first_row, u32 first_column) {
    hand_over<Tile>(outputs, d, [&](u32 row, u32 column, auto& sums) {
        finish_rows<End>(arena, op, first_row + row, first_column + column, sums);
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
    if (threadIdx.x < 128) {
        leave_registers<40>();
        if (threadIdx.x == 0) {
            produce<Tile, LEFT_OUTER>(shared, op.weight, op.rows, tiling, stages, product.sources[0].first);
        }
    } else {
        take_registers<Tile::REGISTERS>();
        int consumer = threadIdx.x / 128 - 1, warp = threadIdx.x / 32 - 4;
        Turn<Tile::STAGES> turn;
#pragma unroll 1
        for (u32 tile = blockIdx.x; tile < tiling.count(); tile += gridDim.x) {
            float d[Tile::ROWS / 2];
            u32 row, column;
            tiling.place(tile, row, column);
            if (product.operands == AS_BF16) {
                consume<Multiply_bf16, Tile, LEFT_OUTER>(shared, d, turn, consumer, stages);
            } else {
                consume<Multiply_f16, Tile, LEFT_OUTER>(shared, d, turn, consumer, stages);
            }
            finish_tile<End, Tile>(shared.outputs[warp], d, arena, product, row, column + warp * 16);
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
