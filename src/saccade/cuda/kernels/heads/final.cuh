// Final boxes of the graph: scores (b, n), boxes (b, n, 4), classes (b, n), count (b), or all in
// rows (b, n, WIDTH). Places of roles: SCORE_AT and so on are (output, width of a row, column);
// LABEL_T is the type of classes, COUNT_T of the count; HAS_COUNT.

#define BY_WARP 0

struct Row {};

__device__ __forceinline__ size_t place(int b, int row, int width, int column) {
    return ((size_t)b * NUM_ROWS + row) * width + column;
}
__device__ __forceinline__ double label(const Outputs& o, int b, int row) {
    return read_number(((const LABEL_T*)o.at[LABEL_OUT])[place(b, row, LABEL_WIDTH, LABEL_COLUMN)]);
}
__device__ __forceinline__ bool hopeful(const Outputs& o, int b, int row) {
#if HAS_COUNT
    if (row >= ((const COUNT_T*)o.at[COUNT_OUT])[b]) return false;
#endif
    double v = label(o, b, row);
    return !CHECK_LABEL || (v >= 0.0 && v < 2147483648.0);
}
__device__ __forceinline__ Row begin(const Outputs& o, int b, int row) { return {}; }
__device__ __forceinline__ float rank(const Outputs& o, Row, int b, int row, int c) {
    return value(o, SCORE_OUT, place(b, row, SCORE_WIDTH, SCORE_COLUMN));
}
__device__ __forceinline__ float score_of(Row, float rank) { return rank; }
__device__ __forceinline__ int class_of(const Outputs& o, int b, int row, int c) {
    return (int)label(o, b, row);
}
__device__ __forceinline__ float4 box_of(const Outputs& o, int b, int row) {
    float v[4];
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] = value(o, BOX_OUT, place(b, row, BOX_WIDTH, i));
    return make_float4(v[0], v[1], v[2], v[3]);
}
