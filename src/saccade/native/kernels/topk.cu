// Keys order like the values (largest first), ties by index: the value's bits,
// made monotonous, above the complement of the index, so that a greater key is always the better.
__device__ __forceinline__ u64 key_of(float v, int index) {
    u32 bits = __float_as_uint(v);
    if (v == 0.0f) bits = 0;
    bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    if (!LARGEST) bits = ~bits;
    if (v != v) bits = 0;  // last, as where NumPy sorts
    return (u64)bits << 32 | (u32)~index;
}
#if IS_SHORT
// One warp per row, its keys in registers: the best of them is taken K times.
extern "C" __global__ void __launch_bounds__(128)
topk(const X_TYPE* x, VALUE_TYPE* values, INDEX_TYPE* indices) {
    let_next_start();
    wait_for_inputs();
    i64 linear = (i64)blockIdx.x * 4 + threadIdx.x / 32;
    if (linear >= ROWS) return;
    int lane = threadIdx.x % 32;
    ROW
    const X_TYPE* from = x + (X_AT);
    u64 keys[(LENGTH + 31) / 32], chosen = 0;
#pragma unroll
    for (int i = 0; i < (LENGTH + 31) / 32; i++) {
        int at = i * 32 + lane;
        keys[i] = at < LENGTH ? key_of(to_float(from[(i64)at * X_STEP]), at) : 0;
    }
    for (int k = 0; k < K; k++) {
        u64 best = 0;
#pragma unroll
        for (int i = 0; i < (LENGTH + 31) / 32; i++) best = keys[i] > best ? keys[i] : best;
#pragma unroll
        for (int d = 16; d > 0; d /= 2) {
            u64 other = __shfl_xor_sync(0xffffffffu, best, d);
            best = other > best ? other : best;
        }
        // No two keys are equal, as their places differ.
#pragma unroll
        for (int i = 0; i < (LENGTH + 31) / 32; i++)
            if (keys[i] == best) keys[i] = 0;
        if (lane == k) chosen = best;
    }
    if (lane >= K) return;
    int index = (int)~(u32)chosen;
    if (HAS_VALUES)
        values[VALUES_AT + (i64)lane * VALUE_STEP] =
            from_float<VALUE_TYPE>(to_float(from[(i64)index * X_STEP]));
    if (HAS_INDICES) indices[INDICES_AT + (i64)lane * INDEX_STEP] = (INDEX_TYPE)index;
}
#else
// The bin, from the top, in which the wanted-th key is, and how many are in the bins above it: one
// warp, eight bins a lane.
__device__ __forceinline__ void find_digit(const int* bins, int wanted, int* digit, int* above) {
    int lane = threadIdx.x % 32, first = 255 - lane * 8, own = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) own += bins[first - i];
    int before = own;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        int other = __shfl_up_sync(0xffffffffu, before, d);
        if (lane >= d) before += other;
    }
    before -= own;
    if (before < wanted && before + own >= wanted) {
        int seen = before, bin = first;
        while (seen + bins[bin] < wanted) seen += bins[bin--];
        *digit = bin, *above = seen;
    }
}

// One block per row.
extern "C" __global__ void __launch_bounds__(THREADS)
topk(const X_TYPE* x, VALUE_TYPE* values, INDEX_TYPE* indices) {
    extern __shared__ __align__(16) u64 keys[];
    __shared__ int bins[256];
    __shared__ int digit, above;
    let_next_start();
    wait_for_inputs();
    i64 linear = blockIdx.x;
    ROW
    const X_TYPE* from = x + (X_AT);
    // The K-th best key, eight bits at a time; only rows longer than what can be sorted need it.
    u64 bound = 0;
    if (LENGTH > SORTED) {
        u64 prefix = 0;
        int wanted = K;
        for (int shift = 56; shift >= 0; shift -= 8) {
            for (int i = threadIdx.x; i < 256; i += THREADS) bins[i] = 0;
            __syncthreads();
            for (int start = 0; start < LENGTH; start += THREADS) {
                int i = start + threadIdx.x;
                u64 key = i < LENGTH ? key_of(to_float(from[(i64)i * X_STEP]), i) : 0;
                bool counts = i < LENGTH &&
                              (shift == 56 || key >> (shift + 8) == prefix >> (shift + 8));
                // Scores are alike, so lanes mostly count for the same bin: one of them adds.
                int bin = counts ? (int)(key >> shift & 255) : -1;
                u32 same = __match_any_sync(0xffffffffu, bin);
                if (counts && threadIdx.x % 32 == __ffs(same) - 1)
                    atomicAdd(&bins[bin], __popc(same));
            }
            __syncthreads();
            if (threadIdx.x < 32) find_digit(bins, wanted, &digit, &above);
            __syncthreads();
            prefix |= (u64)digit << shift;
            wanted -= above;
            // All that begin like this are among the best: the rest of the key does not matter.
            bool is_done = bins[digit] == wanted;
            __syncthreads();
            if (is_done) break;
        }
        bound = prefix;
    }
    // Every key is different, so exactly K of them reach the bound. Their order here is settled by
    // what follows, whatever order they arrive in.
    __shared__ int count;
    if (threadIdx.x == 0) count = 0;
    for (int i = threadIdx.x; i < SORTED; i += THREADS) keys[i] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < LENGTH; i += THREADS) {
        u64 key = key_of(to_float(from[(i64)i * X_STEP]), i);
        if (LENGTH <= SORTED) keys[i] = key;
        else if (key >= bound) keys[atomicAdd(&count, 1)] = key;
    }
    __syncthreads();
    auto store = [&](int place, u64 key) {
        int index = (int)~(u32)key;
        if (HAS_VALUES)
            values[VALUES_AT + (i64)place * VALUE_STEP] =
                from_float<VALUE_TYPE>(to_float(from[(i64)index * X_STEP]));
        if (HAS_INDICES) indices[INDICES_AT + (i64)place * INDEX_STEP] = (INDEX_TYPE)index;
    };
#if IS_RANKED
    // Few keys: each counts those before it.
    for (int i = threadIdx.x; i < SORTED; i += THREADS) {
        u64 own = keys[i];
        int rank = 0;
#pragma unroll 8
        for (int j = 0; j < SORTED; j += 2) {
            ulonglong2 pair = *(const ulonglong2*)(keys + j);
            rank += (pair.x > own) + (pair.y > own);
        }
        if (own != 0 && rank < K) store(rank, own);
    }
#else
    for (int size = 2; size <= SORTED; size *= 2)
        for (int half = size / 2; half > 0; half /= 2) {
            for (int i = threadIdx.x; i < SORTED / 2; i += THREADS) {
                int a = i / half * half * 2 + i % half, b = a + half;
                bool is_down = (a & size) == 0;
                u64 low = keys[a], high = keys[b];
                if ((low < high) == is_down) keys[a] = high, keys[b] = low;
            }
            __syncthreads();
        }
    for (int i = threadIdx.x; i < K; i += THREADS) store(i, keys[i]);
#endif
}
#endif
