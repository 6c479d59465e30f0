// Class scores and four distributions per cell. IS_PLUS: one output (b, n, c + 4 * BINS), else per
// level two: scores (b, cells, c) at 2 * level, logits (b, cells, 4 * BINS) at 2 * level + 1.
// Macros: BINS, CENTRE.

#define BY_WARP (NUM_CLASSES > 8)
#define NUM_LOGITS (4 * BINS)

struct Row {};

__device__ __forceinline__ float score_at(const Outputs& o, int b, int row, int c) {
    if (IS_PLUS)
        return value(o, 0, ((size_t)b * NUM_ROWS + row) * (NUM_CLASSES + NUM_LOGITS) + c);
    Cell cell = cell_of(row);
    return value(o, 2 * cell.level, ((size_t)b * cell.num + cell.index) * NUM_CLASSES + c);
}
__device__ __forceinline__ float logit_at(const Outputs& o, const Cell& cell, int b, int row, int i) {
    if (IS_PLUS)
        return value(
            o, 0, ((size_t)b * NUM_ROWS + row) * (NUM_CLASSES + NUM_LOGITS) + NUM_CLASSES + i);
    return value(o, 2 * cell.level + 1, ((size_t)b * cell.num + cell.index) * NUM_LOGITS + i);
}
__device__ __forceinline__ bool hopeful(const Outputs& o, int b, int row) { return true; }
__device__ __forceinline__ Row begin(const Outputs& o, int b, int row) { return {}; }
__device__ __forceinline__ float rank(const Outputs& o, Row, int b, int row, int c) {
    return score_at(o, b, row, c);
}
__device__ __forceinline__ float score_of(Row, float rank) { return rank; }
__device__ __forceinline__ int class_of(const Outputs& o, int b, int row, int c) { return c; }
__device__ __forceinline__ float4 box_of(const Outputs& o, int b, int row) {
    Cell cell = cell_of(row);
    float side[4];
#pragma unroll
    for (int k = 0; k < 4; k++) {
        float most = NEVER;
        bool is_whole = true;
        for (int i = 0; i < BINS; i++) {
            float v = logit_at(o, cell, b, row, k * BINS + i);
            is_whole &= v == v;
            most = fmaxf(most, v);
        }
        float sum = 0.0f, mean = 0.0f;
        for (int i = 0; i < BINS; i++) {
            float weight = expf(logit_at(o, cell, b, row, k * BINS + i) - most);
            sum += weight;
            mean += weight * (float)i;
        }
        // What is not a number fails is_usable.
        side[k] = is_whole ? mean / sum * cell.stride : __int_as_float(0x7fffffff);
    }
    float x = (cell.x + (float)CENTRE) * cell.stride, y = (cell.y + (float)CENTRE) * cell.stride;
    float4 v = make_float4(x - side[0], y - side[1], x + side[2], y + side[3]);
    float nothing = (v.x + v.y + v.z + v.w) * 0.0f;
    if (nothing != nothing) return make_float4(nothing, nothing, nothing, nothing);
    return make_float4(inside(v.x, IN_W), inside(v.y, IN_H), inside(v.z, IN_W), inside(v.w, IN_H));
}
