// The weight gradient of many rows: weight [outputs, inputs] (+)= sum over terms of scale * p^T q, the bias gradient fused.
//
// Shared weights: the rows of all tasks are summed, in parts where that fills the GPU. Per-task weights: each task's own rows, found
// in every block.

#include "gradient.cuh"
#include "parts.cuh"
#include "tensor.cuh"
#include "thin_gradient.cuh"

constexpr int TERMS = 64;

struct OuterProduct {
    OuterTerm terms[TERMS];
    u64 weight;
    u64 bias;
    u64 group_stride;
    // Where there are parts: of each the weight, and its bias behind it.
    u64 partials;
    u32 count;
    u32 groups;
    u32 inputs;
    u32 outputs;
    // Whether to add to what is there.
    u32 begun;
    // `Rounding`; of the kernels for tensor cores.
    u32 operands;
};
static_assert(sizeof(OuterProduct) == 2616, "mirrored in Rust");

// Where a block's gradient goes: to the layer's, or among the partial sums.
struct Writer {
    float* weight;
    u64 bias_at;
    bool begun;

    __device__ Writer(float* arena, const OuterProduct& op, u32 group) {
        bool whole = gridDim.z == 1;
        u64 size = (u64)op.inputs * op.outputs;
        weight = arena + (whole ? op.weight + group * op.group_stride : op.partials + blockIdx.z * (size + op.outputs));
        bias_at = whole ? op.bias - op.weight : size;
        begun = whole && op.begun;
    }

    __device__ void operator()(u64 at, float value) const { weight[at] = begun ? weight[at] + value : value; }
};

// Grid: that of `GradientTile`, and z the parts of the sum.
KERNEL(outer_product, OuterProduct) {
    SHARED(GradientTiles, shared);
    Gradient gradient(op.inputs, op.outputs);
    Part part(Cursor<DEPTH>::stages(op.terms, op.count));
    Cursor<DEPTH> at(op.terms, part.first);
    for (u32 left = part.count; left > 0;) {
        const OuterTerm& term = at.settle(op.terms);
        // All of the term's, where there are several groups or blocks.
        u32 rows = min(term.rows - at.row, left * DEPTH);
        gradient.add_blocks(shared.tiles, arena + term.p + (u64)at.row * op.outputs, arena + term.q + (u64)at.row * op.inputs,
                            term.blocks, op.groups, rows, scale_of(arena, term), term.bias);
        at.row += rows;
        left -= (rows + DEPTH - 1) / DEPTH;
    }
    Writer writer(arena, op, gradient.group);
    gradient.finish(shared.bias, writer.bias_at, writer);
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

// The stages of the sum, with shared weights: the rows of a term are one block's.
template <class Tile>
struct SharedTerms {
    using Left = OuterMajor<Tile::TILE_ROWS>;
    using Right = OuterMajor<Tile::TILE_COLUMNS>;

    const float* arena;
    const OuterProduct& op;
    const GradientTile<Tile>& gradient;
    // The block's part.
    u32 count;
    Cursor<DEPTH> fetched;
    Cursor<DEPTH> multiplied;
    float bias = 0.0f;

    __device__ int stages() const { return count; }

    __device__ void fetch(float* to_left, float* to_right) {
        const OuterTerm& term = fetched.settle(op.terms);
        ::fetch(Left(arena + term.p, term.rows, gradient.first_row, op.outputs), to_left, fetched.row);
        ::fetch(Right(arena + term.q, term.rows, gradient.first_column, op.inputs), to_right, fetched.row);
        fetched.row += DEPTH;
    }

    template <class Numbers>
    __device__ void multiply(Tile& tile, const float* left, const float* right) {
        const OuterTerm& term = multiplied.settle(op.terms);
        multiplied.row += DEPTH;
        float scale = scale_of(arena, term);
        tile.template add<Numbers, Left, Right>(left, right, scale);
        if (!gradient.has_bias() || threadIdx.x >= Tile::TILE_ROWS) return;
        float sum = 0.0f;
        for (int k = 0; k < DEPTH; ++k) sum += left[Left::place(threadIdx.x, k)];
        bias += term.bias * scale * sum;
    }
};

template <class Tile>
__device__ inline void tensor_outer_product(float* arena, const OuterProduct& op, typename Tile::Shared& shared) {
    GradientTile<Tile> gradient(op.inputs, op.outputs);
    Part part(Cursor<DEPTH>::stages(op.terms, op.count));
    Cursor<DEPTH> first(op.terms, part.first);
    SharedTerms<Tile> work = {arena, op, gradient, part.count, first, first};
    multiply_stages_as(op.operands, gradient.held, shared.operands, work);
    Writer writer(arena, op, gradient.group);
    gradient.finish(writer.bias_at, work.bias, writer, shared);
}

KERNEL(outer_product_64x64, OuterProduct) {
    SHARED(Tile64x64::Shared, shared);
    tensor_outer_product<Tile64x64>(arena, op, shared);
}

KERNEL(outer_product_128x128, OuterProduct) {
    SHARED(Tile128x128::Shared, shared);
    tensor_outer_product<Tile128x128>(arena, op, shared);
}

struct OuterTotal {
    u64 partials;
    u64 weight;
    u64 bias;
    // Of the weight, and with the bias.
    u64 weights;
    u64 length;
    u32 parts;
    u32 begun;
};
static_assert(sizeof(OuterTotal) == 48, "mirrored in Rust");

// Adds up the parts, a number a thread.
KERNEL(outer_total, OuterTotal) {
    u64 at = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (at >= op.length) return;
    float* to = arena + (at < op.weights ? op.weight + at : op.bias + (at - op.weights));
    float before = op.begun ? *to : 0.0f;
    const float* part = arena + op.partials + at;
    float sum = 0.0f;
#pragma unroll 8
    for (u32 i = 0; i < op.parts; ++i) sum += part[i * op.length];
    *to = before + sum;
}
