// One map (b, 5 + c, cells): objectness, box, class probabilities.
// Macros: LEAST (objectness below which nothing can pass), one level in STRIDES.

#define BY_WARP 0

struct Row { float objectness; };

__device__ __forceinline__ size_t place(int b, int row, int channel) {
    return ((size_t)b * (5 + NUM_CLASSES) + channel) * NUM_ROWS + row;
}
__device__ __forceinline__ float unit(float v) { return v != v ? v : fminf(fmaxf(v, 0.0f), 1.0f); }
__device__ __forceinline__ bool hopeful(const Outputs& o, int b, int row) {
    return value(o, 0, place(b, row, 0)) > (float)LEAST;
}
__device__ __forceinline__ Row begin(const Outputs& o, int b, int row) {
    return {powf(unit(value(o, 0, place(b, row, 0))), 0.6f)};
}
__device__ __forceinline__ float rank(const Outputs& o, Row, int b, int row, int c) {
    return unit(value(o, 0, place(b, row, 5 + c)));
}
__device__ __forceinline__ float score_of(Row state, float rank) {
    return __fmul_rn(powf(rank, 0.4f), state.objectness);
}
__device__ __forceinline__ int class_of(const Outputs& o, int b, int row, int c) { return c; }
__device__ __forceinline__ float4 box_of(const Outputs& o, int b, int row) {
    Cell cell = cell_of(row);
    float cell_w = (float)((double)IN_W / cell.cols), cell_h = (float)((double)IN_H / cell.rows);
    float x = (tanhf(value(o, 0, place(b, row, 1))) + cell.x) * cell_w;
    float y = (tanhf(value(o, 0, place(b, row, 2))) + cell.y) * cell_h;
    float w = fmaf(tanhf(0.5f * value(o, 0, place(b, row, 3))), 0.5f, 0.5f) * IN_W;
    float h = fmaf(tanhf(0.5f * value(o, 0, place(b, row, 4))), 0.5f, 0.5f) * IN_H;
    return corners(x, y, w, h);
}
