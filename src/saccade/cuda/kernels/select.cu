// Rows of a head above the threshold, as sort keys: a float that grows as the score falls in the
// upper half, the candidate's place in the lower. Keys are unique, so whatever order the atomics
// gave them, sorting makes one order of them.
//
// A head's file gives BY_WARP, hopeful(), rank() and score_of(); see heads/*.cuh.
// Macros: ELEMENT, NUM_ROWS, NUM_CLASSES, SCORE, MULTI_LABEL, CAPACITY, KEY_IS_RANK, IN_W, IN_H.

struct Outputs { const void* at[16]; };

__device__ __forceinline__ float value(const Outputs& o, int which, size_t index) {
    return to_float(((const ELEMENT*)o.at[which])[index]);
}

// Rising with the float, in whole numbers.
__device__ __forceinline__ u32 ordered(float v) {
    u32 bits = __float_as_uint(v + 0.0f);
    return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}

__device__ __forceinline__ float unordered(u32 bits) {
    return __uint_as_float(bits ^ (bits >> 31 ? 0x80000000u : 0xffffffffu));
}

#define NEVER (-__int_as_float(0x7f800000))
