// The products with shared weights on Hopper: those of linear.cu, of operands that pack.cu has packed, with the same ends.

#include "hopper.cuh"
#include "ends.cuh"
#include "tensor.cuh"

struct HopperProduct {
    TensorMap weight;
    // Its tiles are what one block of a cluster copies.
    TensorMap rows;
    // Of the outputs, or of the sums, [parts, rows, width]: by tiles of 32 rows of 32.
    TensorMap numbers;
    // Of the outputs' copy in 16 bits: by tiles of 32 rows of 64.
    TensorMap copy;
    // One group, and so one source, which has rows.
    Product product;
    // Where the sums of each part of the inner dimension go, for another kernel to end; NOWHERE when this one does.
    u64 raw;
    u32 parts;
    // `Leaves`.
    u32 leaves;
};
static_assert(sizeof(HopperProduct) == 768, "mirrored in Rust");
static_assert(Hopper64x64::SHARED_BYTES == 99408 && Hopper64x160::SHARED_BYTES == 214112 &&
                  Hopper128x128::SHARED_BYTES == 230480 && Hopper128x160::SHARED_BYTES == 218192 &&
                  Hopper128x256::SHARED_BYTES == 230464,
              "mirrored in Rust");

// What becomes of the outputs: they go to the arena, or a copy in 16 bits does, or both; sums are never copied. Numbers that lie so
// that the engine can write them leave by tiles.
enum Leaves : u32 { LEAVES_NUMBERS = 1, LEAVES_TILES = 2, LEAVES_COPY = 4 };

#ifdef WARPGROUPS

// Of a consumer's share of a tile a thread holds, of every 32 rows, 16 numbers: `v[4j + 2h + e]` lies 8j + e rows and 8h columns
// from the first. Four lanes that have the same columns have rows in turn, eight that have the same rows have columns in turn: an
// access of a warp to the arena is of whole sectors of 32 bytes.
constexpr int HELD_SUMS = 16;

// The ends of some rows, where they need more than a bias: what is in the arena beside the sums is read, and the outputs written.
template <class End>
__device__ inline void end_held(float (&v)[HELD_SUMS], float* arena, const Product& product, u32 row, u32 column) {
    struct One {
        __device__ void load(float (&to)[1], const float* from) const { load_piece(to, from); }
        __device__ void store(float* to, const float (&from)[1]) const { store_piece(to, from); }
    };
    constexpr int N = HELD_SUMS / 2;
    u32 rows = product.group_rows * product.blocks;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        Outputs<N, 1> all;
        int at[N];
#pragma unroll
        for (int i = 0; i < N; ++i) {
            u32 here = row + i / 2 * 8 + i % 2;
            at[i] = here < rows && column + 8 * h < product.width ? (int)here : -1;
            all.sums[i][0] = v[i / 2 * 4 + h * 2 + i % 2];
            all.added[i][0] = 0.0f;
        }
        end_outputs<End>(arena, product, at, column + 8 * h, all, One());
#pragma unroll
        for (int i = 0; i < N; ++i) v[i / 2 * 4 + h * 2 + i % 2] = all.output[i][0];
    }
}

// The end of a product, for one thread of a consumer.
template <class End, class Tile>
struct HopperEnd {
    static constexpr bool FORWARD = std::is_same_v<End, Forward>;
    static constexpr int HANDED = Tile::HANDED;
    typedef float Sums[Tile::ROWS / 2];

    float* arena;
    const HopperProduct& op;
    typename Tile::Shared& shared;
    u32 rows;
    bool raw, plain;
    int consumer = threadIdx.x / 128, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    // Whether something has left.
    bool room_taken = false;

    __device__ HopperEnd(float* arena, const HopperProduct& op, typename Tile::Shared& shared)
        : arena(arena), op(op), shared(shared), rows(op.product.group_rows * op.product.blocks), raw(op.raw != NOWHERE) {
        const Product& product = op.product;
        const Source& source = product.sources[0];
        bool gated = std::is_same_v<End, Adjoint> ? product.delta != NOWHERE : product.gated != 0;
        bool everywhere = source.first == 0 && source.rows == rows;
        plain = !gated && !product.begun && (!FORWARD || source.bias == NOWHERE || everywhere);
    }

    // The consumer's share `d` of a tile, from (row, column) on.
    __device__ void operator()(Sums& d, u32 part, u32 row, u32 column) {
        const Product& product = op.product;
        u32 own_row = row + lane % 4 * 2, own_column = column + warp * 16 + lane / 4;
        bool numbers = op.leaves & LEAVES_NUMBERS;
        if (!raw && plain) {
            end(d, own_column);
        } else if (!raw) {
            numbers = false;
            each(d, row, [&](float (&v)[HELD_SUMS], u32 first) { end_held<End>(v, arena, product, own_row + first, own_column); });
        }
        if (numbers && (op.leaves & LEAVES_TILES)) {
            leave_numbers(d, row, column, raw ? part : 0);
        } else if (numbers) {
            float* to = arena + (raw ? op.raw + part * (u64)rows * product.width : product.output);
            each(d, row, [&](float (&v)[HELD_SUMS], u32 first) { store(to, v, own_row + first, own_column); });
        }
        if (op.leaves & LEAVES_COPY) leave_copy(d, row, column);
    }

    // Takes what is held of 32 rows at a time, and leaves it as `work` does.
    template <class Work>
    __device__ void each(Sums& d, u32 row, Work work) const {
        // What is done is not repeated in the code, or fetching it would take longer than doing it.
#pragma unroll 1
        for (int first = 0; first < Tile::ROWS && row + first < rows; first += HANDED) {
            float v[HELD_SUMS];
            // Whole, because registers are not to be indexed.
#pragma unroll
            for (int here = 0; here < Tile::ROWS; here += HANDED) {
                if (here != first) continue;
#pragma unroll
                for (int i = 0; i < HELD_SUMS; ++i) v[i] = d[here / 2 + i];
            }
            work(v, first);
#pragma unroll
            for (int here = 0; here < Tile::ROWS; here += HANDED) {
                if (here != first) continue;
#pragma unroll
                for (int i = 0; i < HELD_SUMS; ++i) d[here / 2 + i] = v[i];
            }
        }
    }

    // d = act(share (d + bias))
    __device__ void end(Sums& d, u32 column) const {
        const Product& product = op.product;
        float bias[2] = {}, share = share_of(arena, product);
        if (FORWARD && product.sources[0].bias != NOWHERE) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                if (column + 8 * h < product.width) bias[h] = arena[product.sources[0].bias + column + 8 * h];
            }
        }
        u32 activation = FORWARD ? product.activation : (u32)LINEAR;
        auto one = [&](auto chosen, float sum, int i) {
            return act(chosen.activation, share * (sum + bias[i / 2 % 2]));
        };
        auto all = [&](auto chosen) {
#pragma unroll
            for (int i = 0; i < Tile::ROWS / 2; ++i) d[i] = one(chosen, d[i], i);
        };
        if (activation == LINEAR) return all(Chosen<LINEAR>());
        if (activation == RELU) return all(Chosen<RELU>());
        each(d, 0, [&](float (&v)[HELD_SUMS], u32) {
            choose(activation, [&](auto chosen) {
#pragma unroll
                for (int i = 0; i < HELD_SUMS; ++i) v[i] = one(chosen, v[i], i);
            });
        });
    }

    // At `to`, rows of the output's width.
    __device__ void store(float* to, const float (&v)[HELD_SUMS], u32 row, u32 column) const {
        u32 width = op.product.width;
#pragma unroll
        for (int i = 0; i < HELD_SUMS; ++i) {
            u32 y = row + i / 4 * 8 + i % 2, x = column + i / 2 % 2 * 8;
            if (y < rows && x < width) to[(u64)y * width + x] = v[i];
        }
    }

    // Has tiles leave, a pair for every HEIGHT rows: `put(first, pair)` stores what is in the rows from `first` on, `write(first,
    // pair)` has the engine write it. As many as there is room for leave at once: what shows stores to the engine also waits for
    // what it has written before.
    template <int HEIGHT, class Put, class Write>
    __device__ void leave(u32 row, Put put, Write write) {
        constexpr int STEP = Tile::SLOTS * HEIGHT;
        auto& pairs = shared.outputs[consumer];
#pragma unroll
        for (int begin = 0; begin < Tile::ROWS; begin += STEP) {
            if (row + begin >= rows) break;
            if (room_taken) {
                if (lane == 0) await_writes<0>();
                await_warpgroup(consumer);
            }
            room_taken = true;
#pragma unroll
            for (int at = begin; at < begin + STEP && at < Tile::ROWS; at += HEIGHT) put(at, pairs[(at - begin) / HEIGHT]);
            show_stores();
            await_warpgroup(consumer);
            if (lane == 0) {
#pragma unroll 1
                for (int at = begin + warp * HEIGHT; at < begin + STEP && at < Tile::ROWS && row + at < rows; at += 4 * HEIGHT) {
                    write(at, pairs[(at - begin) / HEIGHT]);
                }
                end_writes();
            }
            __syncwarp();
        }
    }
    typedef unsigned char Pair[2][HANDED * ROW_BYTES];

    // By tiles of 32 x 32, side by side.
    __device__ void leave_numbers(const Sums& d, u32 row, u32 column, u32 plane) {
        // The engine takes the pieces of 16 bytes of a row permuted, as products do. No two lanes of a store meet in a bank.
        auto put = [&](int first, Pair& pair) {
            unsigned char* own = pair[warp / 2] + lane % 4 * 2 * ROW_BYTES + lane / 4 % 4 * 4;
#pragma unroll
            for (int i = 0; i < HELD_SUMS; ++i) {
                int e = i % 2, h = i / 2 % 2, piece = warp % 2 * 4 + h * 2 + lane / 16;
                *(float*)(own + (i / 4 * 8 + e) * ROW_BYTES + (piece ^ (lane % 4 * 2 + e)) * 16) = d[first / 2 + i];
            }
        };
        leave<HANDED>(row, put, [&](int first, Pair& pair) {
            write_tile(op.numbers, pair[0], column, row + first, plane);
            write_tile(op.numbers, pair[1], column + 32, row + first, plane);
        });
    }

    // By tiles of 32 rows of 64, one below the other.
    __device__ void leave_copy(const Sums& d, u32 row, u32 column) {
        auto put = [&](int first, Pair& pair) {
#pragma unroll
            for (int i = 0; i < 2 * HELD_SUMS && first / 2 + i < Tile::ROWS / 2; i += 8) {
                u32 pairs[4];
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                    const float* two = &d[first / 2 + i + 2 * k];
                    pairs[k] = round_pair(op.product.operands, two[0], two[1]);
                }
                int at = i % HELD_SUMS * 2 + lane / 16 * 8 + lane % 8, piece = (warp * 2 + lane / 8 % 2) ^ lane % 8;
                store_columns(pair[i / HELD_SUMS] + at * ROW_BYTES + piece * 16, pairs);
            }
        };
        leave<2 * HANDED>(row, put, [&](int first, Pair& pair) {
            write_tile(op.copy, pair[0], column, row + first, 0);
            if (first + HANDED < Tile::ROWS) write_tile(op.copy, pair[1], column, row + first + HANDED, 0);
        });
    }
};

#endif

template <class End, class Tile>
__device__ inline void hopper_product(float* arena, const HopperProduct& op, typename Tile::Shared& shared) {
#ifdef WARPGROUPS
    constexpr bool LEFT_OUTER = !End::TRANSPOSED;
    const Product& product = op.product;
    Tiling<Tile> tiling(product.group_rows * product.blocks, product.width);
    u32 stages = (product.sources[0].inner + PANEL - 1) / PANEL;
    if (threadIdx.x == 128 * Tile::CONSUMERS) {
        prefetch_map(op.weight);
        prefetch_map(op.rows);
    }
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < Tile::STAGES; ++stage) {
            begin_barrier(shared.full[stage], 1);
            begin_barrier(shared.empty[stage], 4 * Tile::CONSUMERS * Tile::TEAM);
        }
        show_barriers();
    }
    if constexpr (Tile::TEAM == 1) {
        __syncthreads();
    } else {
        await_cluster();
    }
    if (threadIdx.x >= 128 * Tile::CONSUMERS) {
        leave_registers<40>();
        if (threadIdx.x == 128 * Tile::CONSUMERS) {
            produce<Tile, LEFT_OUTER>(shared, op.weight, op.rows, tiling, op.parts, stages, product.sources[0].first);
        }
    } else {
        take_registers<Tile::REGISTERS>();
        int consumer = threadIdx.x / 128;
        HopperEnd<End, Tile> finish(arena, op, shared);
        Turn<Tile::STAGES> turn;
#pragma unroll 1
        for (u32 item = blockIdx.x / Tile::TEAM; item < tiling.count() * op.parts; item += gridDim.x / Tile::TEAM) {
            // Zeros, and not what the first product would overwrite: else the compiler takes products one by one.
            float d[Tile::ROWS / 2] = {};
            u32 row, column;
            Item here(item, tiling.count(), op.parts, stages);
            tiling.place(here.tile, row, column);
            if (product.operands == AS_BF16) {
                consume<Multiply_bf16, Tile, LEFT_OUTER>(shared, d, turn, consumer, here.end - here.begin);
            } else {
                consume<Multiply_f16, Tile, LEFT_OUTER>(shared, d, turn, consumer, here.end - here.begin);
            }
            finish(d, here.part, row, column + consumer * PANEL);
        }
        // What it reads must be there until it was read.
        if (threadIdx.x % 32 == 0) await_writes<0>();
    }
    // Nor may the others' copies and arrivals come to a block that has ended.
    if constexpr (Tile::TEAM > 1) await_cluster();
#endif
}

#define HOPPER_PRODUCT(name, End, Tile)                                \
    KERNEL_OF_TEAMS(name, HopperProduct, Tile::BLOCK_THREADS, Tile::BLOCKS, Tile::TEAM) { \
        SHARED_FROM_1024(Tile::Shared, shared);                        \
        hopper_product<End, Tile>(arena, op, shared);                  \
    }

HOPPER_PRODUCT(hopper_forward_64x64, Forward, Hopper64x64)
HOPPER_PRODUCT(hopper_forward_64x160, Forward, Hopper64x160)
HOPPER_PRODUCT(hopper_forward_128x128, Forward, Hopper128x128)
HOPPER_PRODUCT(hopper_forward_128x160, Forward, Hopper128x160)
HOPPER_PRODUCT(hopper_forward_128x256, Forward, Hopper128x256)
HOPPER_PRODUCT(hopper_backward_64x64, Backward, Hopper64x64)
HOPPER_PRODUCT(hopper_backward_64x160, Backward, Hopper64x160)
HOPPER_PRODUCT(hopper_backward_128x128, Backward, Hopper128x128)
HOPPER_PRODUCT(hopper_backward_128x160, Backward, Hopper128x160)
HOPPER_PRODUCT(hopper_backward_128x256, Backward, Hopper128x256)
HOPPER_PRODUCT(hopper_adjoint_64x64, Adjoint, Hopper64x64)
HOPPER_PRODUCT(hopper_adjoint_64x160, Adjoint, Hopper64x160)
HOPPER_PRODUCT(hopper_adjoint_128x128, Adjoint, Hopper128x128)
HOPPER_PRODUCT(hopper_adjoint_128x160, Adjoint, Hopper128x160)
HOPPER_PRODUCT(hopper_adjoint_128x256, Adjoint, Hopper128x256)
