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
// One block per row.
extern "C" __global__ void __launch_bounds__(1024)
topk(const X_TYPE* x, VALUE_TYPE* values, INDEX_TYPE* indices) {
    extern __shared__ u64 keys[];
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
            for (int i = threadIdx.x; i < 256; i += 1024) bins[i] = 0;
            __syncthreads();
            for (int i = threadIdx.x; i < LENGTH; i += 1024) {
                u64 key = key_of(to_float(from[(i64)i * X_STEP]), i);
                if (shift == 56 || key >> (shift + 8) == prefix >> (shift + 8))
                    atomicAdd(&bins[key >> shift & 255], 1);
            }
            __syncthreads();
            if (threadIdx.x == 0) {
                int seen = 0, d = 255;
                while (d > 0 && seen + bins[d] < wanted) seen += bins[d--];
                digit = d, above = seen;
            }
            __syncthreads();
            prefix |= (u64)digit << shift;
            wanted -= above;
            __syncthreads();
        }
        bound = prefix;
    }
    // Every key is different, so exactly K of them reach the bound. Their order here is settled by
    // the sort below, whatever order they arrive in.
    __shared__ int count;
    if (threadIdx.x == 0) count = 0;
    for (int i = threadIdx.x; i < SORTED; i += 1024) keys[i] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < LENGTH; i += 1024) {
        u64 key = key_of(to_float(from[(i64)i * X_STEP]), i);
        if (LENGTH <= SORTED) keys[i] = key;
        else if (key >= bound) keys[atomicAdd(&count, 1)] = key;
    }
    __syncthreads();
    for (int size = 2; size <= SORTED; size *= 2)
        for (int half = size / 2; half > 0; half /= 2) {
            for (int i = threadIdx.x; i < SORTED / 2; i += 1024) {
                int a = i / half * half * 2 + i % half, b = a + half;
                bool is_down = (a & size) == 0;
                u64 low = keys[a], high = keys[b];
                if ((low < high) == is_down) keys[a] = high, keys[b] = low;
            }
            __syncthreads();
        }
    for (int i = threadIdx.x; i < K; i += 1024) {
        int index = (int)~(u32)keys[i];
        if (HAS_VALUES)
            values[VALUES_AT + (i64)i * VALUE_STEP] =
                from_float<VALUE_TYPE>(to_float(from[(i64)index * X_STEP]));
        if (HAS_INDICES) indices[INDICES_AT + (i64)i * INDEX_STEP] = (INDEX_TYPE)index;
    }
}
#endif
