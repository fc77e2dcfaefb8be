// A sum over rows in parts, where the tiles of its output are too few to fill a GPU: each block of the grid's z sums a part of the
// stages and leaves it among the partial sums, and `outer_total` adds them in their order.
#pragma once

#include "kernel.cuh"

// The block's part of so many stages; no two parts differ by more than one.
struct Part {
    u32 first;
    u32 count;

    __device__ explicit Part(u32 stages) {
        first = (u32)((u64)stages * blockIdx.z / gridDim.z);
        count = (u32)((u64)stages * (blockIdx.z + 1) / gridDim.z) - first;
    }
};

// A place in a sum over terms: the term, and the first of its rows that are to come. DEEP rows of one term are a stage.
template <int DEEP>
struct Cursor {
    u32 term = 0;
    u32 row = 0;

    // The stages of the terms.
    template <class Term>
    __device__ static u32 stages(const Term* terms, u32 count) {
        u32 stages = 0;
        for (u32 t = 0; t < count; ++t) stages += (terms[t].rows + DEEP - 1) / DEEP;
        return stages;
    }

    // Where stage `stage` of them begins.
    template <class Term>
    __device__ Cursor(const Term* terms, u32 stage) {
        while (stage > 0) {
            u32 of_term = (terms[term].rows + DEEP - 1) / DEEP;
            if (stage < of_term) break;
            stage -= of_term;
            ++term;
        }
        row = stage * DEEP;
    }

    // Goes on to the next term that has rows left, if there is none in this one.
    template <class Term>
    __device__ const Term& settle(const Term* terms) {
        while (row >= terms[term].rows) {
            ++term;
            row = 0;
        }
        return terms[term];
    }
};
