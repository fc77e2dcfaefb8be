// The four products with a layer's weights, [rows, inner] x [width, inner]^T or x [inner, width], with everything that
// follows fused into the epilogue: bias and activation; the derivative of the activation below; the adjoint pass's z and e.
//
// Shared weights: all rows of all tasks are one matrix (groups = 1). Per-task weights: one matrix a task (groups = T),
// whose rows are the task's rows of every block. The dual form's corrections are in the output already (low_rank.cu).

#include "product.cuh"
#include "tensor.cuh"

template <class End, class Held, class... Shared>
__device__ inline void finish(const Held& held, float* arena, const Product& op, const Place<Held>& place,
                              Shared&... shared) {
    held.each_row(shared..., [&](int m, auto values) {
        int row = place.output_row(op, m);
        if (row < 0) return;
        End end = {arena, op, place.group, row};
        values([&](int n, float sum) {
            u32 column = place.column + n;
            if (column < op.width) end.finish(column, sum, end.before(column));
        });
    });
}

// In f32.
template <class End>
__device__ inline void product(float* arena, const Product& op, Tiles& tiles) {
    Place<Micro> place(op);
    Micro held;
    int stage = 0;
#pragma unroll 1
    for (int s = 0; s < 2; ++s) {
        const Source& source = op.sources[s];
        if (source.rows == 0) continue;
        Rows left = {arena + source.input, source.inner, source.inner, {}};
#pragma unroll
        for (int i = 0; i < SHARE; ++i) {
            int row = place.output_row(op, Rows::major(i));
            bool inside = row >= (int)source.first && row < (int)(source.first + source.rows);
            left.row[i] = inside ? row - (int)source.first : -1;
        }
        const float* weight = arena + source.weight + place.group * source.group_stride;
        if (End::TRANSPOSED) {
            Rows right = {weight, source.inner, source.inner, {}};
#pragma unroll
            for (int i = 0; i < SHARE; ++i) {
                int column = place.column + Rows::major(i);
                right.row[i] = column < (int)op.width ? column : -1;
            }
            multiply(held, tiles, stage, left, right);
        } else {
            u32 column = place.column + threadIdx.x % TILE;
            Columns right = {weight, op.width, source.inner, column, op.width, 1.0f, 0.0f};
            multiply(held, tiles, stage, left, right);
        }
    }
    finish<End>(held, arena, op, place);
}

KERNEL(linear_forward, Product) {
    SHARED(Tiles, tiles);
    product<Forward>(arena, op, tiles);
}

KERNEL(linear_backward, Product) {
    SHARED(Tiles, tiles);
    product<Backward>(arena, op, tiles);
}

KERNEL(adjoint_forward, Product) {
    SHARED(Tiles, tiles);
    product<Adjoint>(arena, op, tiles);
}

// The stages of a product with shared weights.
template <class Left, class Right>
struct SharedProduct {
    Left left;
    Right right;
    u32 fetched = 0;

    __device__ int stages() const { return (left.depth + DEPTH - 1) / DEPTH; }
    __device__ void fetch(float* to_left, float* to_right) {
        ::fetch(left, to_left, fetched);
        ::fetch(right, to_right, fetched);
        fetched += DEPTH;
    }
    template <class Numbers, class Tile>
    __device__ void multiply(Tile& tile, const float* from_left, const float* from_right) const {
        tile.template add<Numbers, Left, Right>(from_left, from_right, 1.0f);
    }
};

// On tensor cores: one group, and so one source. The first input row's place in the output may lie within or behind the tile.
template <class End, class Tile>
__device__ inline void tensor_product(float* arena, const Product& op, typename Tile::Shared& shared) {
    Place<Tile> place(op);
    Tile tile;
    const Source& source = op.sources[0];
    using Left = InnerMajor<Tile::TILE_ROWS>;
    using Right = std::conditional_t<End::TRANSPOSED, InnerMajor<Tile::TILE_COLUMNS>, OuterMajor<Tile::TILE_COLUMNS>>;
    if (source.rows > 0) {
        SharedProduct<Left, Right> work = {
            Left(arena + source.input, source.inner, (int)place.row - (int)source.first, source.rows),
            Right(arena + source.weight, source.inner, place.column, op.width)};
        multiply_stages_as(op.operands, tile, shared.operands, work);
    }
    finish<End>(tile, arena, op, place, shared);
}

#define TENSOR_PRODUCT(name, End, Tile)                    \
    KERNEL(name, Product) {                                \
        SHARED(Tile::Shared, shared);                      \
        tensor_product<End, Tile>(arena, op, shared);      \
    }

TENSOR_PRODUCT(linear_forward_16x64, Forward, Tile16x64)
TENSOR_PRODUCT(linear_forward_64x64, Forward, Tile64x64)
TENSOR_PRODUCT(linear_forward_128x128, Forward, Tile128x128)
TENSOR_PRODUCT(linear_backward_16x64, Backward, Tile16x64)
TENSOR_PRODUCT(linear_backward_64x64, Backward, Tile64x64)
TENSOR_PRODUCT(linear_backward_128x128, Backward, Tile128x128)
TENSOR_PRODUCT(adjoint_forward_16x64, Adjoint, Tile16x64)
TENSOR_PRODUCT(adjoint_forward_64x64, Adjoint, Tile64x64)
TENSOR_PRODUCT(adjoint_forward_128x128, Adjoint, Tile128x128)

struct AdjointGate {
    Gate gate;
    // Read as g, written as e's cotangent.
    u64 output;
    u64 delta;
    u64 z;
    u32 blocks;
    u32 width;
};
static_assert(sizeof(AdjointGate) == 64, "mirrored in Rust");

// One row of gate values a block of the grid's x: gathers z over the output blocks it gates, in their order.
KERNEL(adjoint_gate, AdjointGate) {
    u32 column = blockIdx.y * THREADS + threadIdx.x;
    if (column >= op.width) return;
    u32 gate_block = blockIdx.x / op.gate.block_rows;
    u32 row = blockIdx.x % op.gate.block_rows;
    u64 here = (u64)blockIdx.x * op.width + column;
    float a = arena[op.gate.values + here];
    float curvature = act_curvature(op.gate.activation, a);
    float derivative = act_derivative(op.gate.activation, a);
    float z = 0.0f;
    for (u32 block = 0; block < op.blocks; ++block) {
        if (op.gate.block[block] != gate_block) continue;
        u64 at = ((u64)block * op.gate.block_rows + row) * op.width + column;
        float g = arena[op.output + at];
        z += g * arena[op.delta + at] * curvature;
        arena[op.output + at] = g * derivative;
    }
    arena[op.z + here] = z;
}
