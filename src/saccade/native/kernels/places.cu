// Reading at places that are computed: gathering, sampling of pictures, boxes from distances.

#ifdef GRID_SAMPLE
__device__ __forceinline__ float place_of(float at, int size) {
    at = ALIGN_CORNERS ? (at + 1.0f) / 2.0f * (size - 1) : ((at + 1.0f) * size - 1.0f) / 2.0f;
    if (PADDING == 1) return fminf(fmaxf(at, 0.0f), size - 1.0f);
    if (PADDING == 2) {
        float low = ALIGN_CORNERS ? 0.0f : -0.5f, high = ALIGN_CORNERS ? size - 1.0f : size - 0.5f;
        float span = fmaxf(high - low, 1e-30f), away = fabsf(at - low);
        float turns = floorf(away / span), rest = fmodf(away, span);
        at = fmodf(turns, 2.0f) == 0.0f ? rest + low : high - rest;
        return fminf(fmaxf(at, 0.0f), size - 1.0f);
    }
    return at;
}
__device__ __forceinline__ float seen(const X_TYPE* x, float row, float column) {
    // Not through int: places may be far outside, or not a number.
    if (!(row >= 0.0f && row < H && column >= 0.0f && column < W)) return 0.0f;
    return to_float(x[(int)row * X_H + (int)column * X_W]);
}
extern "C" __global__ void __launch_bounds__(128)
grid_sample(const X_TYPE* x, const GRID_TYPE* grid, Y_TYPE* y) {
    let_next_start();
    wait_for_inputs();
    i64 index = (i64)blockIdx.x * 128 + threadIdx.x;
    if (index >= (i64)N * OH * OW * C) return;
    int c = index % C;
    i64 rest = index / C;
    int ox = rest % OW;
    rest /= OW;
    int oy = rest % OH, n = rest / OH;
    const GRID_TYPE* at = grid + n * GRID_N + oy * GRID_H + ox * GRID_W;
    float column = place_of(to_float(at[0]), W), row = place_of(to_float(at[GRID_C]), H);
    const X_TYPE* from = x + n * X_N + c * X_C;
    float v;
    if (!IS_LINEAR)
        v = seen(from, rintf(row), rintf(column));
    else {
        float top = floorf(row), left = floorf(column), fy = row - top, fx = column - left;
        v = seen(from, top, left) * (1.0f - fx) * (1.0f - fy);
        v += seen(from, top, left + 1.0f) * fx * (1.0f - fy);
        v += seen(from, top + 1.0f, left) * (1.0f - fx) * fy;
        v += seen(from, top + 1.0f, left + 1.0f) * fx * fy;
    }
    y[n * Y_N + oy * Y_H + ox * Y_W + c * Y_C] = from_float<Y_TYPE>(v);
}
#endif

#ifdef ROI_ALIGN
extern "C" __global__ void __launch_bounds__(128)
roi_align(const X_TYPE* x, const ROI_TYPE* rois, const PICTURE_TYPE* pictures, Y_TYPE* y) {
    let_next_start();
    wait_for_inputs();
    i64 index = (i64)blockIdx.x * 128 + threadIdx.x;
    if (index >= (i64)R * OH * OW * C) return;
    int c = index % C;
    i64 rest = index / C;
    int ox = rest % OW;
    rest /= OW;
    int oy = rest % OH, r = rest / OH;
    const ROI_TYPE* roi = rois + r * ROI_R;
    float shift = HALF_PIXEL ? 0.5f : 0.0f;
    float x0 = to_float(roi[0]) * SCALE - shift, y0 = to_float(roi[ROI_C]) * SCALE - shift;
    float w = to_float(roi[2 * ROI_C]) * SCALE - shift - x0;
    float h = to_float(roi[3 * ROI_C]) * SCALE - shift - y0;
    if (!HALF_PIXEL) w = fmaxf(w, 1.0f), h = fmaxf(h, 1.0f);
    const X_TYPE* from = x + (i64)pictures[r * PICTURE_R] * X_N + c * X_C;
    float best = IS_MAX ? __int_as_float(0xff800000) : 0.0f;
    for (int j = 0; j < SAMPLES; j++)
        for (int i = 0; i < SAMPLES; i++) {
            float row = y0 + h / OH * (oy + (j + 0.5f) / SAMPLES);
            float column = x0 + w / OW * (ox + (i + 0.5f) / SAMPLES);
            float v = 0.0f;
            if (!(row < -1.0f || row > H || column < -1.0f || column > W)) {
                row = fminf(fmaxf(row, 0.0f), H - 1.0f);
                column = fminf(fmaxf(column, 0.0f), W - 1.0f);
                int top = (int)row, left = (int)column;
                int bottom = min(top + 1, H - 1), right = min(left + 1, W - 1);
                float fy = row - top, fx = column - left;
                v = to_float(from[top * X_H + left * X_W]) * (1.0f - fy) * (1.0f - fx);
                v += to_float(from[top * X_H + right * X_W]) * (1.0f - fy) * fx;
                v += to_float(from[bottom * X_H + left * X_W]) * fy * (1.0f - fx);
                v += to_float(from[bottom * X_H + right * X_W]) * fy * fx;
            }
            best = IS_MAX ? maximum(best, v) : best + v;
        }
    y[r * Y_N + oy * Y_H + ox * Y_W + c * Y_C] =
        from_float<Y_TYPE>(IS_MAX ? best : best / (SAMPLES * SAMPLES));
}
#endif

#ifdef BOXES
// One thread per side of a cell; the four threads of a cell exchange their distances.
struct Levels { const X_TYPE* at[BOXES]; };
extern "C" __global__ void __launch_bounds__(128)
boxes(const __grid_constant__ Levels levels, Y_TYPE* y) {
    let_next_start();
    wait_for_inputs();
    int index = blockIdx.x * 128 + threadIdx.x;
    bool is_there = index < NUM * CELLS * 4;
    if (!is_there) index = NUM * CELLS * 4 - 1;
    int side = index % 4, cell = index / 4 % CELLS, n = index / 4 / CELLS;
    float distance = 0.0f, centre = 0.0f, stride = 1.0f;
#pragma unroll
    for (int l = 0; l < BOXES; l++) {
        if (cell < FIRST[l] || cell >= FIRST[l + 1]) continue;
        int place = cell - FIRST[l], row = place / WIDTH[l], column = place % WIDTH[l];
        const X_TYPE* from = levels.at[l] + n * L_N[l] + row * L_H[l] + column * L_W[l] +
                             side * BINS * L_C[l];
        float v[BINS], top = __int_as_float(0xff800000), total = 0.0f, sum = 0.0f;
#pragma unroll
        for (int i = 0; i < BINS; i++) {
            v[i] = to_float(from[i * L_C[l]]);
            top = maximum(top, v[i]);
        }
#pragma unroll
        for (int i = 0; i < BINS; i++) {
            float e = expf(v[i] - top);
            total += e;
            sum = fmaf(e, (float)i, sum);
        }
        distance = sum / total;
        centre = (side % 2 ? row : column) + 0.5f;
        stride = STRIDE[l];
    }
    float other = __shfl_xor_sync(0xffffffffu, distance, 2);
    float low = centre - (side < 2 ? distance : other), high = centre + (side < 2 ? other : distance);
    float v = IS_CENTRE ? (side < 2 ? (low + high) / 2.0f : high - low) : (side < 2 ? low : high);
    if (is_there) y[n * Y_N + side * Y_ROW + cell * Y_CELL] = from_float<Y_TYPE>(v * stride);
}
#endif
