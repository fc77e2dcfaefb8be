// Layers one after the other in one launch, see chain.cuh; and the order in which that takes weights.

#include "chain_thin.cuh"

// A block has `share` tasks.
KERNEL_OF(chain, Chain, CHAIN_THREADS, 1) {
    SHARED_NUMBERS(room, op.numbers);
    const ChainRun run(arena, op, room);
    u32 terms = 0, factors = 0;
#pragma unroll 1
    for (u32 l = 0; l < op.count; ++l) {
        const Link& link = op.links[l];
        run.begin(link, terms);
        bool few = link.product.width <= THIN;
        if (link.weights != NOWHERE) {
            if (few) {
                run.multiply_to_few(link);
            } else if (link.inner <= THIN) {
                run.multiply_few(link);
            } else if (run.groups(link.product) <= 2) {
                run.multiply<2, 8>(link);
            } else {
                run.multiply<CHAIN_GROUPS, 4>(link);
            }
        }
        run.correct(link);
        __syncthreads();
        switch (link.kind) {
        case LINK_ROWS:
            few ? run.few_as_they_are(link) : run.rows_as_they_are(link);
            break;
        case LINK_FORWARD:
            few ? run.end_few<Forward>(link) : run.end<Forward>(link);
            break;
        case LINK_BACKWARD:
            few ? run.end_few<Backward>(link) : run.end<Backward>(link);
            break;
        default:
            few ? run.end_few<Adjoint>(link) : run.end<Adjoint>(link);
        }
        __syncthreads();
        if (link.columns > 0) few ? run.inner_products_of_few(link, factors) : run.inner_products(link, factors);
        terms = link.end[BLOCKS - 1];
        factors = link.factors;
    }
}

struct PackFragments {
    u64 from;
    // In numbers of 32 bits, a multiple of 4.
    u64 to;
    // Multiples of 16: columns of the product, and the length of its sums.
    u32 columns;
    u32 inner;
    // From one of either to the next.
    u32 column_stride;
    u32 inner_stride;
};
static_assert(sizeof(PackFragments) == 32, "mirrored in Rust");

// A lane's share of a product of 16 columns over 16 of the inner dimension lies together, as mma.cuh describes it; the shares of a
// warp lie one after the other, and so do those of the inner dimension, then those of the columns. One share a thread.
KERNEL(pack_fragments, PackFragments) {
    u32 steps = op.inner / 16;
    u64 share = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (share >= (u64)op.columns / 16 * steps * 32) return;
    u32 lane = (u32)(share % 32), g = lane / 4, t = lane % 4, unit = (u32)(share / 32);
    u32 column = unit / steps * 16 + g, start = unit % steps * 16 + 2 * t, pair[4];
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
        const float* from = arena + op.from + (u64)(column + i % 2 * 8) * op.column_stride + (u64)(start + i / 2 * 8) * op.inner_stride;
        pair[i] = round_bf16(from[0], from[op.inner_stride]);
    }
    *(uint4*)(arena + op.to + share * 4) = {pair[0], pair[1], pair[2], pair[3]};
}
