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
    float v[8];
    if (by_16_bytes(arena + op.from, op.width) && column + 8 <= op.width) {
        *(float4*)&v[0] = *(const float4*)from;
        *(float4*)&v[4] = *(const float4*)(from + 4);
    } else {
#pragma unroll
        for (int i = 0; i < 8; ++i) v[i] = column + i < op.width ? from[i] : 0.0f;
    }
    u32 pair[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        pair[i] = op.operands == AS_BF16 ? round_bf16(v[2 * i], v[2 * i + 1]) : round_f16(v[2 * i], v[2 * i + 1]);
    }
    *(uint4*)(arena + op.to + piece * 4) = {pair[0], pair[1], pair[2], pair[3]};
}
