// Candidates to final boxes, one block per picture: sort, greedy suppression per class, back to
// source pixels, clip. Boxes are computed here, for candidates whose turn comes, not before.
//
// Suppression takes candidates in chunks of 64, best first: a chunk is held against the boxes kept
// so far, then against itself, one bit per pair, and stops at MAX_KEPT. The answers are those of
// suppress_reference: where single precision cannot decide a pair, double precision does.
//
// Macros besides those of select.cu: MAX_KEPT, IOU, IS_FINAL, IS_AGNOSTIC, IN_SOURCE, FIRST_ONLY
// (only that many candidates are looked at), SORT_SHARED (keys that fit in shared memory),
// NUM_POINTS.

#define CHUNK 64
#define THREADS 256
#define RECORD (6 + 2 * NUM_POINTS)
#define HEADER 4

struct Shared {
    float4 kept[MAX_KEPT];
    u64 kept_key[MAX_KEPT];
    int kept_class[MAX_KEPT];
    float4 box[CHUNK];
    int of_class[CHUNK];
    u64 mask[CHUNK];
    u64 alive, chosen;
    int num_kept;
    u64 keys[SORT_SHARED];
};

__device__ void sort_keys(u64* keys, int size) {
    for (int width = 2; width <= size; width *= 2) {
        for (int step = width / 2; step; step /= 2) {
            __syncthreads();
            for (int i = threadIdx.x; i < size / 2; i += THREADS) {
                int low = (i / step) * step * 2 + i % step, high = low + step;
                u64 a = keys[low], b = keys[high];
                if ((a > b) == ((low & width) == 0)) { keys[low] = b; keys[high] = a; }
            }
        }
    }
    __syncthreads();
}

__device__ __noinline__ bool overlap_exactly(float4 a, float4 b) {
    double w = fmin((double)a.z, (double)b.z) - fmax((double)a.x, (double)b.x);
    double h = fmin((double)a.w, (double)b.w) - fmax((double)a.y, (double)b.y);
    double both = __dmul_rn(fmax(w, 0.0), fmax(h, 0.0));
    double one = __dmul_rn((double)a.z - (double)a.x, (double)a.w - (double)a.y);
    double two = __dmul_rn((double)b.z - (double)b.x, (double)b.w - (double)b.y);
    return __ddiv_rn(both, __dsub_rn(__dadd_rn(one, two), both)) > IOU;
}

__device__ __forceinline__ bool overlap(float4 a, float4 b) {
    float w = fminf(a.z, b.z) - fmaxf(a.x, b.x), h = fminf(a.w, b.w) - fmaxf(a.y, b.y);
    if (!(w > 0.0f) || !(h > 0.0f)) return false;
    float both = w * h;
    float whole = (a.z - a.x) * (a.w - a.y) + (b.z - b.x) * (b.w - b.y) - both;
    float lead = both - (float)IOU * whole;
    // Rounding gives less than a millionth of the union; garbage ends in the exact branch too.
    if (fabsf(lead) > 1e-5f * whole) return lead > 0.0f;
    return overlap_exactly(a, b);
}

__device__ __forceinline__ bool is_usable(float4 v) {
    float sum = fabsf(v.x) + fabsf(v.y) + fabsf(v.z) + fabsf(v.w);
    // The sum of finite values may overflow; each is looked at then.
    bool finite = sum < __int_as_float(0x7f800000) ||
        (isfinite(v.x) && isfinite(v.y) && isfinite(v.z) && isfinite(v.w));
    return finite && v.x < v.z && v.y < v.w;
}

__device__ __forceinline__ float key_score(u64 key) { return unordered(~(u32)(key >> 32)); }

__device__ __forceinline__ void read_chunk(
    Shared& s, const Outputs& o, int b, const u64* keys, int start, int count) {
    const int i = threadIdx.x;
    if (i >= CHUNK) return;
    bool is_there = start + i < count;
    float4 found = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    int of_class = 0;
    if (is_there) {
        u32 index = (u32)keys[start + i];
        int row = index / NUM_CLASSES;
        of_class = class_of(o, b, row, index % NUM_CLASSES);
        found = box_of(o, b, row);
        // Of ranks the score is finite even where they are not.
        is_there = is_usable(found) && (KEY_IS_RANK || isfinite(key_score(keys[start + i])));
    }
    s.box[i] = found;
    s.of_class[i] = of_class;
    u32 bits = __ballot_sync(0xffffffffu, is_there);
    if ((i & 31) == 0) ((u32*)&s.alive)[i / 32] = bits;
}

__device__ __forceinline__ bool rivals(const Shared& s, int of_class, int other) {
    return IS_AGNOSTIC || of_class == other;
}

// Clear the bits of those that overlap a box kept before.
__device__ __forceinline__ void against_kept(Shared& s) {
    const int i = threadIdx.x % CHUNK;
    if (!(s.alive >> i & 1)) return;
    float4 mine = s.box[i];
    int of_class = s.of_class[i];
    for (int k = threadIdx.x / CHUNK; k < s.num_kept; k += THREADS / CHUNK) {
        if (rivals(s, of_class, s.kept_class[k]) && overlap(mine, s.kept[k])) {
            atomicAnd((u32*)&s.alive + i / 32, ~(1u << i % 32));
            return;
        }
    }
}

// For each, the bits of the later ones that it overlaps.
__device__ __forceinline__ void against_each_other(Shared& s) {
    const int lane = threadIdx.x & 31;
    for (int i = threadIdx.x / 32; i < CHUNK; i += THREADS / 32) {
        u64 bits = 0;
        if (s.alive >> i & 1) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int j = lane + half * 32;
                bool hit = j > i && (s.alive >> j & 1) &&
                    rivals(s, s.of_class[i], s.of_class[j]) && overlap(s.box[i], s.box[j]);
                bits |= (u64)__ballot_sync(0xffffffffu, hit) << half * 32;
            }
        }
        if (lane == 0) s.mask[i] = bits;
    }
}

// One thread walks the bits, best first; then each box that stays is copied by a thread of its own.
__device__ __forceinline__ void choose(Shared& s) {
    u64 alive = s.alive, chosen = 0;
    int room = MAX_KEPT - s.num_kept;
    if (IS_FINAL && __popcll(alive) <= room) {
        chosen = alive;
        alive = 0;
    }
    for (; alive && room; room--) {
        int i = __ffsll(alive) - 1;
        chosen |= (u64)1 << i;
        alive &= alive - 1;
        if (!IS_FINAL) alive &= ~s.mask[i];
    }
    s.chosen = chosen;
}

__device__ __forceinline__ void keep(Shared& s, const u64* keys, int start) {
    const int i = threadIdx.x;
    if (i < CHUNK && (s.chosen >> i & 1)) {
        int at = s.num_kept + __popcll(s.chosen & (((u64)1 << i) - 1));
        s.kept[at] = s.box[i];
        s.kept_class[at] = s.of_class[i];
        s.kept_key[at] = keys[start + i];
    }
}

__device__ __forceinline__ float back(float at, const Picture& p, int axis) {
    return (float)__ddiv_rn((double)at - p.offset_xy[axis], p.scale_xy[axis]);
}

__device__ __forceinline__ float4 to_source(float4 v, const Picture& p) {
    if (!IN_SOURCE)
        v = make_float4(back(v.x, p, 0), back(v.y, p, 1), back(v.z, p, 0), back(v.w, p, 1));
    float w = (float)p.width, h = (float)p.height;
    return make_float4(fminf(fmaxf(v.x, 0.0f), w), fminf(fmaxf(v.y, 0.0f), h),
                       fminf(fmaxf(v.z, 0.0f), w), fminf(fmaxf(v.w, 0.0f), h));
}

// By the first warp; boxes with nothing left in the picture fall out.
__device__ void write_result(
    const Shared& s, const Outputs& o, int b, const Picture& p, u32 found, float* result) {
    const int lane = threadIdx.x;
    int num = 0;
    for (int start = 0; start < s.num_kept; start += 32) {
        int i = start + lane;
        float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        bool is_left = i < s.num_kept;
        if (is_left) {
            v = to_source(s.kept[i], p);
            is_left = v.x < v.z && v.y < v.w;
        }
        u32 bits = __ballot_sync(0xffffffffu, is_left);
        if (is_left) {
            float* record = result + HEADER + (size_t)(num + __popc(bits & ((1u << lane) - 1))) * RECORD;
            u64 key = s.kept_key[i];
            float rank = key_score(key);
            record[0] = v.x;
            record[1] = v.y;
            record[2] = v.z;
            record[3] = v.w;
            record[4] = KEY_IS_RANK ? score_of(Row(), rank) : rank;
            record[5] = __int_as_float(s.kept_class[i]);
#if NUM_POINTS
            int row = (int)((u32)key / NUM_CLASSES);
            for (int k = 0; k < NUM_POINTS; k++) {
                float2 point = point_of(o, b, row, k);
                record[6 + 2 * k] = IN_SOURCE ? point.x : back(point.x, p, 0);
                record[7 + 2 * k] = IN_SOURCE ? point.y : back(point.y, p, 1);
            }
#endif
        }
        num += __popc(bits);
    }
    if (lane == 0) {
        result[0] = __int_as_float(num);
        result[1] = __int_as_float((int)found);
        result[2] = __int_as_float((int)(found > CAPACITY));
        result[3] = __int_as_float(0);
    }
}

extern "C" __global__ __launch_bounds__(THREADS) void finish(
    const __grid_constant__ Outputs o, const Picture* __restrict__ table, u64* all_keys,
    const u32* __restrict__ counts, float* results) {
    extern __shared__ char memory[];
    Shared& s = *(Shared*)memory;
    const int b = blockIdx.x;
    const Picture p = table[b];
    if (p.width == 0) return;
    const u32 found = counts[b];
    int count = (int)min(found, (u32)CAPACITY);
    u64* keys = all_keys + (size_t)b * CAPACITY;
    int size = 2;
    while (size < count) size *= 2;
    u64* order = size <= SORT_SHARED ? s.keys : keys;
    if (order == s.keys)
        for (int i = threadIdx.x; i < count; i += THREADS) order[i] = keys[i];
    for (int i = count + threadIdx.x; i < size; i += THREADS) order[i] = ~(u64)0;
    if (threadIdx.x == 0) s.num_kept = 0;
    sort_keys(order, size);
    count = min(count, FIRST_ONLY);
    for (int start = 0; start < count && s.num_kept < MAX_KEPT; start += CHUNK) {
        read_chunk(s, o, b, order, start, count);
        __syncthreads();
        if (!IS_FINAL) {
            if (s.num_kept) {
                against_kept(s);
                __syncthreads();
            }
            against_each_other(s);
            __syncthreads();
        }
        if (threadIdx.x == 0) choose(s);
        __syncthreads();
        keep(s, order, start);
        __syncthreads();
        if (threadIdx.x == 0) s.num_kept += __popcll(s.chosen);
        __syncthreads();
    }
    if (threadIdx.x < 32)
        write_result(s, o, b, p, found, results + (size_t)b * (HEADER + MAX_KEPT * RECORD));
}
