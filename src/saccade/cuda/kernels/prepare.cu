// Pictures of any size into a batch: resize, letterbox, colour order, scale, layout and cast in one
// pass. Each thread makes 8 neighbouring pixels, so that it stores whole vectors.
//
// Source pixels are read as aligned 32-bit words, up to 8 bytes past the picture: the buffer must
// extend that far, and `pixels` of a packed picture may be anywhere in it.
//
// Macros: OUT (element type), IN_W, IN_H, CHANNELS (1 or 3), IS_NCHW, IS_BGR, PAD (a level),
// ROWS (of pixels per thread), MIN_BLOCKS, MEANS and STDS_INV (one per channel), SIZE_ORDER (0 none, 1 wh, 2 hw), SIZE_T.

#define RUN 8

__constant__ float MEAN[] = {MEANS};
__constant__ float INV[] = {STDS_INV};

struct Rgb { float r, g, b; };

__device__ __forceinline__ float level(float v) { return fminf(fmaxf(rintf(v), 0.0f), 255.0f); }

// OpenCV's weights for gray, in fixed point.
__device__ __forceinline__ float luma(float r, float g, float b) {
    return (float)(((int)r * 4899 + (int)g * 9617 + (int)b * 1868 + 8192) >> 14);
}

__device__ Rgb yuv(int matrix, float y, float u, float v) {
    float scale = matrix == 2 ? 1.0f : 1.164383f;
    y = (matrix == 2 ? y : fmaxf(y - 16.0f, 0.0f)) * scale;
    u -= 128.0f;
    v -= 128.0f;
    if (matrix == 1)
        return {level(y + 1.792741f * v), level(y - 0.213249f * u - 0.532909f * v),
                level(y + 2.112402f * u)};
    if (matrix == 2)
        return {level(y + 1.402f * v), level(y - 0.344136f * u - 0.714136f * v),
                level(y + 1.772f * u)};
    return {level(y + 1.596027f * v), level(y - 0.391762f * u - 0.812968f * v),
            level(y + 2.017232f * u)};
}

__device__ Rgb sample(const Picture& p, int x, int y) {
    x = min(x, p.width - 1);
    y = min(y, p.height - 1);
    if (p.format == GRAY) {
        float v = p.pixels[(size_t)y * p.pitch + x];
        return {v, v, v};
    }
    const u8* uv = p.chroma + (size_t)(y >> 1) * p.chroma_pitch + (x >> 1) * 2;
    return yuv(p.matrix, p.pixels[(size_t)y * p.pitch + x], uv[0], uv[1]);
}

// Six bytes from any address, as two neighbouring RGB pixels.
__device__ __forceinline__ void load_pair(const u8* at, Rgb& one, Rgb& two) {
    const u32* words = (const u32*)((size_t)at & ~(size_t)3);
    u32 shift = ((u32)(size_t)at & 3) * 8;
    u32 first = __ldg(words), second = __ldg(words + 1), third = __ldg(words + 2);
    u32 low = __funnelshift_r(first, second, shift), high = __funnelshift_r(second, third, shift);
    one = {(float)(low & 255), (float)(low >> 8 & 255), (float)(low >> 16 & 255)};
    two = {(float)(low >> 24), (float)(high & 255), (float)(high >> 8 & 255)};
}

__device__ __forceinline__ float mix(float a, float b, float t) { return fmaf(t, b - a, a); }

__device__ __forceinline__ Rgb mix(Rgb a, Rgb b, float t) {
    return {mix(a.r, b.r, t), mix(a.g, b.g, t), mix(a.b, b.b, t)};
}

__device__ __forceinline__ Rgb gray_of(Rgb v) {
    float y = luma(v.r, v.g, v.b);
    return {y, y, y};
}

// First of two neighbouring source pixels and the weight of the second; at a border the second
// has no weight, so it may be anything.
__device__ __forceinline__ int tap(int at, float step, int size, float& weight) {
    float x = ((float)at + 0.5f) * step - 0.5f;
    float low = floorf(x);
    int first = (int)low;
    weight = x - low;
    if (first < 0) { first = 0; weight = 0.0f; }
    if (first >= size - 1) { first = size - 1; weight = 0.0f; }
    return first;
}

struct Row { int y0, y1; float weight; };

__device__ __forceinline__ Rgb pixel(const Picture& p, const Row& row, int x) {
    float weight;
    int first = tap(x, p.step_xy[0], p.width, weight);
    Rgb a, b, c, d;
    if (p.format == PACKED) {
        load_pair(p.pixels + (size_t)row.y0 * p.pitch + first * 3, a, b);
        load_pair(p.pixels + (size_t)row.y1 * p.pitch + first * 3, c, d);
        if (CHANNELS == 1) {
            a = gray_of(a); b = gray_of(b); c = gray_of(c); d = gray_of(d);
        }
    } else {
        a = sample(p, first, row.y0);
        b = sample(p, first + 1, row.y0);
        c = sample(p, first, row.y1);
        d = sample(p, first + 1, row.y1);
        if (CHANNELS == 1 && p.format == NV12) {
            a = gray_of(a); b = gray_of(b); c = gray_of(c); d = gray_of(d);
        }
    }
    Rgb v = mix(mix(a, b, weight), mix(c, d, weight), row.weight);
    return {level(v.r), level(v.g), level(v.b)};
}

// Eight packed pixels at their own size: 24 bytes from any address.
__device__ __forceinline__ void load_run(const u8* at, u32 (&raw)[7]) {
    const u32* words = (const u32*)((size_t)at & ~(size_t)3);
#pragma unroll
    for (int i = 0; i < 7; i++) raw[i] = __ldg(words + i);
}

__device__ __forceinline__ void unpack_run(
    const u8* at, const u32 (&raw)[7], float (&v)[CHANNELS][RUN]) {
    u32 shift = ((u32)(size_t)at & 3) * 8;
    u32 bytes[6];
#pragma unroll
    for (int i = 0; i < 6; i++) bytes[i] = __funnelshift_r(raw[i], raw[i + 1], shift);
#pragma unroll
    for (int i = 0; i < RUN; i++) {
        float c[3];
#pragma unroll
        for (int k = 0; k < 3; k++) {
            int byte = i * 3 + k;
            c[k] = (float)(bytes[byte / 4] >> (byte % 4 * 8) & 255);
        }
        if (CHANNELS == 1) {
            v[0][i] = luma(c[0], c[1], c[2]);
        } else {
#pragma unroll
            for (int k = 0; k < CHANNELS; k++) v[k][i] = c[IS_BGR ? 2 - k : k];
        }
    }
}

template <int N> struct alignas(N * sizeof(OUT) > 16 ? 16 : N * sizeof(OUT)) Vector { OUT v[N]; };

__device__ __forceinline__ OUT finished(float v, int channel) {
    return from_float<OUT>(__fmul_rn(__fsub_rn(v, MEAN[channel]), INV[channel]));
}

__device__ __forceinline__ void store(OUT* out, int x, int y, const float (&v)[CHANNELS][RUN]) {
    if (IN_W % RUN == 0) {
        if (IS_NCHW || CHANNELS == 1) {
#pragma unroll
            for (int c = 0; c < CHANNELS; c++) {
                Vector<RUN> whole;
#pragma unroll
                for (int i = 0; i < RUN; i++) whole.v[i] = finished(v[c][i], c);
                *(Vector<RUN>*)(out + ((size_t)c * IN_H + y) * IN_W + x) = whole;
            }
        } else {
            Vector<RUN * CHANNELS> whole;
#pragma unroll
            for (int i = 0; i < RUN * CHANNELS; i++)
                whole.v[i] = finished(v[i % CHANNELS][i / CHANNELS], i % CHANNELS);
            *(Vector<RUN * CHANNELS>*)(out + ((size_t)y * IN_W + x) * CHANNELS) = whole;
        }
        return;
    }
    for (int i = 0; i < RUN && x + i < IN_W; i++) {
#pragma unroll
        for (int c = 0; c < CHANNELS; c++) {
            size_t at = IS_NCHW ? ((size_t)c * IN_H + y) * IN_W + x + i
                                : ((size_t)y * IN_W + x + i) * CHANNELS + c;
            // A constant index keeps v in registers.
            float value = 0.0f;
#pragma unroll
            for (int k = 0; k < RUN; k++) value = k == i ? v[c][k] : value;
            out[at] = finished(value, c);
        }
    }
}

__device__ __forceinline__ void make_run(const Picture& p, OUT* out, int x, int y) {
    int left = x - p.left, down = y - p.top;
    float v[CHANNELS][RUN];
    if (down < 0 || down >= p.new_height || left <= -RUN || left >= p.new_width) {
#pragma unroll
        for (int c = 0; c < CHANNELS; c++)
#pragma unroll
            for (int i = 0; i < RUN; i++) v[c][i] = PAD;
        store(out, x, y, v);
        return;
    }
    Row row;
    row.y0 = tap(down, p.step_xy[1], p.height, row.weight);
    row.y1 = min(row.y0 + 1, p.height - 1);
#pragma unroll
    for (int i = 0; i < RUN; i++) {
        Rgb found = {PAD, PAD, PAD};
        if (left + i >= 0 && left + i < p.new_width) found = pixel(p, row, left + i);
        if (CHANNELS == 1) {
            v[0][i] = found.r;
        } else {
            v[0][i] = IS_BGR ? found.b : found.r;
            v[CHANNELS > 1 ? 1 : 0][i] = found.g;
            v[CHANNELS - 1][i] = IS_BGR ? found.r : found.b;
        }
    }
    store(out, x, y, v);
}

extern "C" __global__ __launch_bounds__(256, MIN_BLOCKS) void prepare(
    const Picture* __restrict__ table, OUT* __restrict__ batch, SIZE_T* __restrict__ sizes) {
    const Picture& p = table[blockIdx.z];
    if (p.width == 0) return;
    const int runs = (IN_W + RUN - 1) / RUN;
    int index = blockIdx.x * blockDim.x + threadIdx.x;
    if (SIZE_ORDER != 0 && index == 0) {
        sizes[blockIdx.z * 2] = (SIZE_T)(SIZE_ORDER == 1 ? p.width : p.height);
        sizes[blockIdx.z * 2 + 1] = (SIZE_T)(SIZE_ORDER == 1 ? p.height : p.width);
    }
    int y = index / runs * ROWS, x = index % runs * RUN;
    if (y >= IN_H) return;
    OUT* out = batch + (size_t)blockIdx.z * CHANNELS * IN_H * IN_W;
    int left = x - p.left, down = y - p.top;
    bool is_plain = p.format == PACKED && p.new_width == p.width && p.new_height == p.height &&
        left >= 0 && left + RUN <= p.width && down >= 0 && down + ROWS <= p.height &&
        y + ROWS <= IN_H;
    if (is_plain) {
        // All loads before the first store, so that they are in flight together.
        const u8* at = p.pixels + (size_t)down * p.pitch + left * 3;
        u32 raw[ROWS][7];
#pragma unroll
        for (int k = 0; k < ROWS; k++) load_run(at + (size_t)k * p.pitch, raw[k]);
#pragma unroll
        for (int k = 0; k < ROWS; k++) {
            float v[CHANNELS][RUN];
            unpack_run(at + (size_t)k * p.pitch, raw[k], v);
            store(out, x, y + k, v);
        }
        return;
    }
#pragma unroll 1
    for (int k = 0; k < ROWS && y + k < IN_H; k++) make_run(p, out, x, y + k);
}
