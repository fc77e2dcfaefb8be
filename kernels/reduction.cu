// Sums in double precision over large regions: every block leaves a partial sum behind the arena's regions, and one block
// (or the host) adds them up. The grid depends on the sizes alone, so the result is the same from run to run.

#include "pieces.cuh"
#include "tile.cuh"

struct Dot {
    u64 x;
    u64 y;
    u64 x_stride;
    u64 y_stride;
    u64 length;
    // Of the partial sums, one for each block: doubles.
    u64 output;
    u32 tasks;
    u32 unused;
};
static_assert(sizeof(Dot) == 56, "mirrored in Rust");

// The thread's share of the inner product of x and y, taken by pieces of PIECE, several of them on their way at once.
template <u32 PIECE>
__device__ inline double share_of_dot(const float* x, const float* y, u64 length) {
    constexpr u32 AHEAD = 4;
    u64 step = (u64)gridDim.x * THREADS * PIECE;
    // One for each place in a piece, so that they do not wait for one another.
    double sum[PIECE] = {};
    for (u64 start = ((u64)blockIdx.x * THREADS + threadIdx.x) * PIECE; start < length; start += AHEAD * step) {
        float left[AHEAD][PIECE], right[AHEAD][PIECE];
#pragma unroll
        for (u32 a = 0; a < AHEAD; ++a) {
            u64 i = start + a * step;
            load_piece_or_zero(left[a], x + i, i < length);
            load_piece_or_zero(right[a], y + i, i < length);
        }
#pragma unroll
        for (u32 a = 0; a < AHEAD; ++a) {
            if (start + a * step >= length) break;
#pragma unroll
            for (u32 k = 0; k < PIECE; ++k) sum[k] += (double)left[a][k] * (double)right[a][k];
        }
    }
    for (u32 k = 1; k < PIECE; ++k) sum[0] += sum[k];
    return sum[0];
}

// The sum over the tasks of the inner product of x and y, [T, length] each.
KERNEL(dot, Dot) {
    SHARED(Partials, partials);
    bool fours = in_fours(op.x, op.y) && (op.tasks == 1 || in_fours(op.x_stride, op.y_stride));
    // What does not make up a piece comes last.
    u64 whole = fours ? op.length / 4 * 4 : 0;
    double sum = 0.0;
    for (u32 task = 0; task < op.tasks; ++task) {
        const float* x = arena + op.x + task * op.x_stride;
        const float* y = arena + op.y + task * op.y_stride;
        sum += share_of_dot<4>(x, y, whole);
        sum += share_of_dot<1>(x + whole, y + whole, op.length - whole);
    }
    sum = block_sum(partials, sum);
    if (threadIdx.x == 0) ((double*)(arena + op.output))[blockIdx.x] = sum;
}

struct AddTotal {
    // Doubles.
    u64 partials;
    u64 output;
    double scale;
    u32 count;
    u32 unused;
};
static_assert(sizeof(AddTotal) == 32, "mirrored in Rust");

// output += scale * the sum of the partial sums; one block.
KERNEL(add_total, AddTotal) {
    SHARED(Partials, partials);
    double sum = 0.0;
    for (u32 i = threadIdx.x; i < op.count; i += THREADS) sum += ((const double*)(arena + op.partials))[i];
    sum = block_sum(partials, sum);
    if (threadIdx.x == 0) arena[op.output] = (float)(arena[op.output] + op.scale * sum);
}
