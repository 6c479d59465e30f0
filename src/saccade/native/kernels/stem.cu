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
#define TILES_X ((OUT_W + TW - 1) / TW)
#define TILES_Y ((OUT_H + TH - 1) / TH)

extern __shared__ __align__(16) u8 shared[];

template <typename T> struct alignas(2 * sizeof(T)) Pair { T a, b; };

__device__ __forceinline__ u32 bits_of(f16 a, f16 b) { return a.bits | (u32)b.bits << 16; }
template <typename T> __device__ __forceinline__ u32 joined(T a, T b) {
    return pack<ELEMENT>(to_float(a), to_float(b));
}
template <> __device__ __forceinline__ u32 joined<f16>(f16 a, f16 b) {
    return IS_HALF ? bits_of(a, b) : pack<ELEMENT>(to_float(a), to_float(b));
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
stem(const __grid_constant__ Stem p) {
    u32 weights_at = shared_address(shared), input_at = weights_at + WEIGHT_BYTES;
    for (int i = threadIdx.x; i < WEIGHT_BYTES / 16; i += THREADS)
        copy_async<16>(weights_at + i * 16, p.weights + i, 16);
    commit_async();
    wait_for_inputs();

    int row = blockIdx.x / TILES_X;
    int n = row / TILES_Y;
    int oy0 = (row - n * TILES_Y) * TH, ox0 = (blockIdx.x - row * TILES_X) * TW;
    const IN* x = p.x + n * IMAGE;
    const int y0 = oy0 * SH - PT, x0 = ox0 * SW - PL - LEAD;
    // Two neighbouring pixels per thread, row after row.
    constexpr int ACROSS = IW / 2, ROWS = THREADS / ACROSS, REST = THREADS % ACROSS;
    int iy = threadIdx.x / ACROSS, ix = threadIdx.x % ACROSS;
    constexpr int AT_ONCE = UNROLL;
#pragma unroll AT_ONCE
    for (int i = threadIdx.x; i < IH * ACROSS; i += THREADS) {
        const int gy = y0 + iy, gx = x0 + ix * 2;
        IN v[2][4] = {};
        if ((unsigned)gy < (unsigned)IN_H) {
            if (PAIRS) {
                // Side by side in planes, at even places, and rows are even: both or none is there.
                const IN* from = x + (gy * LINE + gx);
                if ((unsigned)gx < (unsigned)IN_W)
#pragma unroll
                    for (int c = 0; c < C; c++) {
                        Pair<IN> pair = *(const Pair<IN>*)(from + c * PLANE);
                        v[0][c] = pair.a, v[1][c] = pair.b;
                    }
            } else {
#pragma unroll
                for (int j = 0; j < 2; j++)
                    if ((unsigned)(gx + j) < (unsigned)IN_W)
#pragma unroll
                        for (int c = 0; c < C; c++)
                            v[j][c] = x[gy * LINE + (gx + j) * COLUMN + c * PLANE];
            }
        }
        *(uint4*)(shared + WEIGHT_BYTES + (iy * IW + ix * 2) * 8) =
            make_uint4(joined(v[0][0], v[0][1]), joined(v[0][2], v[0][3]),
                       joined(v[1][0], v[1][1]), joined(v[1][2], v[1][3]));
        iy += ROWS, ix += REST;
        if (ix >= ACROSS) ix -= ACROSS, iy++;
    }
    wait_async<0>();
    __syncthreads();
    let_next_start();

    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int first = oy0 * OUT_W + ox0;
    OUT* const y = p.y + n * Y_IMAGE;
    // Few weights stay in registers for all of a warp's pixels.
    constexpr bool IS_HELD = NB == BN && KH * QUADS * NI <= 24;
    uint4 kept[IS_HELD ? KH * QUADS : 1][NI / 2];
    if constexpr (IS_HELD)
#pragma unroll
        for (int i = 0; i < KH * QUADS; i++)
#pragma unroll
            for (int q = 0; q < NI / 2; q++)
                kept[i][q] = load_shared16(weights_at + lane * 16 + (i * (NB / 16) + q) * 512);
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
            // Sums begin with the bias.
            float sums[MI][NI][4];
#pragma unroll
            for (int j = 0; j < NI; j++) {
                int held = channel0 + j / GROUP * GROUP * 8 + lane % 4 * HELD + j % GROUP * 2;
                float2 b = *(const float2*)(p.bias + held);
#pragma unroll
                for (int mi = 0; mi < MI; mi++)
                    sums[mi][j][0] = sums[mi][j][2] = b.x, sums[mi][j][1] = sums[mi][j][3] = b.y;
            }
#pragma unroll
            for (int ky = 0; ky < KH; ky++)
#pragma unroll
                for (int quad = 0; quad < QUADS; quad++) {
                    uint4 b[NI / 2];
#pragma unroll
                    for (int q = 0; q < NI / 2; q++)
                        b[q] = IS_HELD ? kept[IS_HELD ? ky * QUADS + quad : 0][q]
                                       : load_shared16(weights_at + lane * 16 +
                                                       ((ky * QUADS + quad) * (NB / 16) +
                                                        channel0 / 16 + q) * 512);
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
#pragma unroll
                for (int mi = 0; mi < MI; mi++)
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        int m = (unit + mi) * 16 + lane / 4 + half * 8;
                        if (OUT_H % TH != 0 && oy0 + m / TW >= OUT_H) continue;
                        if (OUT_W % TW != 0 && ox0 + m % TW >= OUT_W) continue;
                        if (CHANNELS % BN != 0 && channel >= CHANNELS) continue;
                        float v[HELD];
#pragma unroll
                        for (int j = 0; j < GROUP; j++) {
                            v[2 * j] = sums[mi][group * GROUP + j][2 * half];
                            v[2 * j + 1] = sums[mi][group * GROUP + j][2 * half + 1];
                        }
#pragma unroll
                        for (int i = 0; i < HELD; i += 4)
                            if constexpr (ACT == SILU && sizeof(OUT) == 1) {
#pragma unroll
                                for (int j = i; j < i + 4; j++) v[j] = silu_of_half(v[j] * 0.5f);
                            } else
                                activate4<ACT>(v + i, ACT_A, ACT_B);
#pragma unroll
                        for (int i = 0; i < HELD; i++) v[i] *= SCALE;
                        OUT* to = y + (first + m / TW * OUT_W + m % TW) * Y_PITCH + channel;
                        if constexpr (sizeof(OUT) == 1) {
                            u32 word[HELD / 4];
#pragma unroll
                            for (int i = 0; i < HELD; i += 4)
                                word[i / 4] = codes<OUT>(v + i, Y_INVERSE);
                            if (Y_WIDE && channel + HELD <= CHANNELS) {
                                if constexpr (HELD == 8)
                                    *(uint2*)to = make_uint2(word[0], word[HELD / 4 - 1]);
                                else
                                    *(u32*)to = word[0];
                            } else {
#pragma unroll
                                for (int i = 0; i < HELD; i++)
                                    if (channel + i < CHANNELS)
                                        ((u8*)to)[i] = word[i / 4] >> i % 4 * 8;
                            }
                        } else if (Y_WIDE && channel + HELD <= CHANNELS) {
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
                                if (channel + i < CHANNELS) to[i] = from_float<OUT>(v[i]);
                        }
                    }
            }
        }
    }
}
