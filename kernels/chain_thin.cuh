// Links of a chain whose rows, made or taken, are up to 8 columns wide: a discriminator's logits, a network's few inputs. They are kept
// as they are, in f32, and so are the steps' rows of that width; what is multiplied is rounded as it would be elsewhere.
#pragma once

#include "chain.cuh"

__device__ inline float2 round_both(float first, float second) { return pair_of_bf16(round_bf16(first, second)); }

// Few columns of long sums, with weights [width, inner]: a warp each.
__device__ inline void ChainRun::multiply_to_few(const Link& link) const {
    u32 width = link.product.width;
    const float* weights = arena + link.weight;
#pragma unroll 1
    for (u32 unit = warp(); unit < groups(link.product) * GROUP * width; unit += CHAIN_WARPS) {
        u32 local = unit / width, n = unit - local * width, source = group[local / GROUP].source;
        float sum = 0.0f;
        if (source < CHAIN_GROUPS && local % GROUP < group[local / GROUP].rows) {
            const u32* from = made + (source * GROUP + local % GROUP) * made_pitch;
#pragma unroll 4
            for (u32 k = lane(); k < link.inner / 2; k += 32) {
                const float* weight = weights + n * link.inner + 2 * k;
                float2 row = pair_of_bf16(from[k]), column = round_both(weight[0], weight[1]);
                sum += row.x * column.x + row.y * column.y;
            }
        }
        sum = warp_sum(sum);
        if (lane() == 0) sums[local * sums_pitch + n] = sum;
    }
}

// Many columns of short sums. Weights lie [inner, width] on the way back, else [width, inner].
__device__ inline void ChainRun::multiply_few(const Link& link) const {
    u32 width = link.product.width, inner = link.inner;
    bool back = link.kind == LINK_BACKWARD;
    u32 across = back ? 1 : inner, along = back ? width : 1;
    const float* weights = arena + link.weight;
    each_row(link.product, [&](u32 local, u32 index, u32 within, u32 column) {
        u32 source = group[index].source;
        float sum[4] = {};
        for (u32 k = 0; k < (source < CHAIN_GROUPS ? inner : 0); ++k) {
            float row = round_both(thin[(source * GROUP + within) * THIN + k], 0.0f).x;
            const float* weight = weights + column * across + k * along;
#pragma unroll
            for (u32 c = 0; c < 4; ++c) sum[c] += row * round_both(weight[c * across], 0.0f).x;
        }
        store_piece(&sums[local * sums_pitch + column], sum);
    });
}

// Adds what rows `0..here` of the earlier steps' that were looked up give, to `tiles`.
__device__ inline void ChainRun::correct_few(const Link& link, u32 start) const {
    u32 width = link.product.width;
#pragma unroll 1
    for (u32 unit = warp(); unit < groups(link.product) * GROUP * width; unit += CHAIN_WARPS) {
        u32 local = unit / width, n = unit - local * width, index = local / GROUP, corrected = group[index].corrected;
        u32 here = start < corrected ? min(corrected - start, CHAIN_ROWS) : 0;
        float sum = 0.0f;
        for (u32 j = lane(); j < here; j += 32) sum += factor[index][j][local % GROUP] * arena[row[index][j] + n];
        sum = warp_sum(sum);
        if (lane() == 0) tiles[local * THIN + n] = start == 0 ? sum : tiles[local * THIN + n] + sum;
    }
}

template <class End>
__device__ inline void ChainRun::end_few(const Link& link) const {
    constexpr bool FORWARD = std::is_same_v<End, Forward>, ADJOINT = std::is_same_v<End, Adjoint>;
    const ProductEnd& product = link.product;
    bool gated = is_gated<End>(product), curved = is_curved<End>(product);
    u64 part = (u64)product.group_rows * product.blocks * product.width;
    for (u32 i = threadIdx.x; i < groups(product) * GROUP * product.width; i += CHAIN_THREADS) {
        u32 local = i / product.width, n = i % product.width, index = local / GROUP, within = local % GROUP;
        const ChainGroup& of = group[index];
        if (within >= of.rows) continue;
        u32 row = of.output_row + within;
        u64 at = (u64)row * product.width + n, gate_at = gated ? product.gate.row(row) * product.width + n : 0;
        Outputs<1, 1> all = {};
        all.share = share_of(arena, product);
        all.biased[0] = FORWARD && link.bias != NOWHERE && row - link.bias_first < link.bias_rows;
        if (all.biased[0]) all.bias[0] = arena[link.bias + n];
        if (gated) all.gate[0][0] = arena[product.gate.values + gate_at];
        if (curved) all.delta[0][0] = arena[product.delta + at];
        if (product.begun) all.output[0][0] = arena[product.output + at];
        for (u32 p = 0; p < link.parts; ++p) all.sums[0][0] += arena[link.raw + p * part + at];
        if (link.weights != NOWHERE) all.sums[0][0] = sums[local * sums_pitch + n];
        if (of.corrected > 0) all.added[0][0] = tiles[local * THIN + n];
        if (product.begun && (FORWARD || ADJOINT)) all.added[0][0] += all.output[0][0];
        all.end(product, (End*)nullptr);
        if (curved) arena[product.z + gate_at] = all.delta[0][0];
        arena[product.output + at] = all.output[0][0];
        thin[local * THIN + n] = all.output[0][0];
    }
}

__device__ inline void ChainRun::few_as_they_are(const Link& link) const {
    u32 width = link.product.width;
    for (u32 i = threadIdx.x; i < groups(link.product) * GROUP * width; i += CHAIN_THREADS) {
        u32 local = i / width, n = i % width;
        const ChainGroup& of = group[local / GROUP];
        if (local % GROUP >= of.rows) continue;
        thin[local * THIN + n] = arena[link.raw + (u64)(of.output_row + local % GROUP) * width + n];
    }
}

__device__ inline void ChainRun::inner_products_of_few(const Link& link, u32 begin) const {
    u32 width = link.product.width;
    for (u32 i = threadIdx.x; i < groups(link.product) * GROUP * link.columns; i += CHAIN_THREADS) {
        u32 local = i / link.columns, n = i % link.columns;
        const ChainGroup& of = group[local / GROUP];
        if (local % GROUP >= of.rows) continue;
        const Factor& factor = this->factor_of(link, begin, n);
        const float* other = arena + factor.rows + ((u64)of.task * factor.count + n - factor.column) * width;
        float sum = 0.0f;
        for (u32 c = 0; c < width; ++c) sum += thin[local * THIN + c] * other[c];
        arena[link.gram + (u64)(of.output_row + local % GROUP) * link.columns + n] = sum;
    }
    __syncthreads();
}
