// Losses with their first and second derivatives: delta = dL/da * act'(a), z (+)= act'(a) * L''(a) e, and a mean for each
// task, summed in double precision.
//
// Supervised: [T * K, outputs]. Adversarial: logits in blocks of width 1, [2, T, K]. Pixels: clips [T * K, frames * frame].

#include "loss.cuh"
#include "pieces.cuh"
#include "tensor.cuh"

struct Supervised {
    u64 prediction;
    u64 target;
    // Curvature only.
    u64 e;
    // delta or z's cotangent; the task losses.
    // NOWHERE, in `elementwise_delta`, where only the copy is asked for.
    u64 output;
    // Rows of all tasks.
    u32 rows;
    u32 outputs;
    u32 tasks;
    u32 loss;
    u32 activation;
    u32 begun;
    // 1 / (the elements a mean is taken over).
    float scale;
    // `Rounding`, of the copy.
    u32 operands;
    // Where a copy of the output in 16 bits goes, in numbers of 32 bits; NOWHERE without one.
    u64 packed;
};
static_assert(sizeof(Supervised) == 72, "mirrored in Rust");

// value *= act'(a)
__device__ inline void through_activation(float (&value)[OWN], const float (&a)[OWN], u32 activation) {
    choose(activation, [&](auto chosen) {
#pragma unroll
        for (u32 k = 0; k < OWN; ++k) value[k] *= act_derivative(chosen.activation, a[k]);
    });
}

// For losses that are a sum over the elements.
KERNEL(elementwise_delta, Supervised) {
    bool leaves = op.output != NOWHERE;
    Span span((u64)op.rows * op.outputs, in_fours(op.prediction, op.target, leaves ? op.output : 0));
    float p[OWN], delta[OWN];
    span.load(p, arena + op.prediction);
    span.load(delta, arena + op.target);
    if (op.loss == MSE) {
#pragma unroll
        for (u32 k = 0; k < OWN; ++k) delta[k] = loss_slope(MSE, op.scale, p[k], delta[k]);
    } else {
#pragma unroll
        for (u32 k = 0; k < OWN; ++k) delta[k] = loss_slope(BCE_WITH_LOGITS, op.scale, p[k], delta[k]);
    }
    through_activation(delta, p, op.activation);
    if (leaves) span.store(arena + op.output, delta);
    if (op.packed != NOWHERE) store_packed(span, arena + op.packed, op.operands, delta);
}

KERNEL(elementwise_curvature, Supervised) {
    Span span((u64)op.rows * op.outputs, in_fours(op.prediction, op.e, op.output));
    float p[OWN], z[OWN], begun[OWN] = {};
    span.load(p, arena + op.prediction);
    span.load(z, arena + op.e);
    if (op.begun) span.load(begun, arena + op.output);
    if (op.loss == MSE) {
#pragma unroll
        for (u32 k = 0; k < OWN; ++k) z[k] *= loss_second(MSE, op.scale, p[k]);
    } else {
#pragma unroll
        for (u32 k = 0; k < OWN; ++k) z[k] *= loss_second(BCE_WITH_LOGITS, op.scale, p[k]);
    }
    through_activation(z, p, op.activation);
    if (op.begun) {
#pragma unroll
        for (u32 k = 0; k < OWN; ++k) z[k] += begun[k];
    }
    span.store(arena + op.output, z);
    if (op.packed != NOWHERE) store_packed(span, arena + op.packed, op.operands, z);
}

// The row of the thread's warp.
__device__ inline u32 warp_row() { return blockIdx.x * WARPS + threadIdx.x / 32; }

KERNEL(cross_entropy_delta, Supervised) {
    u32 row = warp_row();
    if (row >= op.rows) return;
    u64 at = (u64)row * op.outputs;
    cross_entropy_delta_row(arena + op.prediction + at, arena + op.target + at, arena + op.output + at, op.outputs, op.scale,
                            op.activation);
}

KERNEL(cross_entropy_curvature, Supervised) {
    u32 row = warp_row();
    if (row >= op.rows) return;
    u64 at = (u64)row * op.outputs;
    cross_entropy_curvature_row(arena + op.prediction + at, arena + op.target + at, arena + op.e + at, arena + op.output + at,
                                op.outputs, op.scale, op.activation, op.begun);
}

// The mean loss of each task; a block a task.
KERNEL(supervised_loss, Supervised) {
    SHARED(Partials, partials);
    u32 rows = op.rows / op.tasks;
    u64 first = (u64)blockIdx.x * rows * op.outputs;
    const float* p = arena + op.prediction + first;
    const float* y = arena + op.target + first;
    bool fours = in_fours(op.prediction + first, op.target + first, (u64)rows * op.outputs);
    double mean = fours ? task_mean<4>(partials, op.loss, p, y, rows, op.outputs)
                        : task_mean<1>(partials, op.loss, p, y, rows, op.outputs);
    if (threadIdx.x == 0) arena[op.output + blockIdx.x] = (float)mean;
}

struct Adversarial {
    u64 logits;
    // The deltas, three blocks; the cotangents of e, three blocks, and of z, two (curvature only).
    u64 delta;
    u64 e;
    u64 z;
    // The losses of each task, or NOWHERE.
    u64 discriminator_loss;
    u64 generator_loss;
    u32 tasks;
    u32 rows;
    u32 activation;
    u32 begun;
    float weight;
    // 1 / rows.
    float scale;
};
static_assert(sizeof(Adversarial) == 72, "mirrored in Rust");

// A block a task.
KERNEL(adversarial_loss, Adversarial) {
    SHARED(Partials, partials);
    u32 all = op.tasks * op.rows;
    double discriminator = 0.0, generator = 0.0;
    for (u32 k = threadIdx.x; k < op.rows; k += THREADS) {
        u32 at = blockIdx.x * op.rows + k;
        float real = arena[op.logits + at];
        float generated = arena[op.logits + all + at];
        discriminator += (double)softplus(-real) + (double)softplus(generated);
        generator += softplus(-generated);
        float gate = act_derivative(op.activation, generated);
        // sigmoid(x) - 1 = -sigmoid(-x), without cancellation.
        arena[op.delta + at] = -op.scale * sigmoid(-real) * act_derivative(op.activation, real);
        arena[op.delta + all + at] = op.scale * sigmoid(generated) * gate;
        arena[op.delta + 2 * (u64)all + at] = -op.weight * op.scale * sigmoid(-generated) * gate;
    }
    discriminator = block_sum(partials, discriminator);
    generator = block_sum(partials, generator);
    if (threadIdx.x != 0) return;
    if (op.discriminator_loss != NOWHERE) arena[op.discriminator_loss + blockIdx.x] = (float)(discriminator / op.rows);
    if (op.generator_loss != NOWHERE) arena[op.generator_loss + blockIdx.x] = (float)(op.weight * generator / op.rows);
}

// A logit a thread: the real block's, then the generated one's, which gets the parts of both losses.
KERNEL(adversarial_curvature, Adversarial) {
    u32 all = op.tasks * op.rows;
    u32 i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= 2 * all) return;
    float logit = arena[op.logits + i];
    float e = arena[op.e + i];
    if (i >= all) e += op.weight * arena[op.e + all + i];
    float second = sigmoid(logit) * sigmoid(-logit);
    float z = op.scale * second * e * act_derivative(op.activation, logit);
    float* out = arena + op.z + i;
    *out = op.begun ? *out + z : z;
}

// The squared differences of values `distance` apart within each run of `period` values, times `factor`.
struct Differences {
    double factor;
    u32 period;
    u32 distance;
};

struct Pixel {
    u64 prediction;
    u64 target;
    u64 upstream;
    // Curvature only.
    u64 e;
    // delta, z's cotangent, or the task losses.
    u64 output;
    // The factor of a squared pixel, and the differences in time, across the lines of a frame and along them.
    double reconstruction;
    Differences differences[3];
    u32 rows;
    u32 width;
    u32 activation;
    u32 begun;
    // Of a copy of the output in 16 bits, in numbers of 32 bits; NOWHERE without one.
    u64 packed;
    u32 operands;
    u32 unused;
};
static_assert(sizeof(Pixel) == 128, "mirrored in Rust");

// Number `at` of the output, and of its copy.
__device__ inline void leave_pixel(float* arena, const Pixel& op, u64 at, float value) {
    arena[op.output + at] = value;
    if (op.packed != NOWHERE) ((unsigned short*)(arena + op.packed))[at] = (unsigned short)round_pair(op.operands, value, 0.0f);
}

// 2 (rec * v + sum over the differences d of factor * d^T d v) at element `i` of a clip.
template <class Value>
__device__ inline float quadratic(const Pixel& op, u32 i, Value v) {
    float here = v(i);
    float sum = (float)op.reconstruction * here;
    for (const Differences& d : op.differences) {
        float factor = (float)d.factor;
        if (factor == 0.0f) continue;
        u32 at = i % d.period;
        float difference = 0.0f;
        if (at >= d.distance) difference += here - v(i - d.distance);
        if (at + d.distance < d.period) difference += here - v(i + d.distance);
        sum += factor * difference;
    }
    return sum + sum;
}

// Grid: x the rows, y the columns.
KERNEL(pixel_delta, Pixel) {
    u32 i = blockIdx.y * THREADS + threadIdx.x;
    if (i >= op.width) return;
    u64 start = (u64)blockIdx.x * op.width;
    const float* p = arena + op.prediction + start;
    const float* x = arena + op.target + start;
    float gradient = quadratic(op, i, [&](u32 j) { return p[j] - x[j]; });
    float delta = arena[op.upstream + start + i] + gradient;
    leave_pixel(arena, op, start + i, delta * act_derivative(op.activation, p[i]));
}

// Grid: x the rows, y the columns.
KERNEL(pixel_curvature, Pixel) {
    u32 i = blockIdx.y * THREADS + threadIdx.x;
    if (i >= op.width) return;
    u64 start = (u64)blockIdx.x * op.width;
    const float* e = arena + op.e + start;
    float second = quadratic(op, i, [&](u32 j) { return e[j]; });
    float z = arena[op.upstream + start + i] + second;
    z *= act_derivative(op.activation, arena[op.prediction + start + i]);
    leave_pixel(arena, op, start + i, op.begun ? arena[op.output + start + i] + z : z);
}

// Adds to the losses of the tasks; a block a task, of `rows` rows.
KERNEL(pixel_loss, Pixel) {
    SHARED(Partials, partials);
    double sum = 0.0;
    for (u32 row = 0; row < op.rows; ++row) {
        u64 start = ((u64)blockIdx.x * op.rows + row) * op.width;
        const float* p = arena + op.prediction + start;
        const float* x = arena + op.target + start;
        for (u32 i = threadIdx.x; i < op.width; i += THREADS) {
            float here = p[i] - x[i];
            sum += op.reconstruction * here * here;
            for (const Differences& d : op.differences) {
                if (d.factor == 0.0 || i % d.period < d.distance) continue;
                float change = here - (p[i - d.distance] - x[i - d.distance]);
                sum += d.factor * change * change;
            }
        }
    }
    sum = block_sum(partials, sum);
    if (threadIdx.x == 0) arena[op.output + blockIdx.x] += (float)sum;
}
