// What ../wgmma.cuh describes, on the CPU. A tile arrives no sooner than when no thread can go on without one, several in any
// order, and NaN lies in its place until then. A product reads its operands, by their descriptions, when it is waited for.
#pragma once

#include "cuda.h"
#include "mma.h"

#define HERE __FILE__, __LINE__

namespace emulation {

// A barrier's 64 bits, from the lowest: bytes that are yet to come, arrivals that are, arrivals of a phase, the phase's parity,
// and a mark that it has begun.
struct Phase {
    int32_t bytes;
    u32 left : 12, arrivals : 12, parity : 1, mark : 7;
};
static_assert(sizeof(Phase) == sizeof(u64), "as the device's");
constexpr u32 BEGUN = 0x2a;

inline Phase phase_of(const u64& barrier, const char* file, int line) {
    Phase phase;
    std::memcpy(&phase, &barrier, sizeof phase);
    if (phase.mark != BEGUN) mistaken("a barrier that has not begun", file, line);
    return phase;
}

// Stores it, and goes on to the next phase where this one is complete.
inline void store_phase(u64& barrier, Phase phase) {
    if (phase.left == 0 && phase.bytes == 0) {
        phase.parity ^= 1;
        phase.left = phase.arrivals;
    }
    std::memcpy(&barrier, &phase, sizeof phase);
}

inline void arrive_with(u64& barrier, u32 bytes, const char* file, int line) {
    Phase phase = phase_of(barrier, file, line);
    if (phase.left == 0) mistaken("more arrivals than a phase has", file, line);
    phase.bytes += (int)bytes;
    --phase.left;
    store_phase(barrier, phase);
}

// What the driver makes of matrices that lie one behind the other, as planes: the words of a `TensorMap`. Numbers are of so many
// bytes; tiles are 128 bytes wide and `tall` rows.
struct Matrix {
    char* base;
    uint64_t rows, width, pitch, tall, bytes;

    explicit Matrix(const TensorMap& map) { std::memcpy(this, &map, sizeof *this); }

    // The number in row `r` and column `c` of the tile from (row, column) on, if the matrix reaches so far.
    char* at(int plane, int row, u32 r, int column, u32 c) const {
        int64_t y = row + (int64_t)r, x = column + (int64_t)c;
        bool inside = y >= 0 && x >= 0 && y < (int64_t)rows && x < (int64_t)width;
        return inside ? base + ((plane * rows + y) * pitch + x) * bytes : nullptr;
    }
};

// Of an address that is a multiple of 16 but for its last 4 bits: `row_bytes` is the swizzle's.
UNCHECKED inline u32 swizzled(u32 address, u32 row_bytes) { return address ^ (address >> 3 & (row_bytes - 16)); }

// A product's operand, read by its description.
struct Described {
    u32 begin, first, second, row_bytes;
    bool outer_contiguous;

    Described(uint64_t bits, bool outer_contiguous, const char* file, int line)
        : begin((u32)(bits & 0x3fff) << 4),
          first((u32)(bits >> 16 & 0x3fff) << 4),
          second((u32)(bits >> 32 & 0x3fff) << 4),
          row_bytes(bits >> 62 == 0 ? 16 : 256 >> (bits >> 62)),
          outer_contiguous(outer_contiguous) {
        if (bits >> 49 & 7) mistaken("an operand whose pattern begins elsewhere", file, line);
    }

    UNCHECKED uint16_t at(u32 outer, u32 k) const {
        u32 number = row_bytes / 2, address;
        if (outer_contiguous) {
            // Without a swizzle the two distances change places.
            u32 across = row_bytes == 16 ? second : first, along = row_bytes == 16 ? first : second;
            address = begin + outer / number * across + outer % number * 2 + k / 8 * along + k % 8 * row_bytes;
        } else {
            u32 piece = row_bytes == 16 ? first : 16;
            address = begin + outer / 8 * second + outer % 8 * row_bytes + k / 8 * piece + k % 8 * 2;
        }
        uint16_t value;
        std::memcpy(&value, shared_bytes(swizzled(address, row_bytes), 2, HERE), 2);
        return value;
    }
};

// Adds the product of the thread's two rows of A with B.
template <int N, float (*DECODE)(u32)>
UNCHECKED void add_product(float (&to)[N], const float (&rows)[2][16], const Described& right, bool add) {
    int column = current->thread.x % 4 * 2;
    for (int j = 0; j < N / 4; ++j) {
        for (int i = 0; i < 2; ++i) {
            double sum[2] = {add ? to[4 * j + i] : 0.0, add ? to[4 * j + 2 + i] : 0.0};
            for (int k = 0; k < 16; ++k) {
                double value = DECODE(right.at(8 * j + column + i, k));
                for (int half = 0; half < 2; ++half) sum[half] += rows[half][k] * value;
            }
            for (int half = 0; half < 2; ++half) to[4 * j + 2 * half + i] = (float)sum[half];
        }
    }
}

// What all lanes hand the instruction alike.
inline void agree(const Words& mine, const char* file, int line) {
    hand(mine, file, line);
    const Words& other = handed(0);
    if (std::memcmp(&other, &mine, sizeof mine) != 0) mistaken("lanes that multiply different things", file, line);
}

template <int N, float (*DECODE)(u32)>
void multiply_later(float (&d)[N], uint64_t a, uint64_t b, bool a_outer, bool b_outer, bool add, const char* file, int line) {
    agree({{a, b, add}}, file, line);
    auto to = &d;
    work_later([=] {
        Described left(a, a_outer, file, line), right(b, b_outer, file, line);
        int lane = current->thread.x % 32, row = current->thread.x / 32 % 4 * 16 + lane / 4;
        float rows[2][16];
        for (int k = 0; k < 16; ++k) {
            for (int i = 0; i < 2; ++i) rows[i][k] = DECODE(left.at(row + 8 * i, k));
        }
        add_product<N, DECODE>(*to, rows, right, add);
    });
}

// Registers, too, are read when the product is waited for: those of the four lanes that hold the thread's rows.
template <int N, float (*DECODE)(u32)>
void multiply_held_later(float (&d)[N], const u32 (&a)[4], uint64_t b, bool b_outer, const char* file, int line) {
    agree({{b}}, file, line);
    auto to = &d;
    auto from = &a;
    work_later([=] {
        Words mine = {};
        std::memcpy(mine.word, *from, sizeof *from);
        hand(mine, file, line);
        float rows[2][16];
        for (int t = 0; t < 4; ++t) {
            u32 held[4];
            std::memcpy(held, handed(current->thread.x % 32 / 4 * 4 + t).word, sizeof held);
            for (int i = 0; i < 4; ++i) {
                for (int half = 0; half < 2; ++half) {
                    rows[i % 2][i / 2 * 8 + 2 * t + half] = DECODE(held[i] >> half * 16 & 0xffff);
                }
            }
        }
        Described right(b, b_outer, file, line);
        add_product<N, DECODE>(*to, rows, right, true);
    });
}

}  // namespace emulation

inline u32 shared_address(const void* pointer) { return emulation::shared_address(pointer); }

inline void begin_barrier(Barrier& barrier, u32 arrivals) {
    emulation::Phase phase = {0, arrivals, arrivals, 0, emulation::BEGUN};
    std::memcpy(&barrier, &phase, sizeof phase);
}
inline void show_barriers() {}
inline void arrive(Barrier& barrier) { emulation::arrive_with(barrier, 0, HERE); }
inline void arrive_expecting(Barrier& barrier, u32 bytes) { emulation::arrive_with(barrier, bytes, HERE); }

inline void await_phase(Barrier& barrier, u32 parity) {
    auto complete = [](const void* barrier, unsigned parity) {
        return emulation::phase_of(*static_cast<const Barrier*>(barrier), HERE).parity != parity;
    };
    emulation::wait_until(complete, &barrier, parity, HERE);
}

inline void copy_tile(void* to, const TensorMap& map, int column, int row, Barrier& barrier) {
    using namespace emulation;
    u32 address = ::shared_address(to);
    if (address % 128 != 0) mistaken("a tile that is not aligned", HERE);
    Matrix matrix(map);
    u32 bytes = (u32)matrix.tall * ROW_BYTES;
    std::memset(shared_bytes(address, bytes, HERE), 0xff, bytes);
    Barrier* at = &barrier;
    beside(
        [=] {
            for (u32 r = 0; r < matrix.tall; ++r) {
                for (u32 c = 0; c < PANEL; ++c) {
                    const char* from = matrix.at(0, row, r, column, c);
                    u32 place = swizzled(address + r * ROW_BYTES + c * 2, ROW_BYTES);
                    char* there = shared_bytes(place, 2, HERE);
                    from ? (void)std::memcpy(there, from, 2) : (void)std::memset(there, 0, 2);
                }
            }
            Phase phase = phase_of(*at, HERE);
            phase.bytes -= bytes;
            store_phase(*at, phase);
        },
        HERE);
}
inline void prefetch_map(const TensorMap&) {}

// A block is a cluster of its own.
inline u32 rank_in_cluster() { return 0; }
inline void await_cluster() { emulation::barrier(HERE); }
inline void arrive_at(Barrier& barrier, u32 rank) {
    if (rank != 0) emulation::mistaken("a block that is not there", HERE);
    arrive(barrier);
}
template <int BLOCKS>
void copy_tile_to_all(void* to, const TensorMap& map, int column, int row, Barrier& barrier) {
    copy_tile(to, map, column, row, barrier);
}

// A tile is read at once: that is the earliest that the engine may.
inline void write_tile(const TensorMap& map, const void* from, int column, int row, int plane) {
    using namespace emulation;
    Matrix matrix(map);
    u32 address = ::shared_address(from), bytes = (u32)matrix.bytes;
    if (address % 128 != 0) mistaken("a tile that is not aligned", HERE);
    for (u32 r = 0; r < matrix.tall; ++r) {
        for (u32 c = 0; c < ROW_BYTES / bytes; ++c) {
            char* to = matrix.at(plane, row, r, column, c);
            u32 place = swizzled(address + r * ROW_BYTES + c * bytes, ROW_BYTES);
            if (to) std::memcpy(to, shared_bytes(place, bytes, HERE), bytes);
        }
    }
}
inline void end_writes() {}
template <int PENDING>
void await_writes() {}
inline void show_stores() {}

inline void await_warpgroup(int number) {
    // Of the block that runs on this thread of the system, which leaves them as it found them.
    struct Meeting {
        u32 there, times;
    };
    static thread_local Meeting meetings[8];
    Meeting& meeting = meetings[number];
    u32 times = meeting.times;
    // All go on at once, so that lanes of a warp stay together.
    if (++meeting.there == 128) {
        meeting.there = 0;
        emulation::beside([&meeting] { ++meeting.times; }, HERE);
    }
    auto over = [](const void* times, unsigned before) { return *static_cast<const u32*>(times) != before; };
    emulation::wait_until(over, &meeting.times, times, HERE);
}

inline void store_columns(void* to, const u32 (&matrix)[4]) {
    using namespace emulation;
    u32 lane = current->thread.x % 32;
    hand({{(uint64_t)(uintptr_t)to, matrix[0] | (uint64_t)matrix[1] << 32, matrix[2] | (uint64_t)matrix[3] << 32}}, HERE);
    // Lane 8m + c stores column c of matrix m: of each row, what one of the four lanes that hold it has.
    for (u32 row = 0; row < 8; ++row) {
        u32 column = lane % 8, m = lane / 8;
        uint64_t pairs = handed(row * 4 + column / 2).word[1 + m / 2];
        uint16_t value = (uint16_t)(pairs >> (m % 2 * 32 + column % 2 * 16));
        std::memcpy(shared_bytes(::shared_address(to) + row * 2, 2, HERE), &value, 2);
    }
}

template <int N>
void begin_products(float (&)[N]) {}
inline void end_products() { emulation::end_work(); }
template <int PENDING, int N>
void await_products(float (&)[N]) {
    emulation::await_work(PENDING);
}
template <int COUNT>
void take_registers() {}
template <int COUNT>
void leave_registers() {}

template <bool A_OUTER, bool B_OUTER, int N>
void multiply_bf16(float (&d)[N], u64 a, u64 b, bool add) {
    emulation::multiply_later<N, emulation::from_bf16>(d, a, b, A_OUTER, B_OUTER, add, HERE);
}
template <bool A_OUTER, bool B_OUTER, int N>
void multiply_f16(float (&d)[N], u64 a, u64 b, bool add) {
    emulation::multiply_later<N, emulation::from_f16>(d, a, b, A_OUTER, B_OUTER, add, HERE);
}

template <bool B_OUTER, int N>
void multiply_held_bf16(float (&d)[N], const u32 (&a)[4], u64 b) {
    emulation::multiply_held_later<N, emulation::from_bf16>(d, a, b, B_OUTER, HERE);
}
template <bool B_OUTER, int N>
void multiply_held_f16(float (&d)[N], const u32 (&a)[4], u64 b) {
    emulation::multiply_held_later<N, emulation::from_f16>(d, a, b, B_OUTER, HERE);
}

#undef HERE
