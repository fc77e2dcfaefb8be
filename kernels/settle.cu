// What follows the inner loops of small networks in one launch: the sum of the tasks' gradients, its norm, whether all is well, and
// the outer optimizer's step.

#include "optimizer.cuh"
#include "sums.cuh"

struct Settle {
    SumRows sum;
    // One partial sum a block.
    CheckGradient check;
    Adam adam;
    // Where blocks count themselves: 0 before and after.
    u64 counter;
};
static_assert(sizeof(Settle) == 200, "mirrored in Rust");

constexpr u32 SETTLE_THREADS = TALL_COLUMNS * TALL_SHARES;

struct WarpSums {
    double of[TALL_SHARES];
};

// The sum over all threads, to each of them.
__device__ inline double sum_of_all(WarpSums& sums, double value) {
    value = warp_sum(value);
    if (threadIdx.x % 32 == 0) sums.of[threadIdx.x / 32] = value;
    __syncthreads();
    value = warp_sum(sums.of[threadIdx.x % 32]);
    __syncthreads();
    return value;
}

// A block sums 32 columns; the last one to come does the rest.
KERNEL_OF(settle, Settle, SETTLE_THREADS, 1) {
    SHARED(TallSums, tall);
    SHARED(WarpSums, sums);
    SHARED(u32, last);
    float sum = op.sum.scale * sum_tall(arena, op.sum, tall);
    u64 column = (u64)blockIdx.x * TALL_COLUMNS + threadIdx.x / 32;
    bool mine = threadIdx.x % 32 == 0 && column < op.sum.width;
    if (mine) arena[op.sum.to + column] = sum;
    double square = sum_of_all(sums, mine ? (double)sum * (double)sum : 0.0);
    double* partials = (double*)(arena + op.check.partials);
    u32* counter = (u32*)arena + op.counter;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        partials[blockIdx.x] = square;
        __threadfence();
        last = atomicAdd(counter, 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (!last) return;
    __threadfence();
    square = sum_of_all(sums, threadIdx.x < gridDim.x ? __ldcg(&partials[threadIdx.x]) : 0.0);
    bool wrong = sum_of_all(sums, wrong_losses<SETTLE_THREADS>(arena, op.check)) != 0.0;
    if (threadIdx.x == 0) {
        leave_finding(arena, op.check, square, wrong);
        *counter = 0;
    }
    __syncthreads();
    const Adam& adam = op.adam;
    float factor = arena[adam.factor];
    if (arena[adam.flag] != 0.0f) return;
    for (u64 i = threadIdx.x; i < adam.length; i += SETTLE_THREADS) {
        float gradient = __ldcg(&arena[adam.gradient + i]), first = arena[adam.first + i], second = arena[adam.second + i];
        float parameter = arena[adam.parameters + i];
        move_by_adam(adam, gradient * factor, parameter, first, second);
        arena[adam.first + i] = first;
        arena[adam.second + i] = second;
        arena[adam.parameters + i] = parameter;
    }
}
