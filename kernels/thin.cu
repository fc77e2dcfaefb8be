// The products of linear.cu where every task has weights of its own and few rows: up to 8, or up to 16, in all of its blocks.

#include "product.cuh"
#include "thin.cuh"
#include "tile.cuh"

// Numbers of the rows that are held in shared memory at a time.
constexpr u32 CHUNK = 512;

// The output row of the group's row `local`, or -1.
__device__ inline int group_row(const Product& op, u32 group, u32 local) {
    if (local >= op.group_rows * op.blocks) return -1;
    u32 block = local / op.group_rows;
    return (block * op.groups + group) * op.group_rows + local % op.group_rows;
}

// Where the group's input rows begin, of both sources; NOWHERE where there is none.
template <u32 ROWS>
struct InputRows {
    u64 of[2][ROWS];

    // Wants a barrier behind it.
    __device__ void find(const Product& op, u32 group) {
        if (threadIdx.x >= 2 * ROWS) return;
        u32 local = threadIdx.x % ROWS;
        const Source& source = op.sources[threadIdx.x / ROWS];
        int row = group_row(op, group, local);
        bool inside = row >= (int)source.first && row < (int)(source.first + source.rows);
        of[threadIdx.x / ROWS][local] = inside ? source.input + (u64)(row - (int)source.first) * source.inner : NOWHERE;
    }
};

template <u32 ROWS>
struct alignas(16) Along {
    float row[ROWS][CHUNK];
    InputRows<ROWS> inputs;
};

// Rows and outputs of 32 sums, of which every lane gets one, and how many such a warp forms one after the other.
constexpr u32 FOLD_ROWS = 8;
constexpr u32 FOLD_COLUMNS = 4;
constexpr u32 TURNS = 4;
// Outputs of a block.
constexpr u32 ALONG = TURNS * WARPS * FOLD_COLUMNS;
// Strips of every row of the weights that a warp has on their way at once.
constexpr u32 ALONG_AHEAD = 2;

// Holds the chunk of the input rows from `start` on, with zeros behind its end.
template <bool FOURS, u32 ROWS>
__device__ inline void hold(Along<ROWS>& shared, const float* arena, const u64 (&rows)[ROWS], u32 start, u32 inner) {
    static_assert(CHUNK == WARPS * STRIP, "a strip a warp");
    u32 offset = threadIdx.x / 32 * STRIP;
    u32 left = start + offset < inner ? inner - start - offset : 0;
    float held[ROWS][4];
#pragma unroll
    for (u32 r = 0; r < ROWS; ++r) {
        bool there = rows[r] != NOWHERE;
        Strip<FOURS>(start + offset, there ? left : 0).load(held[r], arena + (there ? rows[r] : 0));
    }
#pragma unroll
    for (u32 r = 0; r < ROWS; ++r) hold_strip<FOURS>(shared.row[r] + offset, held[r]);
}

// Rows times weights [width, inner]^T: a warp has 4 rows of the weights, its lanes spread over the inner dimension.
template <class End, u32 ROWS, bool FOURS>
__device__ inline void along(float* arena, const Product& op, Along<ROWS>& shared) {
    constexpr u32 FOLDS = ROWS / FOLD_ROWS;
    u32 tiles = (op.width + ALONG - 1) / ALONG;
    u32 group = blockIdx.x / tiles;
    u32 first = blockIdx.x % tiles * ALONG;
    u32 warp = threadIdx.x / 32;
    u32 lane = threadIdx.x % 32;
    u32 chunks = 0;
#pragma unroll
    for (u32 s = 0; s < 2; ++s) {
        if (op.sources[s].rows > 0) chunks += (op.sources[s].inner + CHUNK - 1) / CHUNK;
    }
    shared.inputs.find(op, group);
    // The lane's outputs.
    int row[FOLDS];
#pragma unroll
    for (u32 f = 0; f < FOLDS; ++f) row[f] = group_row(op, group, f * FOLD_ROWS + lane / FOLD_COLUMNS);

#pragma unroll 1
    for (u32 turn = 0; turn < TURNS; ++turn) {
        u32 begin = first + turn * WARPS * FOLD_COLUMNS;
        if (begin >= op.width) break;
        u32 column = begin + warp * FOLD_COLUMNS;
        u32 own = column + lane % FOLD_COLUMNS;
        typename End::Before before[FOLDS] = {};
#pragma unroll
        for (u32 f = 0; f < FOLDS; ++f) {
            if (row[f] >= 0 && own < op.width) before[f] = End{arena, op, group, row[f]}.before(own);
        }
        float sum[FOLDS][FOLD_ROWS * FOLD_COLUMNS] = {};
#pragma unroll 1
        for (u32 s = 0; s < 2; ++s) {
            const Source& source = op.sources[s];
            if (source.rows == 0) continue;
            const float* weight = arena + source.weight + group * source.group_stride + (u64)column * source.inner;
#pragma unroll 1
            for (u32 start = 0; start < source.inner; start += CHUNK) {
                // A single chunk stays for all turns.
                if (turn == 0 || chunks > 1) {
                    __syncthreads();
                    hold<FOURS>(shared, arena, shared.inputs.of[s], start, source.inner);
                    __syncthreads();
                }
                u32 count = min(CHUNK, source.inner - start);
                for (u32 i = 0; i < count; i += ALONG_AHEAD * STRIP) {
                    float held[ALONG_AHEAD][FOLD_COLUMNS][4];
#pragma unroll
                    for (u32 a = 0; a < ALONG_AHEAD; ++a) {
#pragma unroll
                        for (u32 c = 0; c < FOLD_COLUMNS; ++c) {
                            u32 at = i + a * STRIP;
                            bool inside = at < count && column + c < op.width;
                            Strip<FOURS> strip(start + at, inside ? count - at : 0);
                            strip.load(held[a][c], weight + (u64)c * source.inner);
                        }
                    }
#pragma unroll
                    for (u32 a = 0; a < ALONG_AHEAD; ++a) {
#pragma unroll
                        for (u32 r = 0; r < ROWS; ++r) {
                            float value[4];
                            load_held<FOURS>(value, shared.row[r] + i + a * STRIP);
#pragma unroll
                            for (u32 c = 0; c < FOLD_COLUMNS; ++c) {
                                float& to = sum[r / FOLD_ROWS][r % FOLD_ROWS * FOLD_COLUMNS + c];
#pragma unroll
                                for (u32 p = 0; p < 4; ++p) to += value[p] * held[a][c][p];
                            }
                        }
                    }
                }
            }
        }
#pragma unroll
        for (u32 f = 0; f < FOLDS; ++f) {
            float total = warp_sum_32(sum[f]);
            if (row[f] >= 0 && own < op.width) End{arena, op, group, row[f]}.finish(own, total, before[f]);
        }
    }
}

template <u32 ROWS>
struct alignas(16) Across {
    union {
        float row[CHUNK][ROWS];
        // What each warp's rows of the weights add up to.
        float part[WARPS][ROWS][STRIP];
    };
    InputRows<ROWS> inputs;
};

// Rows of the weights that a warp has on their way at once.
constexpr u32 ACROSS_AHEAD = 8;

// Holds the chunk of the input rows from `start` on, the numbers of all rows side by side, with zeros up to where a warp's rows
// of the weights end.
template <u32 ROWS>
__device__ inline void hold(Across<ROWS>& shared, const float* arena, const u64 (&rows)[ROWS], u32 start, u32 count) {
    for (u32 i = threadIdx.x; i < (count + ACROSS_AHEAD - 1) / ACROSS_AHEAD * ACROSS_AHEAD; i += THREADS) {
        float held[ROWS];
#pragma unroll
        for (u32 r = 0; r < ROWS; ++r) held[r] = i < count && rows[r] != NOWHERE ? arena[rows[r] + start + i] : 0.0f;
        store_fours(shared.row[i], held);
    }
}

// Rows times weights [inner, width]: a block has a strip of the width, and each of its warps every fourth 8 rows of the weights.
template <class End, u32 ROWS, bool FOURS>
__device__ inline void across(float* arena, const Product& op, Across<ROWS>& shared) {
    u32 tiles = (op.width + STRIP - 1) / STRIP;
    u32 group = blockIdx.x / tiles;
    u32 first = blockIdx.x % tiles * STRIP;
    u32 warp = threadIdx.x / 32;
    shared.inputs.find(op, group);
    float sum[ROWS][4] = {};
#pragma unroll 1
    for (u32 s = 0; s < 2; ++s) {
        const Source& source = op.sources[s];
        if (source.rows == 0) continue;
        const float* weight = arena + source.weight + group * source.group_stride;
#pragma unroll 1
        for (u32 start = 0; start < source.inner; start += CHUNK) {
            u32 count = min(CHUNK, source.inner - start);
            __syncthreads();
            hold(shared, arena, shared.inputs.of[s], start, count);
            __syncthreads();
            for (u32 i = warp * ACROSS_AHEAD; i < count; i += WARPS * ACROSS_AHEAD) {
                float held[ACROSS_AHEAD][4];
#pragma unroll
                for (u32 a = 0; a < ACROSS_AHEAD; ++a) {
                    Strip<FOURS> strip(first, i + a < count ? op.width - first : 0);
                    strip.load(held[a], weight + (u64)(start + i + a) * op.width);
                }
#pragma unroll
                for (u32 a = 0; a < ACROSS_AHEAD; ++a) {
                    float value[ROWS];
                    load_fours(value, shared.row[i + a]);
#pragma unroll
                    for (u32 r = 0; r < ROWS; ++r) {
#pragma unroll
                        for (u32 p = 0; p < 4; ++p) sum[r][p] += value[r] * held[a][p];
                    }
                }
            }
        }
    }
    __syncthreads();
#pragma unroll
    for (u32 r = 0; r < ROWS; ++r) hold_strip<FOURS>(shared.part[warp][r], sum[r]);
    __syncthreads();

    u32 column = first + threadIdx.x;
    if (column >= op.width) return;
    typename End::Before before[ROWS] = {};
#pragma unroll
    for (u32 r = 0; r < ROWS; ++r) {
        int row = group_row(op, group, r);
        if (row >= 0) before[r] = End{arena, op, group, row}.before(column);
    }
#pragma unroll
    for (u32 r = 0; r < ROWS; ++r) {
        int row = group_row(op, group, r);
        if (row < 0) break;
        float total = 0.0f;
#pragma unroll
        for (u32 w = 0; w < WARPS; ++w) total += shared.part[w][r][threadIdx.x];
        End{arena, op, group, row}.finish(column, total, before[r]);
    }
}

// Whether the rows of a source and of its weights lie at multiples of four.
__device__ inline bool weights_in_fours(const Source& source, u32 width) {
    return source.rows == 0 || in_fours(source.weight, source.group_stride, (u64)width);
}

// Three blocks a multiprocessor, or two, leave room for the registers in which all that is on its way arrives.
//
// Grid: the tiles of 64 outputs of every group.
#define THIN_ALONG(name, End, rows)                                                                                    \
    KERNEL_OF(name, Product, THREADS, rows == FEW ? 3 : 2) {                                                           \
        SHARED(Along<rows>, shared);                                                                                   \
        const Source &one = op.sources[0], &two = op.sources[1];                                                       \
        if (weights_in_fours(one, one.inner) && weights_in_fours(two, two.inner) && in_fours(one.input, two.input)) {  \
            along<End, rows, true>(arena, op, shared);                                                                 \
        } else {                                                                                                       \
            along<End, rows, false>(arena, op, shared);                                                                \
        }                                                                                                              \
    }

// Grid: the strips of every group.
#define THIN_ACROSS(name, End, rows)                                                                                   \
    KERNEL_OF(name, Product, THREADS, 3) {                                                                            \
        SHARED(Across<rows>, shared);                                                                                  \
        if (weights_in_fours(op.sources[0], op.width) && weights_in_fours(op.sources[1], op.width)) {                  \
            across<End, rows, true>(arena, op, shared);                                                                \
        } else {                                                                                                       \
            across<End, rows, false>(arena, op, shared);                                                               \
        }                                                                                                              \
    }

THIN_ALONG(thin_forward, Forward, FEW)
THIN_ALONG(thin_forward_16, Forward, SOME)
THIN_ALONG(thin_adjoint, Adjoint, FEW)
THIN_ALONG(thin_adjoint_16, Adjoint, SOME)
THIN_ACROSS(thin_backward, Backward, FEW)
THIN_ACROSS(thin_backward_16, Backward, SOME)
