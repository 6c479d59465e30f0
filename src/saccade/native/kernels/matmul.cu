// Products of batches of matrices with any strides.

struct MatMul {
    const A_TYPE* a;
    const B_TYPE* b;
    const float* bias;
    Y_TYPE* y;
};

__device__ __forceinline__ void store(const MatMul& p, i64 y0, int row, int column, float v) {
    if (row >= M || column >= N) return;
    v *= ALPHA;
    if (HAS_BIAS) v += p.bias[column];
    p.y[y0 + row * Y_ROW + column * Y_COLUMN] = from_float<Y_TYPE>(activate<ACT>(v, ACT_A, ACT_B));
}

#if USE_MMA
// BM x BN results per block of four warps, depth 32 at a time through shared memory; both operands
// are kept with their depth side by side, 8 numbers of padding against bank conflicts.
#define DEPTH 32
#define PITCH (DEPTH + 8)
#define WARPS_N (BN / 32)
#define THREADS (BM / 32 * WARPS_N * 32)

// Fills rows x DEPTH numbers of one operand; consecutive threads follow the axis that lies side by
// side in memory.
template <int ROWS, typename T>
__device__ __forceinline__ void fill(u16* to, const T* from, int row0, int k0, int rows,
                                     i64 row_stride, i64 k_stride, bool by_rows) {
#pragma unroll
    for (int i = threadIdx.x; i < ROWS * DEPTH; i += THREADS) {
        int row = by_rows ? i % ROWS : i / DEPTH, k = by_rows ? i / ROWS : i % DEPTH;
        u16 bits = 0;
        if (row0 + row < rows && k0 + k < K)
            bits = from[(row0 + row) * row_stride + (k0 + k) * k_stride].bits;
        to[row * PITCH + k] = bits;
    }
}
template <int ROWS, typename T>
__device__ __forceinline__ void fill_wide(u16* to, const T* from, int row0, int k0, int rows,
                                          i64 row_stride) {
#pragma unroll
    for (int i = threadIdx.x; i < ROWS * (DEPTH / 8); i += THREADS) {
        int row = i / (DEPTH / 8), k = i % (DEPTH / 8) * 8;
        uint4 v = {};
        if (row0 + row < rows && k0 + k < K)
            v = *(const uint4*)(from + (row0 + row) * row_stride + k0 + k);
        *(uint4*)(to + row * PITCH + k) = v;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) matmul(const __grid_constant__ MatMul p) {
    __shared__ __align__(16) u16 held_a[BM * PITCH], held_b[BN * PITCH];
    let_next_start();
    wait_for_inputs();
    i64 linear = blockIdx.z;
    BATCH
    const A_TYPE* a = p.a + (A_AT);
    const B_TYPE* b = p.b + (B_AT);
    int row0 = blockIdx.y * BM, column0 = blockIdx.x * BN;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int wm = warp / WARPS_N * 32, wn = warp % WARPS_N * 32;
    float sums[2][4][4] = {};
    for (int k0 = 0; k0 < K; k0 += DEPTH) {
        if (A_WIDE) fill_wide<BM>(held_a, a, row0, k0, M, A_ROW);
        else fill<BM>(held_a, a, row0, k0, M, A_ROW, A_K, A_ROW == 1);
        if (B_WIDE) fill_wide<BN>(held_b, b, column0, k0, N, B_COLUMN);
        else fill<BN>(held_b, b, column0, k0, N, B_COLUMN, B_K, B_COLUMN == 1);
        __syncthreads();
#pragma unroll
        for (int kk = 0; kk < DEPTH; kk += 16) {
            u32 ra[2][4], rb[2][4];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                int row = wm + i * 16 + lane % 16;
                load_matrices(ra[i], shared_address(held_a + row * PITCH + kk + lane / 16 * 8));
                // Rows of b are columns of the result: 8 with the lower depth, the same with the
                // upper, then the next 8.
                int column = wn + i * 16 + lane % 8 + lane / 16 * 8;
                load_matrices(rb[i],
                              shared_address(held_b + column * PITCH + kk + lane / 8 % 2 * 8));
            }
#pragma unroll
            for (int i = 0; i < 2; i++)
#pragma unroll
                for (int j = 0; j < 4; j++)
                    multiply<A_TYPE>(sums[i][j], ra[i], rb[j / 2][j % 2 * 2],
                                     rb[j / 2][j % 2 * 2 + 1]);
        }
        __syncthreads();
    }
    i64 y0 = Y_AT;
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                store(p, y0, row0 + wm + i * 16 + lane / 4 + e / 2 * 8,
                      column0 + wn + j * 8 + lane % 4 * 2 + e % 2, sums[i][j][e]);
}
#else
// FP32 arithmetic: 64 x 64 results per block, 4 x 4 per thread.
#define DEPTH 16
extern "C" __global__ void __launch_bounds__(256) matmul(const __grid_constant__ MatMul p) {
    __shared__ float held_a[DEPTH][65], held_b[DEPTH][65];
    let_next_start();
    wait_for_inputs();
    i64 linear = blockIdx.z;
    BATCH
    const A_TYPE* a = p.a + (A_AT);
    const B_TYPE* b = p.b + (B_AT);
    int row0 = blockIdx.y * 64, column0 = blockIdx.x * 64;
    int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
    float sums[4][4] = {};
    for (int k0 = 0; k0 < K; k0 += DEPTH) {
        for (int i = threadIdx.x; i < 64 * DEPTH; i += 256) {
            int row = A_ROW == 1 ? i % 64 : i / DEPTH, k = A_ROW == 1 ? i / 64 : i % DEPTH;
            bool is_in = row0 + row < M && k0 + k < K;
            held_a[k][row] =
                is_in ? to_float(a[(row0 + row) * A_ROW + (k0 + k) * A_K]) : 0.0f;
            int column = B_COLUMN == 1 ? i % 64 : i / DEPTH;
            k = B_COLUMN == 1 ? i / 64 : i % DEPTH;
            is_in = column0 + column < N && k0 + k < K;
            held_b[k][column] =
                is_in ? to_float(b[(column0 + column) * B_COLUMN + (k0 + k) * B_K]) : 0.0f;
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < DEPTH; k++)
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++)
                    sums[i][j] = fmaf(held_a[k][ty + i * 16], held_b[k][tx + j * 16], sums[i][j]);
        __syncthreads();
    }
    i64 y0 = Y_AT;
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
            store(p, y0, row0 + ty + i * 16, column0 + tx + j * 16, sums[i][j]);
}
#endif
