// Any convolution: one thread per output pixel and channel, sums in FP32. What no faster kernel
// covers runs here, and 8-bit steps with their scales.

extern "C" __global__ void __launch_bounds__(256)
direct(const X_TYPE* x, const SECOND_TYPE* second, const W_TYPE* weights, const float* bias,
       const float* weight_scale, const RES_TYPE* residual, Y_TYPE* y) {
    let_next_start();
    wait_for_inputs();
    i64 index = (i64)blockIdx.x * 256 + threadIdx.x;
    if (index >= (i64)N * OH * OW * K) return;
    int k = index % K;
    i64 rest = index / K;
    int ox = rest % OW;
    rest /= OW;
    int oy = rest % OH, n = rest / OH;
    constexpr int DEPTH = C / GROUPS;
    int group = k / (K / GROUPS);
    const W_TYPE* w = weights + (i64)k * KH * KW * DEPTH;
    float sum = 0.0f;
    for (int ky = 0; ky < KH; ky++) {
        int gy = oy * SH - PT + ky * DH;
        if ((unsigned)gy >= (unsigned)H) continue;
        for (int kx = 0; kx < KW; kx++) {
            int gx = ox * SW - PL + kx * DW;
            if ((unsigned)gx >= (unsigned)W) continue;
            for (int i = 0; i < DEPTH; i++) {
                int c = group * DEPTH + i;
                float v;
                if (c < FIRST) {
                    int ay = X_UP ? gy / 2 : gy, ax = X_UP ? gx / 2 : gx;
                    v = to_float(x[n * X_N + ay * X_H + ax * X_W + c * X_C]);
                } else {
                    int ay = SECOND_UP ? gy / 2 : gy, ax = SECOND_UP ? gx / 2 : gx;
                    v = to_float(second[n * S_N + ay * S_H + ax * S_W + (c - FIRST) * S_C]);
                }
                sum = fmaf(v, to_float(w[(ky * KW + kx) * DEPTH + i]), sum);
            }
        }
    }
    sum *= X_SCALE;
    if (HAS_WEIGHT_SCALE) sum *= weight_scale[k];
    if (HAS_BIAS) sum += bias[k];
    float add = 0.0f;
    if (RESIDUAL) add = to_float(residual[n * R_N + oy * R_H + ox * R_W + k * R_C]);
    if (RESIDUAL == 1) sum += add;
    sum = activate<ACT>(sum, ACT_A, ACT_B) * SCALE;
    if (RESIDUAL == 2) sum += add;
    sum = activate<AFTER>(sum, AFTER_A, AFTER_B);
    if (IS_QUANTISED) sum = fminf(fmaxf(rintf(sum / Y_SCALE), LOW), HIGH);
    y[n * Y_N + oy * Y_H + ox * Y_W + k * Y_C] = from_float<Y_TYPE>(sum);
}
