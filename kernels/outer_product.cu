// The weight gradient of many rows: weight [outputs, inputs] (+)= sum over terms of scale * p^T q, the bias gradient fused.
//
// Shared weights: the rows of all tasks are summed. Per-task weights: each task's own rows, found in every block.

#include "tensor.cuh"
#include "thin_gradient.cuh"

constexpr int TERMS = 64;

struct OuterProduct {
    OuterTerm terms[TERMS];
    u64 weight;
    u64 bias;
    u64 group_stride;
    u32 count;
    u32 groups;
    u32 inputs;
    u32 outputs;
    // Whether to add to what is there.
    u32 begun;
    // `Rounding`; of the kernels for tensor cores.
    u32 operands;
};
static_assert(sizeof(OuterProduct) == 2096, "mirrored in Rust");

// Hands a tile's gradient over.
template <class Gradient>
__device__ inline auto writer(float* arena, const OuterProduct& op, const Gradient& gradient) {
    float* weight = arena + op.weight + gradient.group * op.group_stride;
    return [weight, &op](u64 at, float value) { weight[at] = op.begun ? weight[at] + value : value; };
}

// Grid: that of `GradientTile`.
KERNEL(outer_product, OuterProduct) {
    SHARED(GradientTiles, shared);
    Gradient gradient(op.inputs, op.outputs);
    for (u32 t = 0; t < op.count; ++t) {
        const OuterTerm& term = op.terms[t];
        gradient.add_blocks(shared.tiles, arena + term.p, arena + term.q, term.blocks, op.groups, term.rows, term.scale,
                            term.bias);
    }
    gradient.finish(shared.bias, op.bias - op.weight, writer(arena, op, gradient));
}

// What becomes of a task's gradient.
struct ThinOuter {
    float* weight;
    u32 begun;

    template <u32 COUNT>
    struct Before {
        float weight[COUNT];
    };
    template <class Place>
    __device__ void before(const Place& place, Before<Place::COUNT>& before) const {
        if (begun) place.load(before.weight, weight);
    }
    template <class Place>
    __device__ void finish(const Place& place, float (&value)[Place::COUNT], const Before<Place::COUNT>& before) const {
        if (begun) {
#pragma unroll
            for (u32 i = 0; i < Place::COUNT; ++i) value[i] += before.weight[i];
        }
        place.store(weight, value);
    }
};

// Of a task's few rows. The bias lies right behind the weight. Grid: that of `thin_gradient`.
template <u32 ROWS>
__device__ inline void thin_outer_product(float* arena, const OuterProduct& op, ThinGradient<ROWS>& shared) {
    bool fours = in_fours(op.weight, op.group_stride, (u64)op.inputs);
    for (u32 t = 0; t < op.count; ++t) fours = fours && in_fours(op.terms[t].q);
    auto term = [&](u32 t) -> const OuterTerm& { return op.terms[t]; };
    auto end = [&](u32 task) { return ThinOuter{arena + op.weight + task * op.group_stride, op.begun}; };
    if (fours) {
        thin_gradient<true>(arena, shared, op.count, term, op.groups, op.inputs, op.outputs, end);
    } else {
        thin_gradient<false>(arena, shared, op.count, term, op.groups, op.inputs, op.outputs, end);
    }
}

KERNEL_OF(thin_outer_product, OuterProduct, THREADS, 3) {
    SHARED(ThinGradient<FEW>, shared);
    thin_outer_product(arena, op, shared);
}

KERNEL_OF(thin_outer_product_16, OuterProduct, THREADS, 3) {
    SHARED(ThinGradient<SOME>, shared);
    thin_outer_product(arena, op, shared);
}

// A stage of a sum over terms: the term, and the first of its rows.
struct Cursor {
    u32 term = 0;
    u32 row = 0;

    // Goes on to the next term that has rows left, if there is none in this one.
    __device__ const OuterTerm& settle(const OuterProduct& op) {
        while (row >= op.terms[term].rows) {
            ++term;
            row = 0;
        }
        return op.terms[term];
    }
};

// The stages of the sum, with shared weights: the rows of a term are one block's.
template <class Tile>
struct SharedTerms {
    using Left = OuterMajor<Tile::TILE_ROWS>;
    using Right = OuterMajor<Tile::TILE_COLUMNS>;

    const float* arena;
    const OuterProduct& op;
    const GradientTile<Tile>& gradient;
    Cursor fetched = {};
    Cursor multiplied = {};
    float bias = 0.0f;

    __device__ int stages() const {
        u32 stages = 0;
        for (u32 t = 0; t < op.count; ++t) stages += (op.terms[t].rows + DEPTH - 1) / DEPTH;
        return stages;
    }

    __device__ void fetch(float* to_left, float* to_right) {
        const OuterTerm& term = fetched.settle(op);
        ::fetch(Left(arena + term.p, term.rows, gradient.first_row, op.outputs), to_left, fetched.row);
        ::fetch(Right(arena + term.q, term.rows, gradient.first_column, op.inputs), to_right, fetched.row);
        fetched.row += DEPTH;
    }

    template <class Numbers>
    __device__ void multiply(Tile& tile, const float* left, const float* right) {
        const OuterTerm& term = multiplied.settle(op);
        multiplied.row += DEPTH;
        tile.template add<Numbers, Left, Right>(left, right, term.scale);
        if (!gradient.has_bias() || threadIdx.x >= Tile::TILE_ROWS) return;
        float sum = 0.0f;
        for (int k = 0; k < DEPTH; ++k) sum += left[Left::place(threadIdx.x, k)];
        bias += term.bias * term.scale * sum;
    }
};

template <class Tile>
__device__ inline void tensor_outer_product(float* arena, const OuterProduct& op, typename Tile::Shared& shared) {
    GradientTile<Tile> gradient(op.inputs, op.outputs);
    SharedTerms<Tile> work = {arena, op, gradient};
    multiply_stages_as(op.operands, gradient.held, shared.operands, work);
    gradient.finish(op.bias - op.weight, work.bias, writer(arena, op, gradient), shared);
}

KERNEL(outer_product_64x64, OuterProduct) {
    SHARED(Tile64x64::Shared, shared);
    tensor_outer_product<Tile64x64>(arena, op, shared);
}

KERNEL(outer_product_128x128, OuterProduct) {
    SHARED(Tile128x128::Shared, shared);
    tensor_outer_product<Tile128x128>(arena, op, shared);
}
