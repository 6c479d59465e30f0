// YOLOv5 and YOLOX: rows of box, objectness and class scores, (b, n, 5 + c).
// Macros: HAS_OBJECTNESS, IS_DECODED (else YOLOX's offsets in cells of STRIDES).

#define BY_WARP (NUM_CLASSES > 8)
#define WIDTH (5 + NUM_CLASSES)

struct Row { float objectness; };

__device__ __forceinline__ size_t place(int b, int row, int column) {
    return ((size_t)b * NUM_ROWS + row) * WIDTH + column;
}
__device__ __forceinline__ bool hopeful(const Outputs& o, int b, int row) {
    // No product is greater than its objectness.
    return !HAS_OBJECTNESS || value(o, 0, place(b, row, 4)) > SCORE;
}
__device__ __forceinline__ Row begin(const Outputs& o, int b, int row) {
    return {HAS_OBJECTNESS ? value(o, 0, place(b, row, 4)) : 1.0f};
}
__device__ __forceinline__ float rank(const Outputs& o, Row state, int b, int row, int c) {
    float v = value(o, 0, place(b, row, 5 + c));
    return HAS_OBJECTNESS ? __fmul_rn(v, state.objectness) : v;
}
__device__ __forceinline__ float score_of(Row, float rank) { return rank; }
__device__ __forceinline__ int class_of(const Outputs& o, int b, int row, int c) { return c; }
__device__ __forceinline__ float4 box_of(const Outputs& o, int b, int row) {
    float v[4];
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] = value(o, 0, place(b, row, i));
    if (!IS_DECODED) {
        Cell cell = cell_of(row);
        v[0] = __fadd_rn(__fmul_rn(v[0], cell.stride), cell.x * cell.stride);
        v[1] = __fadd_rn(__fmul_rn(v[1], cell.stride), cell.y * cell.stride);
        v[2] = __fmul_rn(expf(v[2]), cell.stride);
        v[3] = __fmul_rn(expf(v[3]), cell.stride);
    }
    return corners(v[0], v[1], v[2], v[3]);
}
