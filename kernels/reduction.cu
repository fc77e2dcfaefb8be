// Sums in double precision over large regions: every block leaves a partial sum behind the arena's regions, and one block
// (or the host) adds them up. The grid depends on the sizes alone, so the result is the same from run to run.

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

// The sum over the tasks of the inner product of x and y, [T, length] each.
KERNEL(dot, Dot) {
    SHARED(Partials, partials);
    double sum = 0.0;
    for (u32 task = 0; task < op.tasks; ++task) {
        const float* x = arena + op.x + task * op.x_stride;
        const float* y = arena + op.y + task * op.y_stride;
        for (u64 i = (u64)blockIdx.x * THREADS + threadIdx.x; i < op.length; i += (u64)gridDim.x * THREADS) {
            sum += (double)x[i] * (double)y[i];
        }
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
