// Faces: per level cls, obj (b, cells, 1), bbox (b, cells, 4) and kps (b, cells, 2 * NUM_POINTS) at
// 4 * level and on.

#define BY_WARP 0

struct Row {};

__device__ __forceinline__ float part(
    const Outputs& o, const Cell& cell, int b, int role, int width, int i) {
    return value(o, 4 * cell.level + role, ((size_t)b * cell.num + cell.index) * width + i);
}
__device__ __forceinline__ bool hopeful(const Outputs& o, int b, int row) { return true; }
__device__ __forceinline__ Row begin(const Outputs& o, int b, int row) { return {}; }
__device__ __forceinline__ float rank(const Outputs& o, Row, int b, int row, int c) {
    Cell cell = cell_of(row);
    float v = __fmul_rn(part(o, cell, b, 0, 1, 0), part(o, cell, b, 1, 1, 0));
    return v != v ? v : sqrtf(fminf(fmaxf(v, 0.0f), 1.0f));
}
__device__ __forceinline__ float score_of(Row, float rank) { return rank; }
__device__ __forceinline__ int class_of(const Outputs& o, int b, int row, int c) { return 0; }
__device__ __forceinline__ float2 point_of(const Outputs& o, int b, int row, int k) {
    Cell cell = cell_of(row);
    float x = part(o, cell, b, 3, 2 * NUM_POINTS, 2 * k);
    float y = part(o, cell, b, 3, 2 * NUM_POINTS, 2 * k + 1);
    return make_float2(__fadd_rn(__fmul_rn(x, cell.stride), cell.x * cell.stride),
                       __fadd_rn(__fmul_rn(y, cell.stride), cell.y * cell.stride));
}
__device__ __forceinline__ float4 box_of(const Outputs& o, int b, int row) {
    Cell cell = cell_of(row);
    float v[4];
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] = part(o, cell, b, 2, 4, i);
    float x = __fadd_rn(__fmul_rn(v[0], cell.stride), cell.x * cell.stride);
    float y = __fadd_rn(__fmul_rn(v[1], cell.stride), cell.y * cell.stride);
    float4 box = corners(x, y, expf(fmin_or_nan(v[2], 20.0f)) * cell.stride,
                         expf(fmin_or_nan(v[3], 20.0f)) * cell.stride);
    // A face whose points are not finite is no candidate.
    for (int k = 0; k < NUM_POINTS; k++) {
        float2 point = point_of(o, b, row, k);
        if (!isfinite(point.x) || !isfinite(point.y)) box.x = __int_as_float(0x7fffffff);
    }
    return box;
}
