// Depthwise convolution of pictures: one thread makes V channels of RUN output pixels in a row.
// The weights of a thread's channels stay in registers for one kernel row at a time; input pixels
// that neighbouring outputs share are read once.

#define WIDE (V < 4 ? V : 4)

template <typename E, int COUNT> struct alignas(sizeof(E) * COUNT) Vector { E at[COUNT]; };

extern "C" __global__ void __launch_bounds__(THREADS)
depthwise(const ELEMENT* x, const float* weights, const float* bias, const ELEMENT* residual,
          OUT* y) {
    let_next_start();
    constexpr int PARTS = C / V, RUNS = (OW + RUN - 1) / RUN;
    int index = blockIdx.x * THREADS + threadIdx.x;
    bool is_there = index < N * OH * RUNS * PARTS;
    int part = index % PARTS;
    int rest = index / PARTS;
    int ox0 = rest % RUNS * RUN;
    rest /= RUNS;
    int oy = rest % OH, n = rest / OH;
    int c = part * V;
    wait_for_inputs();
    if (!is_there) return;

    __align__(16) float sums[RUN][V];
#pragma unroll
    for (int v = 0; v < V; v++) {
        float b = bias[c + v];
#pragma unroll
        for (int r = 0; r < RUN; r++) sums[r][v] = b;
    }
    constexpr int SPAN = (RUN - 1) * SW + (KW - 1) * DW + 1;
    int gx0 = ox0 * SW - PL;
#pragma unroll
    for (int ky = 0; ky < KH; ky++) {
        int gy = oy * SH - PT + ky * DH;
        if ((unsigned)gy >= (unsigned)H) continue;
        __align__(16) float w[KW][V];
#pragma unroll
        for (int kx = 0; kx < KW; kx++)
#pragma unroll
            for (int v = 0; v < V; v += WIDE)
                *(Vector<float, WIDE>*)&w[kx][v] = *(const Vector<float, WIDE>*)(
                    weights + (ky * KW + kx) * C_PAD + c + v);
        const ELEMENT* row = x + n * X_IMAGE + gy * W * X_PITCH + c;
        // One pixel after another, to every output that uses it.
#pragma unroll
        for (int i = 0; i < SPAN; i++) {
            int gx = gx0 + i;
            Vector<ELEMENT, V> pixel = {};
            if ((unsigned)gx < (unsigned)W)
                pixel = *(const Vector<ELEMENT, V>*)(row + gx * X_PITCH);
#pragma unroll
            for (int r = 0; r < RUN; r++) {
                const int from = i - r * SW;
                if (from >= 0 && from % DW == 0 && from / DW < KW)
#pragma unroll
                    for (int v = 0; v < V; v++)
                        sums[r][v] = fmaf(to_float(pixel.at[v]), w[from / DW][v], sums[r][v]);
            }
        }
    }
#pragma unroll
    for (int r = 0; r < RUN; r++) {
        int ox = ox0 + r;
        if (ox >= OW) break;
        int pixel = oy * OW + ox;
        float add[V] = {};
        if (RESIDUAL) {
            Vector<ELEMENT, V> from = *(const Vector<ELEMENT, V>*)(
                residual + n * RESIDUAL_IMAGE + pixel * RESIDUAL_PITCH + c);
#pragma unroll
            for (int v = 0; v < V; v++) add[v] = to_float(from.at[v]);
        }
#pragma unroll
        for (int v = 0; v < V; v++) {
            if (RESIDUAL == 1) sums[r][v] += add[v];
            sums[r][v] = activate<ACT>(sums[r][v], ACT_A, ACT_B) * SCALE;
            if (RESIDUAL == 2)
                sums[r][v] = activate<AFTER>(sums[r][v] + add[v], AFTER_A, AFTER_B);
        }
        Vector<OUT, V> to;
#pragma unroll
        for (int v = 0; v < V; v++) to.at[v] = from_float<OUT>(sums[r][v]);
        *(Vector<OUT, V>*)(y + n * Y_IMAGE + pixel * Y_PITCH + c) = to;
    }
}
