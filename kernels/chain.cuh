// Layers one after the other in one launch: what a block of tasks makes in one link it multiplies with shared weights in the next,
// while it is at hand. A link is a product, or sums that another kernel has left, or rows as they are; the corrections; their end;
// and inner products of what comes out with the steps' rows.
//
// A block has all rows of a few tasks, by groups of up to 8 rows of one task and one block of rows; every group is the 8 columns of
// a tensor core's product, whose 16 rows are columns of the layer. Weights come in the order in which lanes take them, see
// `pack_fragments`.
#pragma once

#include "ends.cuh"
#include "history.cuh"

constexpr u32 CHAIN_THREADS = 512;
constexpr u32 CHAIN_WARPS = CHAIN_THREADS / 32;
// As many as arguments of 4 KB hold.
constexpr int LINKS = 6;
// Of all links.
constexpr int CHAIN_TERMS = 82;
constexpr int CHAIN_FACTORS = 40;
// Groups of a block at most, in each link.
constexpr u32 CHAIN_GROUPS = 4;
// Rows of earlier steps that are taken at once.
constexpr u32 CHAIN_ROWS = 128;
// Columns of rows that are kept as they are, at most, see chain_thin.cuh.
constexpr u32 THIN = 8;
// Columns that a warp corrects, and from one row of those to the next: rows lie in different banks.
constexpr u32 CHAIN_STRIP = 128;
constexpr u32 CHAIN_PITCH = CHAIN_STRIP + 4;

enum LinkKind : u32 { LINK_ROWS, LINK_FORWARD, LINK_BACKWARD, LINK_ADJOINT };

// `Term`, smaller: places behind the link's.
struct ChainTerm {
    u32 gram;
    u32 rows;
    u32 task_stride;
    u16 row_stride;
    u16 column_stride;
    u16 count;
    u16 column;
    u16 scale;
    // Or NO_PLACE.
    u16 shift;
};
static_assert(sizeof(ChainTerm) == 24, "mirrored in Rust");
constexpr u16 NO_PLACE = 0xffff;

struct Link {
    // One group.
    ProductEnd product;
    // Where either side is thin.
    u64 weight;
    // The bias, and the rows that it reaches.
    u64 bias;
    u32 bias_first;
    u32 bias_rows;
    // Fragments, in numbers of 32 bits, where neither side is thin; NOWHERE without a product.
    u64 weights;
    // Sums that are there already, [parts, rows, width], or the rows themselves.
    u64 raw;
    // Of the copy in 16 bits, in numbers of 32 bits; NOWHERE without one.
    u64 packed;
    // Of the inner products.
    u64 gram;
    // Where the terms' inner products, rows and factors begin.
    u64 grams;
    u64 term_rows;
    u64 scales;
    u32 kind;
    u32 parts;
    u32 inner;
    // Blocks of rows that the link before has made. Output block `first` is the product of block `taken`, and so on, `used` of them.
    u32 given;
    u32 taken;
    u32 used;
    u32 first;
    // Behind the last of the terms of each block, and of the factors: the link before's end where this one's begin.
    u32 end[BLOCKS];
    u32 factors;
    // Columns of the inner products.
    u32 columns;
    // The largest counts of a term, and of a factor.
    u32 most;
    u32 most_factor;
    u32 unused;
};
static_assert(sizeof(Link) == 240, "mirrored in Rust");

struct Chain {
    Link links[LINKS];
    ChainTerm terms[CHAIN_TERMS];
    Factor factors[CHAIN_FACTORS];
    u32 count;
    u32 tasks;
    // Rows a task.
    u32 rows;
    // Tasks a block.
    u32 share;
    // Groups of a block, and the widest rows, that there is room for.
    u32 groups;
    u32 widest;
    // Numbers of shared memory.
    u32 numbers;
    u32 unused;
};
static_assert(sizeof(Chain) == 4080, "mirrored in Rust");

// A group, the rows `first..first + rows` of a task's in one block of rows: the first of them in the output, the group of the link
// before whose rows are multiplied into it, CHAIN_GROUPS where there is none, and its terms, from which on and how many rows they have.
struct alignas(16) ChainGroup {
    u32 task, block, first, rows, output_row, source, term, corrected;
};

struct ChainRun {
    float* arena;
    const Chain& op;
    // The block's tasks.
    u32 first_task, tasks, chunks;
    // Of the link that is made.
    ChainGroup* group;
    // Room for what was made, rounded, and what rounding has left of it, by groups of 8 rows; from row to row.
    u32 *made, *left, made_pitch;
    // And for what is thin.
    float* thin;
    // For the sums of products.
    float* sums;
    u32 sums_pitch;
    // For corrections, warp by warp, or the parts of inner products.
    float* tiles;
    // For coefficients, and where their rows begin, by groups.
    float (*factor)[CHAIN_ROWS][GROUP];
    u64 (*row)[CHAIN_ROWS];

    // All begins at multiples of 16 bytes.
    __device__ ChainRun(float* arena, const Chain& op, float* room) : arena(arena), op(op) {
        first_task = blockIdx.x * op.share;
        tasks = min(op.tasks - first_task, op.share);
        chunks = (op.rows + GROUP - 1) / GROUP;
        made_pitch = op.widest / 2 + 4;
        sums_pitch = op.widest + 4;
        u32 rows = op.groups * GROUP;
        auto take = [&](u32 numbers) {
            float* from = room;
            room += numbers;
            return from;
        };
        tiles = take(CHAIN_WARPS * GROUP * CHAIN_PITCH);
        made = (u32*)take(rows * made_pitch);
        left = (u32*)take(rows * made_pitch);
        sums = take(rows * sums_pitch);
        factor = (float (*)[CHAIN_ROWS][GROUP])take(op.groups * CHAIN_ROWS * GROUP);
        row = (u64(*)[CHAIN_ROWS])take(op.groups * CHAIN_ROWS * 2);
        thin = take(rows * THIN);
        group = (ChainGroup*)take(op.groups * sizeof(ChainGroup) / sizeof(float));
    }

    __device__ u32 warp() const { return threadIdx.x / 32; }
    __device__ u32 lane() const { return threadIdx.x % 32; }

    __device__ u32 groups(const ProductEnd& product) const { return tasks * product.blocks * chunks; }

    // Looks the link's groups up, whose terms begin at `begin`: there are divisions in it.
    __device__ void begin(const Link& link, u32 begin) const {
        u32 index = threadIdx.x;
        if (index < groups(link.product)) {
            u32 chunk = index % chunks, rest = index / chunks, first = chunk * GROUP;
            u32 task = rest / link.product.blocks, block = rest % link.product.blocks, from = block - link.first;
            bool taken = link.weights != NOWHERE && block >= link.first && from < link.used;
            u32 term = block == 0 ? begin : link.end[block - 1], end = link.end[block];
            group[index] = {
                first_task + task,
                block,
                first,
                min(op.rows - first, GROUP),
                (block * op.tasks + first_task + task) * op.rows + first,
                taken ? (task * link.given + link.taken + from) * chunks + chunk : CHAIN_GROUPS,
                term,
                term < end ? (u32)op.terms[end - 1].column + op.terms[end - 1].count : 0,
            };
        }
        __syncthreads();
    }

    template <u32 MOST, u32 AHEAD>
    __device__ void multiply(const Link& link) const;
    __device__ void correct(const Link& link) const;
    template <class End>
    __device__ void end(const Link& link) const;
    __device__ void rows_as_they_are(const Link& link) const;
    __device__ void inner_products(const Link& link, u32 begin) const;
    // The same where rows are thin: chain_thin.cuh.
    __device__ void multiply_to_few(const Link& link) const;
    __device__ void multiply_few(const Link& link) const;
    __device__ void correct_few(const Link& link, u32 start) const;
    template <class End>
    __device__ void end_few(const Link& link) const;
    __device__ void few_as_they_are(const Link& link) const;
    __device__ void inner_products_of_few(const Link& link, u32 begin) const;

    // The factor that column `n` of the inner products is of.
    __device__ const Factor& factor_of(const Link& link, u32 begin, u32 n) const {
        u32 f = begin + n / link.most_factor;
        while (n >= op.factors[f].column + op.factors[f].count) ++f;
        return op.factors[f];
    }

    // How many warps share a group's strip of columns, each with its part of the correction rows.
    __device__ u32 shares(const ProductEnd& product) const { return CHAIN_WARPS / (groups(product) * strips(product)); }
    __device__ static u32 strips(const ProductEnd& product) { return (product.width + CHAIN_STRIP - 1) / CHAIN_STRIP; }

    // Calls `work` with the warp's rows, by strips: the row among all groups', its group, its place in that, and the lane's column.
    template <class Work>
    __device__ void each_row(const ProductEnd& product, Work work) const {
        u32 strips = this->strips(product);
#pragma unroll 1
        for (u32 unit = warp(); unit < groups(product) * GROUP * strips; unit += CHAIN_WARPS) {
            u32 local = unit / strips, column = (unit - local * strips) * CHAIN_STRIP + lane() * 4, index = local / GROUP;
            u32 within = local % GROUP;
            if (within < group[index].rows && column < product.width) work(local, index, within, column);
        }
    }

    __device__ void leave(u32 row, u32 column, const float (&values)[4]) const {
        const Split split(values[0], values[1], values[2], values[3]);
        u32 at = row * made_pitch + column / 2;
        *(u64*)&made[at] = split.rounded[0] | (u64)split.rounded[1] << 32;
        *(u64*)&left[at] = split.left[0] | (u64)split.left[1] << 32;
    }
};

// The products of the rows that the link before has made, to `sums`. A warp has 16 columns of all groups, MOST of them, and so many
// of the inner dimension's pieces on their way.
template <u32 MOST, u32 AHEAD>
__device__ inline void ChainRun::multiply(const Link& link) const {
    u32 g = lane() / 4, t = lane() % 4, count = groups(link.product), tiles_across = link.product.width / 16, steps = link.inner / 16;
    u32 from[MOST];
    bool there[MOST];
#pragma unroll
    for (u32 n = 0; n < MOST; ++n) {
        u32 source = n < count ? group[n].source : CHAIN_GROUPS;
        there[n] = source < CHAIN_GROUPS;
        from[n] = ((there[n] ? source : 0) * GROUP + g) * made_pitch + t;
    }
    const uint4* weights = (const uint4*)(arena + link.weights);
    for (u32 tile = warp(); tile < tiles_across; tile += CHAIN_WARPS) {
        const uint4* fragment = weights + (u64)tile * steps * 32 + lane();
        float sum[MOST][4] = {};
        for (u32 start = 0; start < steps; start += AHEAD) {
            uint4 weight[AHEAD];
#pragma unroll
            for (u32 i = 0; i < AHEAD; ++i) {
                if (start + i < steps) weight[i] = fragment[(start + i) * 32];
            }
#pragma unroll
            for (u32 i = 0; i < AHEAD; ++i) {
                if (start + i >= steps) break;
                u32 columns[4] = {weight[i].x, weight[i].y, weight[i].z, weight[i].w};
#pragma unroll
                for (u32 n = 0; n < MOST; ++n) {
                    if (!there[n]) continue;
                    u32 rows[2] = {made[from[n] + (start + i) * 8], made[from[n] + (start + i) * 8 + 4]};
                    mma_bf16(sum[n], columns, rows);
                }
            }
        }
#pragma unroll
        for (u32 n = 0; n < MOST; ++n) {
            if (n >= count) break;
#pragma unroll
            for (u32 i = 0; i < 4; ++i) sums[(n * GROUP + 2 * t + i % 2) * sums_pitch + tile * 16 + g + i / 2 * 8] = sum[n][i];
        }
    }
}

// The corrections, to `tiles`: each warp its part of them, of 128 columns of a group.
__device__ inline void ChainRun::correct(const Link& link) const {
    const ProductEnd& product = link.product;
    u32 g = lane() / 4, t = lane() % 4, count = groups(product), strips = this->strips(product), shares = this->shares(product);
    bool few = product.width <= THIN;
    u32 slot = warp() / shares, part = warp() % shares, own = slot / strips, column = slot % strips * CHAIN_STRIP + 8 * g;
    bool active = slot < count * strips, inside = column < product.width, inside_right = column + 64 < product.width;
    u32 own_rows = active ? group[own].corrected : 0, most = 0;
    for (u32 n = 0; n < count; ++n) {
        if (group[n].corrected > most) most = group[n].corrected;
    }
    float sum[8][4] = {};
    for (u32 start = 0; start < most; start += CHAIN_ROWS) {
#pragma unroll 1
        for (u32 i = threadIdx.x; i < count * CHAIN_ROWS; i += CHAIN_THREADS) {
            u32 index = i / CHAIN_ROWS, j = i % CHAIN_ROWS, n = start + j;
            const ChainGroup& of = group[index];
            if (n >= of.corrected) continue;
            // No term before this one can hold it, and it is this one where all are of one length.
            u32 f = of.term + n / link.most;
            while (n >= (u32)op.terms[f].column + op.terms[f].count) ++f;
            const ChainTerm& term = op.terms[f];
            u32 within = n - term.column;
            u64 number = (u64)of.task * term.count + within;
            u64 rows = link.term_rows + term.rows;
            row[index][j] = few ? rows + number * product.width : copied_row(rows, number, product.width);
            const float* gram = arena + link.grams + term.gram + (u64)of.task * term.task_stride + (u64)within * term.column_stride +
                                (u64)of.first * term.row_stride;
            float inner[GROUP] = {}, scale = arena[link.scales + term.scale];
            float shift = term.shift != NO_PLACE ? arena[link.scales + term.shift] : 0.0f;
#pragma unroll
            for (u32 r = 0; r < GROUP; ++r) {
                if (r < of.rows) inner[r] = gram[(u64)r * term.row_stride];
            }
#pragma unroll
            for (u32 r = 0; r < GROUP; ++r) factor[index][j][r] = r < of.rows ? scale * (inner[r] + shift) : 0.0f;
        }
        __syncthreads();
        if (few) correct_few(link, start);
        u32 here = start < own_rows && !few ? min(own_rows - start, CHAIN_ROWS) : 0;
        for (u32 step = part; step * 16 < here; step += shares) {
            uint4 lower[4], upper[4];
            float coefficient[4];
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                u32 j = step * 16 + 2 * t + i / 2 * 8 + i % 2;
                bool there = j < here;
                u64 at = there ? row[own][j] + column : 0;
                lower[i] = load_eight(arena, at, there && inside);
                upper[i] = load_eight(arena, at + 64, there && inside_right);
                coefficient[i] = there ? factor[own][j][g] : 0.0f;
            }
            multiply_strip(sum, lower, upper, Split(coefficient[0], coefficient[1], coefficient[2], coefficient[3]));
        }
        __syncthreads();
    }
    if (most > 0 && !few) leave_strip(tiles + warp() * GROUP * CHAIN_PITCH, CHAIN_PITCH, sum);
}

// Ends every row, and leaves it for the link to come.
template <class End>
__device__ inline void ChainRun::end(const Link& link) const {
    constexpr bool FORWARD = std::is_same_v<End, Forward>, ADJOINT = std::is_same_v<End, Adjoint>;
    const ProductEnd& product = link.product;
    const Gate& gate = product.gate;
    bool gated = is_gated<End>(product), curved = is_curved<End>(product);
    u32 shares = this->shares(product), strips = this->strips(product), block_rows = op.tasks * op.rows;
    u64 part = (u64)product.group_rows * product.blocks * product.width;
    choose(activation_of(product, (End*)nullptr), [&](auto chosen) {
        each_row(product, [&](u32 local, u32 index, u32 within, u32 column) {
            const ChainGroup& of = group[index];
            u32 row = of.output_row + within;
            u64 gate_row = row - of.block * block_rows + gate.block[of.block] * block_rows;
            if (gate.block_rows != block_rows && gated) gate_row = gate.row(row);
            u64 at = (u64)row * product.width + column, gate_at = gate_row * product.width + column;
            Outputs<1, 4> all = {};
            // All that comes from far is on its way first.
            all.share = share_of(arena, product);
            all.biased[0] = FORWARD && link.bias != NOWHERE && row - link.bias_first < link.bias_rows;
            load_piece_or_zero(all.bias, arena + link.bias + column, all.biased[0]);
            load_piece_or_zero(all.gate[0], arena + gate.values + gate_at, gated);
            load_piece_or_zero(all.delta[0], arena + product.delta + at, curved);
            load_piece_or_zero(all.output[0], arena + product.output + at, product.begun);
#pragma unroll 4
            for (u32 p = 0; p < link.parts; ++p) {
                float more[4];
                load_piece(more, arena + link.raw + p * part + at);
                all.each([&](int i, int c) { all.sums[i][c] += more[c]; });
            }
            if (link.weights != NOWHERE) load_piece(all.sums[0], &sums[local * sums_pitch + column]);
            u32 parts = min(shares, (min(of.corrected, CHAIN_ROWS) + 15) / 16);
            const float* tile = tiles + ((index * strips + column / CHAIN_STRIP) * shares * GROUP + within) * CHAIN_PITCH + column % CHAIN_STRIP;
            for (u32 p = 0; p < parts; ++p) {
                float more[4];
                load_piece(more, tile + p * GROUP * CHAIN_PITCH);
                all.each([&](int i, int c) { all.added[i][c] += more[c]; });
            }
            // What a forward or an adjoint output holds already goes into the activation too.
            if (product.begun && (FORWARD || ADJOINT)) all.each([&](int i, int c) { all.added[i][c] += all.output[i][c]; });
            all.template end_by<decltype(chosen)::activation>((End*)nullptr);
            if (curved) store_piece(arena + product.z + gate_at, all.delta[0]);
            store_piece(arena + product.output + at, all.output[0]);
            store_copy(arena, link.packed, at, AS_BF16, all.output[0]);
            leave(local, column, all.output[0]);
        });
    });
}

// Takes rows from where they lie.
__device__ inline void ChainRun::rows_as_they_are(const Link& link) const {
    each_row(link.product, [&](u32 local, u32 index, u32 within, u32 column) {
        float values[4];
        load_piece(values, arena + link.raw + (u64)(group[index].output_row + within) * link.product.width + column);
        leave(local, column, values);
    });
}

// The inner products of what was made with the task's rows of each factor. A warp computes 16 x 8 of them over a strip, and strips
// are added in their order.
__device__ inline void ChainRun::inner_products(const Link& link, u32 begin) const {
    const ProductEnd& product = link.product;
    u32 g = lane() / 4, t = lane() % 4, count = groups(product), strips = this->strips(product);
    float* output = arena + link.gram;
    for (u32 start = 0; start < link.columns; start += CHAIN_ROWS) {
        u32 here = min(link.columns - start, CHAIN_ROWS), across = (here + 15) / 16;
        for (u32 i = threadIdx.x; i < count * CHAIN_ROWS; i += CHAIN_THREADS) {
            u32 index = i / CHAIN_ROWS, j = i % CHAIN_ROWS, n = start + j;
            if (j >= here) continue;
            const Factor& of = factor_of(link, begin, n);
            row[index][j] = copied_row(of.rows, (u64)group[index].task * of.count + n - of.column, product.width);
        }
        __syncthreads();
        for (u32 unit = warp(); unit < count * across * strips; unit += CHAIN_WARPS) {
            u32 strip = unit % strips, rest = unit / strips, tile = rest % across, index = rest / across, n = tile * 16 + g;
            u64 lower_row = n < here ? row[index][n] : 0, upper_row = n + 8 < here ? row[index][n + 8] : 0;
            u32 mine = (index * GROUP + g) * made_pitch;
            float sum[4] = {};
#pragma unroll
            for (u32 k = 0; k < CHAIN_STRIP; k += 32) {
                u32 column = strip * CHAIN_STRIP + k + 8 * t;
                bool inside = column < product.width;
                uint4 lower = load_eight(arena, lower_row + column, inside && n < here);
                uint4 upper = load_eight(arena, upper_row + column, inside && n + 8 < here);
                uint4 rounded = {}, rest = {};
                if (inside) {
                    rounded = *(const uint4*)&made[mine + column / 2];
                    rest = *(const uint4*)&left[mine + column / 2];
                }
                multiply_rows(sum, lower, upper, rounded, rest);
            }
#pragma unroll
            for (u32 i = 0; i < 4; ++i) tiles[unit * 16 * GROUP + (g + i / 2 * 8) * GROUP + 2 * t + i % 2] = sum[i];
        }
        __syncthreads();
        for (u32 i = threadIdx.x; i < count * here * GROUP; i += CHAIN_THREADS) {
            u32 r = i / here % GROUP, n = i % here, index = i / here / GROUP;
            if (r >= group[index].rows) continue;
            const float* from = tiles + (index * across + n / 16) * strips * 16 * GROUP + n % 16 * GROUP + r;
            float sum = 0.0f;
            for (u32 strip = 0; strip < strips; ++strip) sum += from[strip * 16 * GROUP];
            output[(u64)(group[index].output_row + r) * link.columns + start + n] = sum;
        }
        __syncthreads();
    }
}
