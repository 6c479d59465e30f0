// softmax(scale q k^T + mask) v, a block of queries at a time.

struct Attention {
    const TYPE* q;
    const TYPE* k;
    const TYPE* v;
    const MASK_TYPE* mask;
    Y_TYPE* y;
};

#if USE_MMA
// Four warps with 16 queries each go through the keys 64 at a time: scores stay in registers, the
// maximum and the sum are carried along, and earlier sums are scaled when the maximum grows.
#define KEYS 64
#define DP ((D + 15) / 16 * 16)
#define EP ((E + 15) / 16 * 16)

__device__ __forceinline__ void load_turned(u32 (&a)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
                 : "r"(address)
                 : "memory");
}
template <int WIDTH, int PADDED>
__device__ __forceinline__ void fill(u16* to, const TYPE* from, int row0, int rows, i64 row_stride,
                                     i64 stride, bool is_wide) {
    if (is_wide) {
        for (int i = threadIdx.x; i < 64 * (PADDED / 8); i += 128) {
            int row = i / (PADDED / 8), c = i % (PADDED / 8) * 8;
            uint4 v = {};
            if (row0 + row < rows && c < WIDTH)
                v = *(const uint4*)(from + (row0 + row) * row_stride + c);
            *(uint4*)(to + row * (PADDED + 8) + c) = v;
        }
        return;
    }
    for (int i = threadIdx.x; i < 64 * PADDED; i += 128) {
        int row = stride == 1 ? i / PADDED : i % 64, c = stride == 1 ? i % PADDED : i / 64;
        u16 bits = 0;
        if (row0 + row < rows && c < WIDTH)
            bits = from[(row0 + row) * row_stride + c * stride].bits;
        to[row * (PADDED + 8) + c] = bits;
    }
}

extern "C" __global__ void __launch_bounds__(128)
attention(const __grid_constant__ Attention p) {
    extern __shared__ __align__(16) u16 held[];
    u16* qs = held;
    u16* ks = qs + 64 * (DP + 8);
    u16* vs = ks + KEYS * (DP + 8);
    let_next_start();
    wait_for_inputs();
    int batch = blockIdx.y / HEADS, head = blockIdx.y % HEADS;
    int q0 = blockIdx.x * 64, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    fill<D, DP>(qs, p.q + batch * Q_B + head * Q_HEAD, q0, M, Q_M, Q_D, Q_WIDE);
    __syncthreads();
    u32 q[DP / 16][4];
#pragma unroll
    for (int i = 0; i < DP / 16; i++)
        load_matrices(q[i], shared_address(qs + (warp * 16 + lane % 16) * (DP + 8) + i * 16 +
                                           lane / 16 * 8));
    float sums[EP / 8][4] = {}, top[2], total[2] = {};
    top[0] = top[1] = __int_as_float(0xff800000);
    for (int k0 = 0; k0 < N; k0 += KEYS) {
        __syncthreads();
        fill<D, DP>(ks, p.k + batch * K_B + head * K_HEAD, k0, N, K_N, K_D, K_WIDE);
        fill<E, EP>(vs, p.v + batch * V_B + head * V_HEAD, k0, N, V_N, V_E, V_WIDE);
        __syncthreads();
        float s[KEYS / 8][4] = {};
#pragma unroll
        for (int j = 0; j < KEYS / 16; j++)
#pragma unroll
            for (int i = 0; i < DP / 16; i++) {
                u32 b[4];
                int key = j * 16 + lane % 8 + lane / 16 * 8;
                load_matrices(b, shared_address(ks + key * (DP + 8) + i * 16 + lane / 8 % 2 * 8));
                multiply<TYPE>(s[2 * j], q[i], b[0], b[1]);
                multiply<TYPE>(s[2 * j + 1], q[i], b[2], b[3]);
            }
        float best[2] = {top[0], top[1]};
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int key = k0 + j * 8 + lane % 4 * 2 + e % 2;
                float v = s[j][e] * SCALE;
                if (HAS_MASK) {
                    int row = min(q0 + warp * 16 + lane / 4 + e / 2 * 8, M - 1);
                    if (key < N)
                        v += to_float(p.mask[batch * MASK_B + head * MASK_HEAD + row * MASK_M +
                                             key * MASK_N]);
                }
                s[j][e] = key < N ? v : __int_as_float(0xff800000);
                best[e / 2] = maximum(best[e / 2], s[j][e]);
            }
#pragma unroll
        for (int r = 0; r < 2; r++) {
            best[r] = maximum(best[r], __shfl_xor_sync(0xffffffffu, best[r], 1));
            best[r] = maximum(best[r], __shfl_xor_sync(0xffffffffu, best[r], 2));
            // Nothing seen so far but minus infinity: any finite reference does.
            float held_top = best[r] == __int_as_float(0xff800000) ? 0.0f : best[r];
            float shrink = exp2_fast((top[r] - held_top) * 1.44269504f);
            top[r] = best[r];
            total[r] *= shrink;
#pragma unroll
            for (int i = 0; i < EP / 8; i++) sums[i][2 * r] *= shrink, sums[i][2 * r + 1] *= shrink;
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
                for (int e = 2 * r; e < 2 * r + 2; e++) {
                    s[j][e] = exp2_fast((s[j][e] - held_top) * 1.44269504f);
                    total[r] += s[j][e];
                }
        }
#pragma unroll
        for (int j = 0; j < KEYS / 16; j++) {
            u32 a[4] = {pack<TYPE>(s[2 * j][0], s[2 * j][1]), pack<TYPE>(s[2 * j][2], s[2 * j][3]),
                        pack<TYPE>(s[2 * j + 1][0], s[2 * j + 1][1]),
                        pack<TYPE>(s[2 * j + 1][2], s[2 * j + 1][3])};
#pragma unroll
            for (int i = 0; i < EP / 16; i++) {
                u32 b[4];
                int key = j * 16 + lane % 16;
                load_turned(b, shared_address(vs + key * (EP + 8) + i * 16 + lane / 16 * 8));
                multiply<TYPE>(sums[2 * i], a, b[0], b[1]);
                multiply<TYPE>(sums[2 * i + 1], a, b[2], b[3]);
            }
        }
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        total[r] += __shfl_xor_sync(0xffffffffu, total[r], 1);
        total[r] += __shfl_xor_sync(0xffffffffu, total[r], 2);
        int row = q0 + warp * 16 + lane / 4 + r * 8;
        if (row >= M) continue;
        float share = 1.0f / total[r];
        Y_TYPE* to = p.y + batch * Y_B + head * Y_HEAD + row * Y_M;
#pragma unroll
        for (int i = 0; i < EP / 8; i++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                int c = i * 8 + lane % 4 * 2 + e;
                if (c < E) to[c * Y_E] = from_float<Y_TYPE>(sums[i][2 * r + e] * share);
            }
    }
}
#else
// One warp per query, all scores in shared memory, arithmetic in FP32.
extern "C" __global__ void __launch_bounds__(32) attention(const __grid_constant__ Attention p) {
    extern __shared__ float scores[];
    let_next_start();
    wait_for_inputs();
    int batch = blockIdx.y / HEADS, head = blockIdx.y % HEADS, row = blockIdx.x;
    int lane = threadIdx.x;
    const TYPE* q = p.q + batch * Q_B + head * Q_HEAD + row * Q_M;
    const TYPE* k = p.k + batch * K_B + head * K_HEAD;
    const TYPE* v = p.v + batch * V_B + head * V_HEAD;
    float top = __int_as_float(0xff800000);
    for (int key = lane; key < N; key += 32) {
        float s = 0.0f;
        for (int d = 0; d < D; d++)
            s = fmaf(to_float(q[d * Q_D]), to_float(k[key * K_N + d * K_D]), s);
        s *= SCALE;
        if (HAS_MASK)
            s += to_float(p.mask[batch * MASK_B + head * MASK_HEAD + row * MASK_M + key * MASK_N]);
        scores[key] = s;
        top = maximum(top, s);
    }
    for (int d = 16; d > 0; d /= 2) top = maximum(top, __shfl_xor_sync(0xffffffffu, top, d));
    float total = 0.0f;
    for (int key = lane; key < N; key += 32) {
        float s = expf(scores[key] - top);
        scores[key] = s;
        total += s;
    }
    for (int d = 16; d > 0; d /= 2) total += __shfl_xor_sync(0xffffffffu, total, d);
    __syncwarp();
    for (int e = lane; e < E; e += 32) {
        float sum = 0.0f;
        for (int key = 0; key < N; key++)
            sum = fmaf(scores[key], to_float(v[key * V_N + e * V_E]), sum);
        p.y[batch * Y_B + head * Y_HEAD + row * Y_M + e * Y_E] = from_float<Y_TYPE>(sum / total);
    }
}
#endif
