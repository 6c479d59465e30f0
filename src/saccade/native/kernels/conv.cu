// Convolution of pictures as they lie: an implicit matrix product on the matrix units.
//
// A block makes TH x TW output pixels of BN channels. The input pixels that these need, with their
// border, are brought to shared memory once per CC channels ("chunk") and read by every tap of the
// kernel from there; reading is one ldmatrix at a constant offset from the thread's own address.
// Shared pixels are CC channels and 16 bytes apart, so eight neighbours lie in different banks; at
// horizontal strides above one, columns are sorted by their remainder first, which makes the
// columns that neighbouring outputs read neighbours again.
//
// Weights come packed in the order in which threads hold them (conv.py: pack_weights): 16 bytes per
// thread serve two 16x8 products. The packing also permutes the output channels, so that a thread
// ends up with 8 (or 4) that lie side by side and stores them at once.
//
// The blocks are persistent: with RESIDENT weights, a block keeps them for all of its tiles. Loads
// run STAGES - 1 chunks ahead, over tile borders.

struct Conv {
    const void* x;
    const void* second;
    const uint4* weights;
    const float* bias;
    const void* residual;
    void* y;
    int h, w, oh, ow;              // pixels of the convolution's input (after up-sampling), output
    int x_pitch, second_pitch, residual_pitch, y_pitch;  // elements from pixel to pixel
    int x_channels, channels;      // of x (second follows), of y
    int first_chunks, chunks;      // that come from x; of both
    int tiles_x, tiles_y, tiles;   // tiles of both directions and all pictures
    int workers;                   // blocks that share the tiles of one block of channels
    int second_channels;
};

#define IH ((TH - 1) * SH + (KH - 1) * DH + 1)
#define IW ((TW - 1) * SW + (KW - 1) * DW + 1)
#define SIDE ((IW + SW - 1) / SW)
#define ROW (SIDE * SW)
#define PIXEL_BYTES (CC * 2 + 16)
#define INPUT_BYTES (IH * ROW * PIXEL_BYTES)
#define TAPS (KH * KW)
#define KK (CC / 16)
#define CHUNK_WEIGHTS (TAPS * KK * (BN / 16) * 512)
#define THREADS (WM * WN * WK * 32)
#define GROUP (NI % 4 == 0 ? 4 : 2)
#define NUM_GROUPS (NI / GROUP)
#define HELD (2 * GROUP)

// Shared memory: weights (of all chunks, or one per stage), then inputs per stage, then partial
// sums of the warps that share a tile's products.
extern __shared__ __align__(16) u8 shared[];

struct Tile { int n, y0, x0; };

__device__ __forceinline__ Tile tile_at(const Conv& conv, int index) {
    int row = index / conv.tiles_x;
    int n = row / conv.tiles_y;
    return {n, (row - n * conv.tiles_y) * TH, (index - row * conv.tiles_x) * TW};
}

__device__ __forceinline__ void load_input(const Conv& conv, Tile tile, int chunk, u32 to) {
    bool is_second = HAS_SECOND && chunk >= conv.first_chunks;
    int first = (is_second ? chunk - conv.first_chunks : chunk) * CC;
    int there = (is_second ? conv.second_channels : conv.x_channels) - first;
    int pitch = is_second ? conv.second_pitch : conv.x_pitch;
    const ELEMENT* base = (const ELEMENT*)(is_second ? conv.second : conv.x) + first;
    bool is_upsampled = is_second ? SECOND_UP : X_UP;
    int h = is_upsampled ? conv.h >> 1 : conv.h, w = is_upsampled ? conv.w >> 1 : conv.w;
    base += (size_t)tile.n * h * w * pitch;
    int y0 = tile.y0 * SH - PT, x0 = tile.x0 * SW - PL;
    constexpr int PIECES = CC * 2 / VEC;
#pragma unroll 4
    for (int i = threadIdx.x; i < IH * IW * PIECES; i += THREADS) {
        int pixel = i / PIECES, piece = i % PIECES;
        int iy = pixel / IW, ix = pixel % IW;
        int gy = y0 + iy, gx = x0 + ix;
        bool is_in = (unsigned)gy < (unsigned)conv.h && (unsigned)gx < (unsigned)conv.w;
        if (is_upsampled) gy >>= 1, gx >>= 1;
        int valid = min(max((there - piece * (VEC / 2)) * 2, 0), VEC);
        if (!is_in) valid = 0;
        const ELEMENT* from = base;
        if (valid) from += ((size_t)gy * w + gx) * pitch + piece * (VEC / 2);
        int place = iy * ROW + (SW == 1 ? ix : (ix % SW) * SIDE + ix / SW);
        u32 target = to + place * PIXEL_BYTES + piece * VEC;
        if constexpr (VEC >= 4)
            copy_async<VEC>(target, from, valid);
        else {
            u16 value = valid ? *(const u16*)from : 0;
            asm volatile("st.shared.u16 [%0], %1;" ::"r"(target), "h"(value) : "memory");
        }
    }
}

__device__ __forceinline__ void load_weights(const uint4* from, u32 to, int num_bytes) {
    for (int i = threadIdx.x; i < num_bytes / 16; i += THREADS)
        copy_async<16>(to + i * 16, from + i, 16);
}

__device__ __forceinline__ void finish(const Conv& conv, Tile tile, int channel0, int m0,
                                       float (&sums)[MI][NI][4]) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int group = 0; group < NUM_GROUPS; group++) {
        int channel = channel0 + group * GROUP * 8 + (lane % 4) * HELD;
        if (channel >= conv.channels) continue;
        float bias[HELD];
#pragma unroll
        for (int i = 0; i < HELD; i += 4) *(float4*)(bias + i) = *(const float4*)(conv.bias + channel + i);
#pragma unroll
        for (int mi = 0; mi < MI; mi++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int m = m0 + mi * 16 + lane / 4 + half * 8;
                int oy = tile.y0 + m / TW, ox = tile.x0 + m % TW;
                if (m >= TH * TW || oy >= conv.oh || ox >= conv.ow) continue;
                float v[HELD];
#pragma unroll
                for (int j = 0; j < GROUP; j++) {
                    v[2 * j] = sums[mi][group * GROUP + j][2 * half];
                    v[2 * j + 1] = sums[mi][group * GROUP + j][2 * half + 1];
                }
#pragma unroll
                for (int i = 0; i < HELD; i++) v[i] += bias[i];
                size_t pixel = ((size_t)tile.n * conv.oh + oy) * conv.ow + ox;
                float add[HELD];
                if constexpr (RESIDUAL) {
                    const ELEMENT* from =
                        (const ELEMENT*)conv.residual + pixel * conv.residual_pitch + channel;
                    if (RES_WIDE && channel + HELD <= conv.channels) {
#pragma unroll
                        for (int i = 0; i < HELD; i += 4) {
                            uint2 pair = *(const uint2*)(from + i);
                            add[i] = unpack<ELEMENT>(pair.x, 0);
                            add[i + 1] = unpack<ELEMENT>(pair.x, 1);
                            add[i + 2] = unpack<ELEMENT>(pair.y, 0);
                            add[i + 3] = unpack<ELEMENT>(pair.y, 1);
                        }
                    } else {
#pragma unroll
                        for (int i = 0; i < HELD; i++)
                            add[i] = channel + i < conv.channels ? to_float(from[i]) : 0.0f;
                    }
                }
                if constexpr (RESIDUAL == 1) {
#pragma unroll
                    for (int i = 0; i < HELD; i++) v[i] += add[i];
                }
#pragma unroll
                for (int i = 0; i < HELD; i += 4) activate4<ACT>(v + i, ACT_A, ACT_B);
#pragma unroll
                for (int i = 0; i < HELD; i++) v[i] *= SCALE;
                if constexpr (RESIDUAL == 2) {
#pragma unroll
                    for (int i = 0; i < HELD; i++) v[i] += add[i];
#pragma unroll
                    for (int i = 0; i < HELD; i += 4) activate4<AFTER>(v + i, AFTER_A, AFTER_B);
                }
                OUT* to = (OUT*)conv.y + pixel * conv.y_pitch + channel;
                if (Y_WIDE && channel + HELD <= conv.channels) {
                    if constexpr (sizeof(OUT) == 2 && HELD == 8)
                        *(uint4*)to = make_uint4(pack<OUT>(v[0], v[1]), pack<OUT>(v[2], v[3]),
                                                 pack<OUT>(v[4], v[5]), pack<OUT>(v[6], v[7]));
                    else if constexpr (sizeof(OUT) == 2)
                        *(uint2*)to = make_uint2(pack<OUT>(v[0], v[1]), pack<OUT>(v[2], v[3]));
                    else {
#pragma unroll
                        for (int i = 0; i < HELD; i += 4)
                            *(float4*)(to + i) = make_float4(v[i], v[i + 1], v[i + 2], v[i + 3]);
                    }
                } else {
#pragma unroll
                    for (int i = 0; i < HELD; i++)
                        if (channel + i < conv.channels) to[i] = from_float<OUT>(v[i]);
                }
            }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
conv(const __grid_constant__ Conv conv) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int wm = warp % WM, wn = warp / WM % WN, wk = warp / (WM * WN);
    int block_n = blockIdx.x / conv.workers, worker = blockIdx.x % conv.workers;
    const uint4* weights =
        conv.weights + (size_t)block_n * conv.chunks * (CHUNK_WEIGHTS / 16);
    u32 weights_at = shared_address(shared);
    u32 inputs_at = weights_at + (RESIDENT ? conv.chunks : STAGES) * CHUNK_WEIGHTS;

    int num_tiles = worker < conv.tiles ? (conv.tiles - worker - 1) / conv.workers + 1 : 0;
    int steps = num_tiles * conv.chunks;
    // Constants first: they may be read while the kernel before this one still runs.
    if constexpr (RESIDENT)
        load_weights(weights, weights_at, conv.chunks * CHUNK_WEIGHTS);
    else
        for (int step = 0; step < STAGES - 1 && step < steps; step++)
            load_weights(weights + step % conv.chunks * (CHUNK_WEIGHTS / 16),
                         weights_at + step * CHUNK_WEIGHTS, CHUNK_WEIGHTS);
    wait_for_inputs();

    int load_tile = worker, load_chunk = 0, load_stage = 0;
    Tile loading = tile_at(conv, load_tile);
    auto load_next = [&](bool with_weights) {
        load_input(conv, loading, load_chunk, inputs_at + load_stage * INPUT_BYTES);
        if (!RESIDENT && with_weights)
            load_weights(weights + load_chunk * (CHUNK_WEIGHTS / 16),
                         weights_at + load_stage * CHUNK_WEIGHTS, CHUNK_WEIGHTS);
        if (++load_stage == STAGES) load_stage = 0;
        if (++load_chunk == conv.chunks) {
            load_chunk = 0;
            load_tile += conv.workers;
            loading = tile_at(conv, load_tile);
        }
    };
    for (int step = 0; step < STAGES - 1; step++) {
        if (step < steps) load_next(false);
        commit_async();
    }

    // Where this thread reads the rows of its 16x16 matrices: pixel lane % 16, channels from 0 or 8.
    u32 rows_at[MI];
    int m0 = wm * MI * 16;
#pragma unroll
    for (int mi = 0; mi < MI; mi++) {
        int m = min(m0 + mi * 16 + lane % 16, TH * TW - 1);
        rows_at[mi] = (m / TW * SH * ROW + m % TW) * PIXEL_BYTES + lane / 16 * 16 +
                      wk * (KK / WK) * 32;
    }

    float sums[MI][NI][4];
    int tile_index = worker, chunk = 0, stage = 0;
    for (int step = 0; step < steps; step++) {
        if (chunk == 0) {
#pragma unroll
            for (int mi = 0; mi < MI; mi++)
#pragma unroll
                for (int ni = 0; ni < NI; ni++)
#pragma unroll
                    for (int i = 0; i < 4; i++) sums[mi][ni][i] = 0.0f;
        }
        if constexpr (STAGES == 1) {
            // One buffer: the tile before must have been read, then this one is awaited.
            __syncthreads();
            load_next(true);
            commit_async();
            wait_async<0>();
            __syncthreads();
        } else {
            wait_async<STAGES - 2>();
            __syncthreads();
            if (step + STAGES - 1 < steps) load_next(true);
            commit_async();
        }
        u32 input = inputs_at + stage * INPUT_BYTES;
        u32 fragments = weights_at + (RESIDENT ? chunk : stage) * CHUNK_WEIGHTS +
                        wn * (NI / 2) * 512 + lane * 16 + wk * (KK / WK) * (BN / 16) * 512;
#pragma unroll
        for (int ky = 0; ky < KH; ky++)
#pragma unroll
            for (int kx = 0; kx < KW; kx++)
#pragma unroll
                for (int kk = 0; kk < KK / WK; kk++) {
                    const int column = kx * DW;
                    const int offset = (ky * DH * ROW + column % SW * SIDE + column / SW) *
                                           PIXEL_BYTES + kk * 32;
                    const int tap = ((ky * KW + kx) * KK + kk) * (BN / 16) * 512;
                    u32 a[MI][4];
                    uint4 b[NI / 2];
#pragma unroll
                    for (int q = 0; q < NI / 2; q++)
                        b[q] = load_shared16(fragments + tap + q * 512);
#pragma unroll
                    for (int mi = 0; mi < MI; mi++)
                        load_matrices(a[mi], input + rows_at[mi] + offset);
#pragma unroll
                    for (int mi = 0; mi < MI; mi++)
#pragma unroll
                        for (int q = 0; q < NI / 2; q++) {
                            multiply<ELEMENT>(sums[mi][2 * q], a[mi], b[q].x, b[q].y);
                            multiply<ELEMENT>(sums[mi][2 * q + 1], a[mi], b[q].z, b[q].w);
                        }
                }
        if (++stage == STAGES) stage = 0;
        if (++chunk < conv.chunks) continue;
        chunk = 0;
        if constexpr (WK > 1) {
            // Warps that shared a product: all but the first hand over their sums, in order.
            float4* partial = (float4*)(shared + (RESIDENT ? conv.chunks : STAGES) * CHUNK_WEIGHTS +
                                        STAGES * INPUT_BYTES);
            __syncthreads();
            if (wk > 0)
#pragma unroll
                for (int mi = 0; mi < MI; mi++)
#pragma unroll
                    for (int ni = 0; ni < NI; ni++) {
                        int at = ((wk - 1) * MI * NI + mi * NI + ni) * WM * WN + wm + WM * wn;
                        partial[at * 32 + lane] =
                            make_float4(sums[mi][ni][0], sums[mi][ni][1], sums[mi][ni][2],
                                        sums[mi][ni][3]);
                    }
            __syncthreads();
            if (wk == 0)
#pragma unroll
                for (int k = 0; k < WK - 1; k++)
#pragma unroll
                    for (int mi = 0; mi < MI; mi++)
#pragma unroll
                        for (int ni = 0; ni < NI; ni++) {
                            int at = (k * MI * NI + mi * NI + ni) * WM * WN + wm + WM * wn;
                            float4 v = partial[at * 32 + lane];
                            sums[mi][ni][0] += v.x, sums[mi][ni][1] += v.y;
                            sums[mi][ni][2] += v.z, sums[mi][ni][3] += v.w;
                        }
        }
        // Not earlier: blocks that wait take room from those that work.
        if (step == steps - 1) let_next_start();
        if (wk == 0)
            finish(conv, tile_at(conv, tile_index), block_n * BN + wn * NI * 8, m0, sums);
        tile_index += conv.workers;
    }
}
