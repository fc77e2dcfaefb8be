// Copies of rows in 16 bits, for the copy engine of Hopper: rounded to the nearest, ties to even. Rows begin at multiples of 16
// bytes there; what is behind a row's last number, up to the next one's first, is 0.

#include "tensor.cuh"

struct Pack {
    u64 from;
    // In numbers of 32 bits, a multiple of 4.
    u64 to;
    u32 rows;
    u32 width;
    // `Rounding`: AS_BF16 or AS_F16.
    u32 operands;
    u32 unused;
};
static_assert(sizeof(Pack) == 32, "mirrored in Rust");

// Eight numbers of a row a thread.
KERNEL(pack, Pack) {
    u32 pieces = (op.width + 7) / 8;
    u64 piece = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (piece >= (u64)op.rows * pieces) return;
    u32 row = (u32)(piece / pieces), column = (u32)(piece % pieces) * 8;
    const float* from = arena + op.from + (u64)row * op.width + column;
    bool wide = by_16_bytes(arena + op.from, op.width);
    *(uint4*)(arena + op.to + piece * 4) = pack_eight(from, op.width - column, wide, op.operands);
}
