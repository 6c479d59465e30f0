__device__ __forceinline__ void emit(u64* keys, u32* count, float key, u32 index) {
    u32 at = atomicAdd(count, 1u);
    if (at < CAPACITY) keys[at] = (u64)(~ordered(key)) << 32 | index;
}

__device__ __forceinline__ float key_of(float rank, float score) {
    return KEY_IS_RANK ? rank : score;
}

// One row by one thread.
__device__ void select_row(const Outputs& o, int b, int row, u64* keys, u32* count) {
    Row state = begin(o, b, row);
    float best = NEVER;
    int chosen = 0;
    bool is_whole = true;
#pragma unroll 4
    for (int c = 0; c < NUM_CLASSES; c++) {
        float r = rank(o, state, b, row, c);
        is_whole &= r == r;
        if (r > best) { best = r; chosen = c; }
    }
    float score = score_of(state, best);
    if (!is_whole || !(score > SCORE)) return;
    if (!MULTI_LABEL) {
        emit(keys, count, key_of(best, score), row * NUM_CLASSES + chosen);
        return;
    }
    for (int c = 0; c < NUM_CLASSES; c++) {
        float r = rank(o, state, b, row, c), s = score_of(state, r);
        if (s > SCORE) emit(keys, count, key_of(r, s), row * NUM_CLASSES + c);
    }
}

// One row by a warp: its classes lie side by side in memory.
__device__ void select_row_by_warp(const Outputs& o, int b, int row, u64* keys, u32* count) {
    const int lane = threadIdx.x & 31;
    Row state = begin(o, b, row);
    float best = NEVER;
    int chosen = NUM_CLASSES;
    bool is_whole = true;
#pragma unroll 4
    for (int c = lane; c < NUM_CLASSES; c += 32) {
        float r = rank(o, state, b, row, c);
        is_whole &= r == r;
        if (r > best) { best = r; chosen = c; }
    }
    if (!__all_sync(0xffffffffu, is_whole)) return;
    if (MULTI_LABEL) {
        if (!__any_sync(0xffffffffu, score_of(state, best) > SCORE)) return;
        for (int c = lane; c < NUM_CLASSES; c += 32) {
            float r = rank(o, state, b, row, c), s = score_of(state, r);
            if (s > SCORE) emit(keys, count, key_of(r, s), row * NUM_CLASSES + c);
        }
        return;
    }
#pragma unroll
    for (int step = 16; step; step /= 2) {
        float other = __shfl_xor_sync(0xffffffffu, best, step);
        int at = __shfl_xor_sync(0xffffffffu, chosen, step);
        if (other > best || (other == best && at < chosen)) { best = other; chosen = at; }
    }
    float score = score_of(state, best);
    if (lane == 0 && score > SCORE && chosen < NUM_CLASSES)
        emit(keys, count, key_of(best, score), row * NUM_CLASSES + chosen);
}

extern "C" __global__ __launch_bounds__(128) void select(
    const __grid_constant__ Outputs o, const Picture* __restrict__ table, u64* all_keys,
    u32* counts) {
    const int b = blockIdx.y;
    if (table[b].width == 0) return;
    u64* keys = all_keys + (size_t)b * CAPACITY;
    const int row = blockIdx.x * blockDim.x + threadIdx.x;
    const bool is_hopeful = row < NUM_ROWS && hopeful(o, b, row);
    if (!BY_WARP) {
        if (is_hopeful) select_row(o, b, row, keys, counts + b);
        return;
    }
    u32 left = __ballot_sync(0xffffffffu, is_hopeful);
    const int first = row & ~31;
    while (left) {
        select_row_by_warp(o, b, first + __ffs(left) - 1, keys, counts + b);
        left &= left - 1;
    }
}
