// Scores (b, n, FIRST + c + LAST) and boxes (b, n, 4): SSD, DAMO-YOLO, and raw DETR.
// Macros: FIRST and LAST (columns that are no class), ACTIVATION (0 none, 1 softmax, 2 sigmoid),
// IS_CENTRED (boxes in centre form), IS_NORMALISED, PRIORS (0, or 1: output 2 has them in centre
// form), VARIANCE_CENTRE, VARIANCE_SIZE.

#define BY_WARP (ACTIVATION != 1 && NUM_CLASSES > 8)
#define WIDTH (FIRST + NUM_CLASSES + LAST)

struct Row { float most, sum; };

__device__ __forceinline__ float column(const Outputs& o, int b, int row, int c) {
    return value(o, 0, ((size_t)b * NUM_ROWS + row) * WIDTH + c);
}
__device__ __forceinline__ bool hopeful(const Outputs& o, int b, int row) { return true; }
__device__ __forceinline__ Row begin(const Outputs& o, int b, int row) {
    if (ACTIVATION != 1) return {0.0f, 1.0f};
    float most = NEVER, sum = 0.0f;
    bool is_whole = true;
    for (int c = 0; c < WIDTH; c++) {
        float v = column(o, b, row, c);
        is_whole &= v == v;
        most = fmaxf(most, v);
    }
    for (int c = 0; c < WIDTH; c++) sum += expf(column(o, b, row, c) - most);
    return {most, is_whole ? sum : __int_as_float(0x7fffffff)};
}
__device__ __forceinline__ float rank(const Outputs& o, Row state, int b, int row, int c) {
    float v = column(o, b, row, FIRST + c);
    return ACTIVATION == 1 ? expf(v - state.most) / state.sum : v;
}
__device__ __forceinline__ float score_of(Row, float rank) {
    return ACTIVATION == 2 ? 1.0f / (1.0f + expf(-rank)) : rank;
}
__device__ __forceinline__ int class_of(const Outputs& o, int b, int row, int c) { return c; }
__device__ __forceinline__ float4 box_of(const Outputs& o, int b, int row) {
    float v[4];
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] = value(o, 1, ((size_t)b * NUM_ROWS + row) * 4 + i);
#if PRIORS
    const float* prior = (const float*)o.at[2] + (size_t)row * 4;
    v[0] = prior[0] + v[0] * (float)VARIANCE_CENTRE * prior[2];
    v[1] = prior[1] + v[1] * (float)VARIANCE_CENTRE * prior[3];
    v[2] = prior[2] * expf(fmin_or_nan(v[2] * (float)VARIANCE_SIZE, 20.0f));
    v[3] = prior[3] * expf(fmin_or_nan(v[3] * (float)VARIANCE_SIZE, 20.0f));
#endif
    float4 box = IS_CENTRED ? corners(v[0], v[1], v[2], v[3]) : make_float4(v[0], v[1], v[2], v[3]);
    if (IS_NORMALISED)
        box = make_float4(box.x * IN_W, box.y * IN_H, box.z * IN_W, box.w * IN_H);
    return box;
}
