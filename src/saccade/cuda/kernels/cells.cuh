// Grids of cells, and small things that heads share.
// Macros: STRIDES (one or more numbers), NUM_STRIDES.

struct Cell { float x, y, stride; int level, index, num, rows, cols; };

__constant__ int STRIDE[] = {STRIDES};

// Which cell of which level a row belongs to; levels follow each other, cells row by row.
__device__ __forceinline__ Cell cell_of(int row) {
    int start = 0;
    Cell cell = {};
#pragma unroll
    for (int level = 0; level < NUM_STRIDES; level++) {
        int stride = STRIDE[level];
        int rows = (IN_H + stride - 1) / stride, cols = (IN_W + stride - 1) / stride;
        if (row >= start) {
            int index = row - start;
            cell = {(float)(index % cols), (float)(index / cols), (float)stride,
                    level, index, rows * cols, rows, cols};
        }
        start += rows * cols;
    }
    return cell;
}

__device__ __forceinline__ float4 corners(float x, float y, float w, float h) {
    w *= 0.5f;
    h *= 0.5f;
    return make_float4(__fsub_rn(x, w), __fsub_rn(y, h), __fadd_rn(x, w), __fadd_rn(y, h));
}

__device__ __forceinline__ float inside(float v, int most) {
    return fminf(fmaxf(v, 0.0f), (float)most);
}

__device__ __forceinline__ float fmin_or_nan(float v, float most) { return v > most ? most : v; }

__device__ __forceinline__ double read_number(float v) { return v; }
__device__ __forceinline__ double read_number(f16 v) { return to_float(v); }
__device__ __forceinline__ double read_number(bf16 v) { return to_float(v); }
__device__ __forceinline__ double read_number(int v) { return v; }
__device__ __forceinline__ double read_number(long long v) { return (double)v; }
