// The first convolution: at most four input channels, any strides, on the matrix units.
//
// A tile of the input is brought to shared memory as four channels per pixel (8 bytes), whatever
// its layout and element type are. One row of the kernel is then a run of 4 * KW numbers there, so
// a product's sixteen rows of depth are four neighbouring pixels of one kernel row. LEAD pixels of
// weight zero go before the kernel's first column where that makes the reads aligned. Pixels beside
// the kernel are masked, as zero times infinity would be NaN.

struct Stem {
    const IN* x;
    const uint4* weights;
    const float* bias;
    OUT* y;
    i64 image;               // elements from picture to picture
    int row, column, plane;  // elements from row to row, pixel to pixel, channel to channel
    int h, w, oh, ow;
    int y_pitch, channels;
    int tiles_x, tiles_y;
};

#define IH ((TH - 1) * SH + KH)
#define QUADS ((LEAD + KW + 3) / 4)
// Columns are kept in pairs; the last reads of a row may go as far as QUADS * 4 columns.
#define IW (((TW - 1) * SW + QUADS * 4 + 1) / 2 * 2)
#define THREADS (WARPS * 32)
#define WEIGHT_BYTES (KH * QUADS * (NB / 16) * 512)
#define GROUP (NB % 32 == 0 ? 4 : 2)
#define HELD (2 * GROUP)
#define NI (BN / 8)

extern __shared__ __align__(16) u8 shared[];

template <typename T> __device__ __forceinline__ u32 as_pair(T a, T b) {
    return pack<ELEMENT>(to_float(a), to_float(b));
}
template <> __device__ __forceinline__ u32 as_pair<f16>(f16 a, f16 b) {
    if constexpr (IS_HALF) return a.bits | (u32)b.bits << 16;
    return pack<ELEMENT>(to_float(a), to_float(b));
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
stem(const __grid_constant__ Stem p) {
    u32 weights_at = shared_address(shared), input_at = weights_at + WEIGHT_BYTES;
    for (int i = threadIdx.x; i < WEIGHT_BYTES / 16; i += THREADS)
        copy_async<16>(weights_at + i * 16, p.weights + i, 16);
    commit_async();
    wait_for_inputs();

    int row = blockIdx.x / p.tiles_x;
    int n = row / p.tiles_y;
    int oy0 = (row - n * p.tiles_y) * TH, ox0 = (blockIdx.x - row * p.tiles_x) * TW;
    const IN* x = p.x + n * p.image;
    int y0 = oy0 * SH - PT, x0 = ox0 * SW - PL - LEAD;
    // Two neighbouring pixels per thread.
    constexpr int AT_ONCE = UNROLL;
#pragma unroll AT_ONCE
    for (int i = threadIdx.x; i < IH * (IW / 2); i += THREADS) {
        int iy = i / (IW / 2), ix = i % (IW / 2) * 2;
        int gy = y0 + iy, gx = x0 + ix;
        IN v[2][4] = {};
        if ((unsigned)gy < (unsigned)p.h) {
            const IN* from = x + (i64)gy * p.row;
            if (PAIRS && gx >= 0 && gx + 1 < p.w) {
                // Pixels side by side in planes, addresses even: one load takes both.
                struct alignas(2 * sizeof(IN)) Pair { IN a, b; };
#pragma unroll
                for (int c = 0; c < C; c++) {
                    Pair pair = *(const Pair*)(from + (i64)c * p.plane + gx);
                    v[0][c] = pair.a, v[1][c] = pair.b;
                }
            } else {
#pragma unroll
                for (int j = 0; j < 2; j++)
                    if ((unsigned)(gx + j) < (unsigned)p.w)
#pragma unroll
                        for (int c = 0; c < C; c++)
                            v[j][c] = from[(i64)c * p.plane + (i64)(gx + j) * p.column];
            }
        }
        *(uint4*)(shared + WEIGHT_BYTES + (iy * IW + ix) * 8) =
            make_uint4(as_pair(v[0][0], v[0][1]), as_pair(v[0][2], v[0][3]),
                       as_pair(v[1][0], v[1][1]), as_pair(v[1][2], v[1][3]));
    }
    wait_async<0>();
    __syncthreads();
    let_next_start();

    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    // Tiles of 16 pixels in a row; MI at a time share the weights that were read.
    constexpr int UNITS = TH * TW / 16;
    for (int unit = warp * MI; unit < UNITS; unit += WARPS * MI) {
        u32 at[MI];
#pragma unroll
        for (int mi = 0; mi < MI; mi++) {
            int m = (unit + mi) * 16 + (ALIGNED ? lane % 16 : lane / 4);
            at[mi] = input_at + (m / TW * SH * IW + m % TW * SW) * 8;
            at[mi] += ALIGNED ? lane / 16 * 16 : lane % 4 * 4;
        }
#pragma unroll 1
        for (int channel0 = 0; channel0 < NB; channel0 += BN) {
            float sums[MI][NI][4] = {};
#pragma unroll
            for (int ky = 0; ky < KH; ky++)
#pragma unroll
                for (int quad = 0; quad < QUADS; quad++) {
                    uint4 b[NI / 2];
#pragma unroll
                    for (int q = 0; q < NI / 2; q++)
                        b[q] = load_shared16(weights_at + lane * 16 +
                            ((ky * QUADS + quad) * (NB / 16) + channel0 / 16 + q) * 512);
#pragma unroll
                    for (int mi = 0; mi < MI; mi++) {
                        u32 a[4];
                        u32 from = at[mi] + (ky * IW + quad * 4) * 8;
                        if constexpr (ALIGNED)
                            load_matrices(a, from);
                        else {
                            a[0] = load_shared4(from);
                            a[1] = load_shared4(from + 8 * SW * 8);
                            a[2] = load_shared4(from + 16);
                            a[3] = load_shared4(from + 8 * SW * 8 + 16);
                        }
                        // This thread's depth: pixels quad * 4 + lane % 4 / 2 and two further.
                        int kx = quad * 4 + lane % 4 / 2 - LEAD;
                        if (quad * 4 - LEAD < 0 || quad * 4 + 1 - LEAD >= KW)
                            if (kx < 0 || kx >= KW) a[0] = a[1] = 0;
                        if (quad * 4 + 2 - LEAD < 0 || quad * 4 + 3 - LEAD >= KW)
                            if (kx + 2 < 0 || kx + 2 >= KW) a[2] = a[3] = 0;
#pragma unroll
                        for (int q = 0; q < NI / 2; q++) {
                            multiply<ELEMENT>(sums[mi][2 * q], a, b[q].x, b[q].y);
                            multiply<ELEMENT>(sums[mi][2 * q + 1], a, b[q].z, b[q].w);
                        }
                    }
                }
#pragma unroll
            for (int group = 0; group < NI / GROUP; group++) {
                int channel = channel0 + group * GROUP * 8 + lane % 4 * HELD;
                float bias[HELD];
#pragma unroll
                for (int i = 0; i < HELD; i += 4)
                    *(float4*)(bias + i) = *(const float4*)(p.bias + channel + i);
#pragma unroll
                for (int mi = 0; mi < MI; mi++)
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        int m = (unit + mi) * 16 + lane / 4 + half * 8;
                        int oy = oy0 + m / TW, ox = ox0 + m % TW;
                        if (oy >= p.oh || ox >= p.ow || channel >= p.channels) continue;
                        float v[HELD];
#pragma unroll
                        for (int j = 0; j < GROUP; j++) {
                            v[2 * j] = sums[mi][group * GROUP + j][2 * half] + bias[2 * j];
                            v[2 * j + 1] =
                                sums[mi][group * GROUP + j][2 * half + 1] + bias[2 * j + 1];
                        }
#pragma unroll
                        for (int i = 0; i < HELD; i += 4) activate4<ACT>(v + i, ACT_A, ACT_B);
#pragma unroll
                        for (int i = 0; i < HELD; i++) v[i] *= SCALE;
                        OUT* to = p.y + (((size_t)n * p.oh + oy) * p.ow + ox) * p.y_pitch + channel;
                        if (Y_WIDE && channel + HELD <= p.channels) {
                            if constexpr (HELD == 8)
                                *(uint4*)to =
                                    make_uint4(pack<OUT>(v[0], v[1]), pack<OUT>(v[2], v[3]),
                                               pack<OUT>(v[4], v[5]), pack<OUT>(v[6], v[7]));
                            else
                                *(uint2*)to = make_uint2(pack<OUT>(v[0], v[1]),
                                                         pack<OUT>(v[2], v[3]));
                        } else {
#pragma unroll
                            for (int i = 0; i < HELD; i++)
                                if (channel + i < p.channels) to[i] = from_float<OUT>(v[i]);
                        }
                    }
            }
        }
    }
}
