// Boxes and class scores, (b, 4 + c, n), or (b, n, 4 + c) with ROWS_FIRST.

#define BY_WARP (ROWS_FIRST && NUM_CLASSES > 8)
#define WIDTH (4 + NUM_CLASSES)

struct Row {};

__device__ __forceinline__ size_t place(int b, int row, int column) {
    return ROWS_FIRST ? ((size_t)b * NUM_ROWS + row) * WIDTH + column
                      : ((size_t)b * WIDTH + column) * NUM_ROWS + row;
}
__device__ __forceinline__ bool hopeful(const Outputs& o, int b, int row) { return true; }
__device__ __forceinline__ Row begin(const Outputs& o, int b, int row) { return {}; }
__device__ __forceinline__ float rank(const Outputs& o, Row, int b, int row, int c) {
    return value(o, 0, place(b, row, 4 + c));
}
__device__ __forceinline__ float score_of(Row, float rank) { return rank; }
__device__ __forceinline__ int class_of(const Outputs& o, int b, int row, int c) { return c; }
__device__ __forceinline__ float4 box_of(const Outputs& o, int b, int row) {
    return corners(value(o, 0, place(b, row, 0)), value(o, 0, place(b, row, 1)),
                   value(o, 0, place(b, row, 2)), value(o, 0, place(b, row, 3)));
}
