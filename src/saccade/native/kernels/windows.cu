// Pooling and resizing of pictures: one thread per pixel and V channels. Views may have any
// strides; V is above one only where channels lie side by side.

template <typename E, int COUNT>
struct alignas(sizeof(E) * COUNT > 16 ? 16 : sizeof(E) * COUNT) Vector {
    E at[COUNT];
};
typedef Vector<X_TYPE, V> From;
typedef Vector<Y_TYPE, V> To;

#ifdef CHAIN
// SPPF: each result is the maximum over windows of the one before it. A block holds V channels of
// one whole picture in shared memory; windows are squares, so rows are done before columns.
__device__ __forceinline__ u32 larger(u32 a, u32 b) {
    u32 out;
#if IS_HALF
    asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b));
#else
    asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b));
#endif
    return out;
}
__device__ __forceinline__ uint4 larger(uint4 a, uint4 b) {
    return make_uint4(larger(a.x, b.x), larger(a.y, b.y), larger(a.z, b.z), larger(a.w, b.w));
}
struct Results { X_TYPE* at[CHAIN]; };
// Eight channels in shared memory are halves. A code is there as 1152 + code, whose last byte it
// is but for its first bit; they are in the same order.
__device__ __forceinline__ uint4 fetch(const X_TYPE* at) {
#if IS_INT8
    uint2 w = *(const uint2*)at;
    w.x ^= 0x80808080u, w.y ^= 0x80808080u;
    return make_uint4(__byte_perm(w.x, 0x64, 0x4140), __byte_perm(w.x, 0x64, 0x4342),
                      __byte_perm(w.y, 0x64, 0x4140), __byte_perm(w.y, 0x64, 0x4342));
#else
    return *(const uint4*)at;
#endif
}
__device__ __forceinline__ void put(X_TYPE* at, uint4 v) {
#if IS_INT8
    *(uint2*)at = make_uint2(__byte_perm(v.x, v.y, 0x6420) ^ 0x80808080u,
                             __byte_perm(v.z, v.w, 0x6420) ^ 0x80808080u);
#else
    *(uint4*)at = v;
#endif
}

extern "C" __global__ void __launch_bounds__(THREADS)
chain(const X_TYPE* x, const __grid_constant__ Results ys) {
    extern __shared__ uint4 held[];
    uint4* rows = held + H * W;
    let_next_start();
    wait_for_inputs();
    int n = blockIdx.x / (C / 8), c = blockIdx.x % (C / 8) * 8;
    for (int i = threadIdx.x; i < H * W; i += THREADS)
        held[i] = fetch(x + n * X_IMAGE + i * X_PITCH + c);
    __syncthreads();
#pragma unroll
    for (int link = 0; link < CHAIN; link++) {
        for (int i = threadIdx.x; i < H * W; i += THREADS) {
            int column = i % W;
            uint4 best = held[i];
#pragma unroll
            for (int d = 1; d <= SIZE / 2; d++) {
                if (column >= d) best = larger(best, held[i - d]);
                if (column + d < W) best = larger(best, held[i + d]);
            }
            rows[i] = best;
        }
        __syncthreads();
        for (int i = threadIdx.x; i < H * W; i += THREADS) {
            int row = i / W;
            uint4 best = rows[i];
#pragma unroll
            for (int d = 1; d <= SIZE / 2; d++) {
                if (row >= d) best = larger(best, rows[i - d * W]);
                if (row + d < H) best = larger(best, rows[i + d * W]);
            }
            held[i] = best;
            put(ys.at[link] + n * IMAGES[link] + i * PITCHES[link] + c, best);
        }
        __syncthreads();
    }
}
#else

#define NUM ((i64)N * OH * OW * (C / V))

struct Place { int n, oy, ox, c; };
__device__ __forceinline__ Place place_of(i64 index) {
    int c = index % (C / V) * V;
    i64 rest = index / (C / V);
    int ox = rest % OW;
    rest /= OW;
    return {(int)(rest / OH), (int)(rest % OH), ox, c};
}
__device__ __forceinline__ From read(const X_TYPE* x, Place p, int y, int column) {
    return *(const From*)(x + p.n * X_N + y * X_H + column * X_W + p.c * X_C);
}
__device__ __forceinline__ void store(Y_TYPE* y, Place p, const float* v) {
    To to;
#pragma unroll
    for (int i = 0; i < V; i++) to.at[i] = from_float<Y_TYPE>(v[i]);
    *(To*)(y + p.n * Y_N + p.oy * Y_H + p.ox * Y_W + p.c * Y_C) = to;
}

#ifdef POOL
extern "C" __global__ void __launch_bounds__(128) pool(const X_TYPE* x, Y_TYPE* y) {
    let_next_start();
    wait_for_inputs();
    i64 index = (i64)blockIdx.x * 128 + threadIdx.x;
    if (index >= NUM) return;
    Place p = place_of(index);
    float v[V];
#pragma unroll
    for (int i = 0; i < V; i++) v[i] = IS_MAX ? __int_as_float(0xff800000) : 0.0f;
    int count = 0;
    int y0 = p.oy * SH - PT, x0 = p.ox * SW - PL;
    for (int ky = 0; ky < KH; ky++) {
        int gy = y0 + ky * DH;
        if ((unsigned)gy >= (unsigned)H) continue;
        for (int kx = 0; kx < KW; kx++) {
            int gx = x0 + kx * DW;
            if ((unsigned)gx >= (unsigned)W) continue;
            From from = read(x, p, gy, gx);
            count++;
#pragma unroll
            for (int i = 0; i < V; i++) {
                float value = to_float(from.at[i]);
                v[i] = IS_MAX ? maximum(v[i], value) : v[i] + value;
            }
        }
    }
    if (!IS_MAX) {
        float share = 1.0f / (COUNTS_PADDING ? KH * KW : count);
#pragma unroll
        for (int i = 0; i < V; i++) v[i] *= share;
    }
    store(y, p, v);
}
#else

// Which row (column) of x each row (column) of y reads, and the share of the one after it.
struct Tables { const int* rows; const int* columns; const float* row_shares; const float* column_shares; };

extern "C" __global__ void __launch_bounds__(128)
resize(const X_TYPE* x, const __grid_constant__ Tables tables, Y_TYPE* y) {
    let_next_start();
    i64 index = (i64)blockIdx.x * 128 + threadIdx.x;
    if (index >= NUM) {
        wait_for_inputs();
        return;
    }
    Place p = place_of(index);
    int top = FACTOR ? p.oy / (FACTOR + !FACTOR) : tables.rows[p.oy];
    int left = FACTOR ? p.ox / (FACTOR + !FACTOR) : tables.columns[p.ox];
    wait_for_inputs();
    From a = read(x, p, top, left);
#if IS_MOVED
    // Bits as they are: codes are no halves.
    *(From*)(y + p.n * Y_N + p.oy * Y_H + p.ox * Y_W + p.c * Y_C) = a;
    return;
#endif
    float v[V];
    if (!IS_LINEAR) {
#pragma unroll
        for (int i = 0; i < V; i++) v[i] = to_float(a.at[i]);
    } else {
        float fy = tables.row_shares[p.oy], fx = tables.column_shares[p.ox];
        int bottom = min(top + 1, H - 1), right = min(left + 1, W - 1);
        From b = read(x, p, top, right), c = read(x, p, bottom, left), d = read(x, p, bottom, right);
#pragma unroll
        for (int i = 0; i < V; i++) {
            float up = to_float(a.at[i]) * (1.0f - fy) + to_float(c.at[i]) * fy;
            float down = to_float(b.at[i]) * (1.0f - fy) + to_float(d.at[i]) * fy;
            v[i] = up * (1.0f - fx) + down * fx;
        }
    }
    store(y, p, v);
}
#endif
#endif
