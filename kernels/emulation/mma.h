// What ../mma.cuh describes, on the CPU. A copy arrives as late as it may, when its thread waits for it, and NaN lies where it is
// to arrive until then. Products go by the layout of the fragments, looked up lane by lane.
#pragma once

#include "cuda.h"

typedef unsigned int u32;

template <int COUNT>
void copy_async(float* to, const float* from, bool inside) {
    emulation::copy_later(to, from, COUNT * sizeof(float), inside, __FILE__, __LINE__);
}

inline void end_copies() { emulation::end_copies(); }

template <int PENDING>
void await_copies() {
    emulation::await_copies(PENDING);
}

namespace emulation {

UNCHECKED inline u32 bits_of(float value) {
    u32 bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

UNCHECKED inline float float_of(u32 bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// Drops the last COUNT bits, to the nearest, ties to even; NaN stays one.
template <int COUNT>
u32 drop_bits(float value) {
    u32 bits = bits_of(value), last = 1u << COUNT, rest = bits & (last - 1);
    if (value != value) return bits | 1u << 22;
    bool up = rest > last / 2 || (rest == last / 2 && (bits & last));
    return bits - rest + (up ? last : 0);
}

inline u32 to_bf16(float value) { return drop_bits<16>(value) >> 16; }
UNCHECKED inline float from_bf16(u32 bits) { return float_of(bits << 16); }

inline u32 to_f16(float value) {
    u32 sign = bits_of(value) >> 16 & 0x8000;
    float size = std::fabs(value);
    if (value != value) return sign | 0x7e00;
    // Halfway from the largest number to the power of two behind it.
    if (size >= 65520.0f) return sign | 0x7c00;
    // Subnormal numbers are multiples of 2^-24, and one that rounds up to the first normal one has its bits.
    if (size < 0x1p-14f) return sign | (u32)std::nearbyint(size * 0x1p24f);
    return sign | ((drop_bits<13>(size) >> 13) - ((127 - 15) << 10));
}

// The cores take no notice of the bits that tf32 does not have.
UNCHECKED inline float from_tf32(u32 bits) { return float_of(bits & ~0x1fffu); }

UNCHECKED inline float from_f16(u32 bits) {
    u32 sign = (bits & 0x8000) << 16, size = (bits & 0x7fff) << 13;
    // The exponent of f32 begins 112 lower.
    if ((bits & 0x7c00) != 0x7c00) return float_of(sign | bits_of(float_of(size) * 0x1p112f));
    return float_of(sign | 0x7f800000 | size);
}

// A part of a register that was handed over.
template <int BITS>
UNCHECKED inline u32 part_of(const Words& words, int index, int part) {
    uint64_t held = (u32)(words.word[index / 2] >> index % 2 * 32);
    return (u32)(held >> part * BITS & ((1ull << BITS) - 1));
}

// The product of one instruction; PER is numbers in a register.
template <int PER, float (*DECODE)(u32)>
UNCHECKED void multiply(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2], const char* file, int line) {
    constexpr int BITS = 32 / PER;
    Words mine;
    std::memcpy(&mine.word[0], a, sizeof a);
    std::memcpy(&mine.word[2], b, sizeof b);
    hand(mine, file, line);
    int lane = current->thread.x % 32, row = lane / 4, column = lane % 4 * 2;
    // Of the four lanes that hold the thread's rows, of its first column, and of its second.
    const Words* holders[3][4];
    for (int t = 0; t < 4; ++t) {
        holders[0][t] = &handed(row * 4 + t);
        for (int i = 0; i < 2; ++i) holders[1 + i][t] = &handed((column + i) * 4 + t);
    }
    double sum[4] = {d[0], d[1], d[2], d[3]};
    // Along the inner dimension: halves of it, lanes, and the numbers of a register.
    for (int half = 0; half < 2; ++half) {
        for (int t = 0; t < 4; ++t) {
            for (int part = 0; part < PER; ++part) {
                double left[2], right[2];
                for (int i = 0; i < 2; ++i) {
                    left[i] = DECODE(part_of<BITS>(*holders[0][t], 2 * half + i, part));
                    right[i] = DECODE(part_of<BITS>(*holders[1 + i][t], 4 + half, part));
                }
                for (int i = 0; i < 4; ++i) sum[i] += left[i / 2] * right[i % 2];
            }
        }
    }
    for (int i = 0; i < 4; ++i) d[i] = (float)sum[i];
}

}  // namespace emulation

inline u32 round_bf16(float lower, float upper) { return emulation::to_bf16(lower) | emulation::to_bf16(upper) << 16; }
inline u32 round_f16(float lower, float upper) { return emulation::to_f16(lower) | emulation::to_f16(upper) << 16; }
inline u32 round_tf32(float value) { return emulation::drop_bits<13>(value); }

inline float2 pair_of_bf16(u32 both) { return {emulation::from_bf16(both & 0xffff), emulation::from_bf16(both >> 16)}; }
inline float2 pair_of_f16(u32 both) { return {emulation::from_f16(both & 0xffff), emulation::from_f16(both >> 16)}; }

inline void mma_bf16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    emulation::multiply<2, emulation::from_bf16>(d, a, b, __FILE__, __LINE__);
}

inline void mma_f16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    emulation::multiply<2, emulation::from_f16>(d, a, b, __FILE__, __LINE__);
}

inline void mma_tf32(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    emulation::multiply<1, emulation::from_tf32>(d, a, b, __FILE__, __LINE__);
}
