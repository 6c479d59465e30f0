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
// With USE_WGMMA (Hopper) four warps issue one product of 64 rows together. Its left side comes from
// registers, read like above; its right side is read by the matrix units from shared memory, where
// weights lie in 8x8 tiles (conv.py: pack_tiles). It runs while the next rows are read.
//
// 8-bit pictures (EIGHT) are moved two codes at a time, as if they were halves of half as many
// channels, and so are their weights: a product 32 codes deep takes the same bytes in the same
// places. Sums of whole numbers are whole; they begin with the bits of 1.5 * 2^23 where they cannot
// leave its binade, which makes a float of them by a subtraction.
//
// Pictures of eight channels (16 codes) have pixels of 16 bytes, without a gap, and a product takes
// two taps of the kernel: the first half of a warp reads rows at the one, the second at the other.
//
// The blocks are persistent: with RESIDENT weights, a block keeps them for all of its tiles. Loads
// run STAGES - 1 chunks ahead, over tile borders.

#if USE_WGMMA
// What this thread wrote to shared memory, for the matrix units to read behind the next barrier.
__device__ __forceinline__ void show_matrix_units() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ __forceinline__ void order_products() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void commit_products() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int PENDING> __device__ __forceinline__ void wait_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}
// Describes 8x8 tiles without swizzle: 128 bytes to the next eight columns, `depth` to the next
// eight rows of depth.
__device__ __forceinline__ u64 tiles_of(u32 address, u32 depth) {
    return (u64)(address >> 4 & 0x3fff) | (u64)(depth >> 4) << 16 | (u64)(128 >> 4) << 32;
}
#else
__device__ __forceinline__ void show_matrix_units() {}
#endif

struct Conv {
    const ELEMENT* x;
    const ELEMENT* second;
    const uint4* weights;
    const float* bias;
    const RES* residual;
    OUT* y;
    const float* gains;
    const float* inverses;
};
#if EIGHT
#define MULTIPLY multiply_codes
#else
#define MULTIPLY multiply<ELEMENT>
#endif
__device__ __forceinline__ float as_sum(float v) { return v; }
// What small sums have too much (WHOLE) is taken off in the bias.
__device__ __forceinline__ float as_sum(int v) { return IS_SMALL ? __int_as_float(v) : (float)v; }
// To codes, SiLU takes half of its argument: then gain and bias are halves, too.
#define HALVED (EIGHT && ACT == SILU && RESIDUAL != 1 && sizeof(OUT) == 1)

#define IH ((TH - 1) * SH + (KH - 1) * DH + 1)
#define IW ((TW - 1) * SW + (KW - 1) * DW + 1)
#define SIDE ((IW + SW - 1) / SW)
#define ROW (SIDE * SW)
#define FOLD (CC == 8)
#define PIXEL_BYTES (FOLD ? 16 : CC * 2 + 16)
#define INPUT_BYTES (IH * ROW * PIXEL_BYTES)
#define TAPS (KH * KW)
#define KK (FOLD ? 1 : CC / 16)
// Products of a warp per chunk, one after another.
#define DEPTHS (FOLD ? (TAPS + 1) / 2 : TAPS * (KK / WK))
#define CHUNK_WEIGHTS (DEPTHS * WK * (BN / 16) * 512)
#define THREADS (WM * WN * WK * 32)
#define GROUP (NI % 4 == 0 ? 4 : 2)
#define NUM_GROUPS (NI / GROUP)
#define HELD (2 * GROUP)
#define FIRST_CHUNKS ((X_CHANNELS + CC - 1) / CC)
#define CHUNKS (FIRST_CHUNKS + (SECOND_CHANNELS + CC - 1) / CC)
#define TILES_X ((OUT_W + TW - 1) / TW)
#define TILES_Y ((OUT_H + TH - 1) / TH)
#define TILES (NUM * TILES_Y * TILES_X)

// Rows of a warp's matrices: where the first begins, and from one to the next.
#if USE_WGMMA
#define FIRST_ROW (wm / 4 * MI * 64 + wm % 4 * 16)
#define NEXT_ROW 64
#else
#define FIRST_ROW (wm * MI * 16)
#define NEXT_ROW 16
#endif

// Shared memory: weights (of all chunks, or one per stage), then inputs per stage, then partial
// sums of the warps that share a tile's products.
extern __shared__ __align__(16) u8 shared[];

// Where a tap of the kernel reads, from where the first one does.
__device__ __forceinline__ constexpr int tap_offset(int tap) {
    const int column = tap % KW * DW, row = tap / KW * DH;
    return (row * ROW + column % SW * SIDE + column / SW) * PIXEL_BYTES;
}

struct Tile { int n, y0, x0; };

__device__ __forceinline__ Tile tile_at(int index) {
    int row = index / TILES_X;
    int n = row / TILES_Y;
    return {n, (row - n * TILES_Y) * TH, (index - row * TILES_X) * TW};
}

template <bool IS_SECOND>
__device__ __forceinline__ void load_operand(const ELEMENT* base, Tile tile, int chunk, u32 to) {
    constexpr int PITCH = IS_SECOND ? SECOND_PITCH : X_PITCH;
    constexpr int DEEP = IS_SECOND ? SECOND_CHANNELS : X_CHANNELS;
    constexpr i64 IMAGE = IS_SECOND ? SECOND_IMAGE : X_IMAGE;
    constexpr bool UP = IS_SECOND ? SECOND_UP : X_UP;
    constexpr int FROM_W = UP ? IN_W / 2 : IN_W;
    constexpr int PIECES = CC * 2 / VEC, LINE = IW * PIECES;
    // A thread keeps its column and goes down the rows, LINES rows at a time, where a row has
    // fewer pieces than the block has threads.
    constexpr int LINES = LINE < THREADS ? THREADS / LINE : 1;
    const int y0 = tile.y0 * SH - PT, x0 = tile.x0 * SW - PL;
    int first = LINE < THREADS ? threadIdx.x % LINE : threadIdx.x;
    int iy0 = LINE < THREADS ? threadIdx.x / LINE : 0;
    if (LINES * LINE < THREADS && iy0 >= LINES) return;
#pragma unroll
    for (int i = first; i < LINE; i += THREADS) {
        int ix = i / PIECES, piece = i % PIECES;
        int gx = x0 + ix, c = chunk * CC + piece * (VEC / 2);
        int valid = DEEP % CC == 0 ? VEC : min(max((DEEP - c) * 2, 0), VEC);
        if ((unsigned)gx >= (unsigned)IN_W) valid = 0;
        int place = SW == 1 ? ix : ix % SW * SIDE + ix / SW;
        u32 target = to + (iy0 * ROW + place) * PIXEL_BYTES + piece * VEC;
        // Only dereferenced where it is valid.
        const ELEMENT* from =
            base + tile.n * IMAGE + (UP ? gx >> 1 : gx) * PITCH + c;
        if constexpr (!UP) from += (i64)(y0 + iy0) * FROM_W * PITCH;
#pragma unroll 4
        for (int iy = iy0; iy < IH; iy += LINES) {
            int gy = y0 + iy;
            int bytes = (unsigned)gy < (unsigned)IN_H ? valid : 0;
            const ELEMENT* at = UP ? from + (i64)(gy >> 1) * FROM_W * PITCH : from;
            if constexpr (VEC >= 4)
                copy_async<VEC>(target, bytes ? at : base, bytes);
            else {
                u16 value = bytes ? *(const u16*)at : 0;
                asm volatile("st.shared.u16 [%0], %1;" ::"r"(target), "h"(value) : "memory");
            }
            if constexpr (!UP) from += (i64)LINES * FROM_W * PITCH;
            target += LINES * ROW * PIXEL_BYTES;
        }
    }
}

__device__ __forceinline__ void load_input(const Conv& conv, Tile tile, int chunk, u32 to) {
    if (!HAS_SECOND || chunk < FIRST_CHUNKS)
        load_operand<false>(conv.x, tile, chunk, to);
    else
        load_operand<true>(conv.second, tile, chunk - FIRST_CHUNKS, to);
}

__device__ __forceinline__ void load_weights(const uint4* from, u32 to, int num_bytes) {
    for (int i = threadIdx.x; i < num_bytes / 16; i += THREADS)
        copy_async<16>(to + i * 16, from + i, 16);
}

// Sums begin with the bias; bias is padded to whole blocks.
__device__ __forceinline__ void begin(const float* bias, bool has_bias, SUM (&sums)[MI][NI][4]) {
#if EIGHT
    const SUM first = IS_SMALL && has_bias ? __float_as_int(WHOLE) : 0;
#pragma unroll
    for (int mi = 0; mi < MI; mi++)
#pragma unroll
        for (int j = 0; j < NI; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) sums[mi][j][i] = first;
#else
#pragma unroll
    for (int group = 0; group < NUM_GROUPS; group++) {
        float held[HELD] = {};
        if (WK == 1 || has_bias)
#pragma unroll
            for (int i = 0; i < HELD; i += 4) {
                float4 v = *(const float4*)(bias + group * GROUP * 8 + threadIdx.x % 4 * HELD + i);
                held[i] = v.x, held[i + 1] = v.y, held[i + 2] = v.z, held[i + 3] = v.w;
            }
#pragma unroll
        for (int mi = 0; mi < MI; mi++)
#pragma unroll
            for (int j = 0; j < GROUP; j++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    sums[mi][group * GROUP + j][i] = held[2 * j + i % 2];
    }
#endif
}

// Codes of a residual are few words: they are asked for before a tile's last products.
#define AHEAD (RESIDUAL && sizeof(RES) == 1 && RES_WIDE && CHANNELS % BN == 0)
#define NUM_AHEAD (AHEAD ? MI * 2 * NUM_GROUPS * (HELD / 4) : 1)

__device__ __forceinline__ void ask_ahead(const Conv& conv, Tile tile, int channel0, int m0,
                                          u32 (&ahead)[NUM_AHEAD]) {
    int lane = threadIdx.x % 32;
    int first = tile.y0 * OUT_W + tile.x0;
#pragma unroll
    for (int group = 0; group < NUM_GROUPS; group++) {
        int channel = channel0 + group * GROUP * 8 + (lane % 4) * HELD;
#pragma unroll
        for (int mi = 0; mi < MI; mi++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int m = m0 + mi * NEXT_ROW + lane / 4 + half * 8;
                if (WM * MI * 16 != TH * TW && m >= TH * TW) continue;
                if (OUT_H % TH != 0 && tile.y0 + m / TW >= OUT_H) continue;
                if (OUT_W % TW != 0 && tile.x0 + m % TW >= OUT_W) continue;
                int pixel = first + m / TW * OUT_W + m % TW;
                const RES* from =
                    conv.residual + tile.n * RESIDUAL_IMAGE + pixel * RESIDUAL_PITCH + channel;
#pragma unroll
                for (int i = 0; i < HELD / 4; i++)
                    ahead[AHEAD ? ((group * MI + mi) * 2 + half) * (HELD / 4) + i : 0] =
                        *(const u32*)(from + 4 * i);
            }
    }
}

__device__ __forceinline__ void finish(const Conv& conv, Tile tile, int channel0, int m0,
                                       const u32 (&ahead)[NUM_AHEAD], SUM (&sums)[MI][NI][4]) {
    int lane = threadIdx.x % 32;
    int first = tile.y0 * OUT_W + tile.x0;
#pragma unroll
    for (int group = 0; group < NUM_GROUPS; group++) {
        int channel = channel0 + group * GROUP * 8 + (lane % 4) * HELD;
        if (CHANNELS % BN != 0 && channel >= CHANNELS) continue;
#if EIGHT
        float gain[HELD], bias[HELD];
#pragma unroll
        for (int i = 0; i < HELD; i += 4) {
            float4 g = *(const float4*)(conv.gains + channel + i);
            float4 b = *(const float4*)(conv.bias + channel + i);
            gain[i] = g.x, gain[i + 1] = g.y, gain[i + 2] = g.z, gain[i + 3] = g.w;
            bias[i] = b.x, bias[i + 1] = b.y, bias[i + 2] = b.z, bias[i + 3] = b.w;
        }
#endif
#pragma unroll
        for (int mi = 0; mi < MI; mi++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int m = m0 + mi * NEXT_ROW + lane / 4 + half * 8;
                if (WM * MI * 16 != TH * TW && m >= TH * TW) continue;
                if (OUT_H % TH != 0 && tile.y0 + m / TW >= OUT_H) continue;
                if (OUT_W % TW != 0 && tile.x0 + m % TW >= OUT_W) continue;
                float v[HELD];
#pragma unroll
                for (int j = 0; j < GROUP; j++) {
                    v[2 * j] = as_sum(sums[mi][group * GROUP + j][2 * half]);
                    v[2 * j + 1] = as_sum(sums[mi][group * GROUP + j][2 * half + 1]);
                }
#if EIGHT
#pragma unroll
                for (int i = 0; i < HELD; i++) v[i] = fmaf(v[i], gain[i], bias[i]);
#endif
                int pixel = first + m / TW * OUT_W + m % TW;
                float add[HELD];
                if constexpr (RESIDUAL) {
                    const RES* from =
                        conv.residual + tile.n * RESIDUAL_IMAGE + pixel * RESIDUAL_PITCH + channel;
                    if (RES_WIDE && channel + HELD <= CHANNELS) {
#pragma unroll
                        for (int i = 0; i < HELD; i += 4) {
                            if constexpr (AHEAD)
                                numbers<RES>(ahead[AHEAD ? ((group * MI + mi) * 2 + half) *
                                                               (HELD / 4) + i / 4 : 0], add + i);
                            else if constexpr (sizeof(RES) == 1)
                                numbers<RES>(*(const u32*)(from + i), add + i);
                            else {
                                uint2 pair = *(const uint2*)(from + i);
                                add[i] = unpack<RES>(pair.x, 0);
                                add[i + 1] = unpack<RES>(pair.x, 1);
                                add[i + 2] = unpack<RES>(pair.y, 0);
                                add[i + 3] = unpack<RES>(pair.y, 1);
                            }
                        }
                    } else {
#pragma unroll
                        for (int i = 0; i < HELD; i++)
                            add[i] = channel + i < CHANNELS ? to_float(from[i]) : 0.0f;
                    }
                    if constexpr (sizeof(RES) == 1)
#pragma unroll
                        for (int i = 0; i < HELD; i++) add[i] *= RES_SCALE;
                }
                if constexpr (RESIDUAL == 1) {
#pragma unroll
                    for (int i = 0; i < HELD; i++) v[i] += add[i];
                }
#pragma unroll
                for (int i = 0; i < HELD; i += 4)
                    if constexpr (HALVED) {
#pragma unroll
                        for (int j = i; j < i + 4; j++) v[j] = silu_of_half(v[j]);
                    } else
                        activate4<ACT>(v + i, ACT_A, ACT_B);
#pragma unroll
                for (int i = 0; i < HELD; i++) v[i] *= SCALE;
                if constexpr (RESIDUAL == 2) {
#pragma unroll
                    for (int i = 0; i < HELD; i++) v[i] += add[i];
#pragma unroll
                    for (int i = 0; i < HELD; i += 4) activate4<AFTER>(v + i, AFTER_A, AFTER_B);
                }
                OUT* to = conv.y + tile.n * Y_IMAGE + pixel * Y_PITCH + channel;
                if constexpr (sizeof(OUT) == 1) {
                    u32 word[HELD / 4];
#if Y_APART
#pragma unroll
                    for (int i = 0; i < HELD; i++) v[i] *= conv.inverses[channel + i];
#endif
#pragma unroll
                    for (int i = 0; i < HELD; i += 4) word[i / 4] = codes<OUT>(v + i, Y_INVERSE);
                    if (Y_WIDE && channel + HELD <= CHANNELS) {
                        if constexpr (HELD == 8)
                            *(uint2*)to = make_uint2(word[0], word[HELD / 4 - 1]);
                        else
                            *(u32*)to = word[0];
                    } else {
#pragma unroll
                        for (int i = 0; i < HELD; i++)
                            if (channel + i < CHANNELS) ((u8*)to)[i] = word[i / 4] >> i % 4 * 8;
                    }
                } else if (Y_WIDE && channel + HELD <= CHANNELS) {
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
                        if (channel + i < CHANNELS) to[i] = from_float<OUT>(v[i]);
                }
            }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
conv(const __grid_constant__ Conv conv) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int wm = warp % WM, wn = warp / WM % WN, wk = warp / (WM * WN);
    int block_n = blockIdx.x / WORKERS, worker = blockIdx.x % WORKERS;
    const uint4* weights = conv.weights + (i64)block_n * CHUNKS * (CHUNK_WEIGHTS / 16);
    u32 weights_at = shared_address(shared);
    u32 inputs_at = weights_at + (RESIDENT ? CHUNKS : STAGES) * CHUNK_WEIGHTS;

    const int num_tiles = (TILES - worker - 1) / WORKERS + 1;
    const int steps = num_tiles * CHUNKS;
    // Constants first: they may be read while the kernel before this one still runs.
    if constexpr (RESIDENT)
        load_weights(weights, weights_at, CHUNKS * CHUNK_WEIGHTS);
    else
        for (int step = 0; step < STAGES - 1 && step < steps; step++)
            load_weights(weights + step % CHUNKS * (CHUNK_WEIGHTS / 16),
                         weights_at + step * CHUNK_WEIGHTS, CHUNK_WEIGHTS);
    wait_for_inputs();

    int load_tile = worker, load_chunk = 0, load_stage = 0;
    Tile loading = tile_at(load_tile);
    auto load_next = [&](bool with_weights) {
        load_input(conv, loading, load_chunk, inputs_at + load_stage * INPUT_BYTES);
        if (!RESIDENT && with_weights)
            load_weights(weights + load_chunk * (CHUNK_WEIGHTS / 16),
                         weights_at + load_stage * CHUNK_WEIGHTS, CHUNK_WEIGHTS);
        if (++load_stage == STAGES) load_stage = 0;
        if (++load_chunk == CHUNKS) {
            load_chunk = 0;
            load_tile += WORKERS;
            loading = tile_at(load_tile);
        }
    };
    for (int step = 0; step < STAGES - 1; step++) {
        if (step < steps) load_next(false);
        commit_async();
    }

    // Where this thread reads the rows of its 16x16 matrices: pixel lane % 16, channels from 0 or 8.
    u32 rows_at[MI];
    int m0 = FIRST_ROW;
#pragma unroll
    for (int mi = 0; mi < MI; mi++) {
        int m = min(m0 + mi * NEXT_ROW + lane % 16, TH * TW - 1);
        rows_at[mi] = (m / TW * SH * ROW + m % TW) * PIXEL_BYTES +
                      (FOLD ? 0 : lane / 16 * 16) + wk * (KK / WK) * 32;
    }
    int folded[FOLD ? DEPTHS : 1];
    if constexpr (FOLD)
#pragma unroll
        for (int k = 0; k < DEPTHS; k++)
            folded[k] = tap_offset(min(lane < 16 ? 2 * k : 2 * k + 1, TAPS - 1));

    SUM sums[MI][NI][4];
    u32 ahead[NUM_AHEAD];
    int tile_index = worker, chunk = 0, stage = 0;
    for (int step = 0; step < steps; step++) {
        if (chunk == 0) begin(conv.bias + block_n * BN + wn * NI * 8, wk == 0, sums);
        if constexpr (STAGES == 1) {
            // One buffer: the tile before must have been read, then this one is awaited.
            __syncthreads();
            load_next(true);
            commit_async();
            wait_async<0>();
            if (USE_WGMMA) show_matrix_units();
            __syncthreads();
        } else {
            wait_async<STAGES - 2>();
            if (USE_WGMMA) show_matrix_units();
            __syncthreads();
            if (step + STAGES - 1 < steps) load_next(true);
            commit_async();
        }
        if (AHEAD && chunk == CHUNKS - 1 && wk == 0)
            ask_ahead(conv, tile_at(tile_index), block_n * BN + wn * NI * 8, m0, ahead);
        u32 input = inputs_at + stage * INPUT_BYTES;
        u32 chunk_weights = weights_at + (RESIDENT ? chunk : stage) * CHUNK_WEIGHTS;
#if USE_WGMMA
        // Two sets of rows: one is read while the other is multiplied.
        u32 a[2][MI][4];
        u64 tiles = tiles_of(chunk_weights + wn * NI * 128, BN * 16);
        order_products();
#pragma unroll
        for (int k = 0; k < DEPTHS; k++) {
            const int offset = FOLD ? folded[FOLD ? k : 0] : tap_offset(k / KK) + k % KK * 32;
            if (k >= 2) wait_products<1>();
#pragma unroll
            for (int mi = 0; mi < MI; mi++)
                load_matrices(a[k % 2][mi], input + rows_at[mi] + offset);
            if (FOLD && TAPS % 2 == 1 && k == DEPTHS - 1)
#pragma unroll
                for (int mi = 0; mi < MI; mi++) a[k % 2][mi][2] = a[k % 2][mi][3] = 0;
            order_products();
#pragma unroll
            for (int mi = 0; mi < MI; mi++)
                multiply_tiles(sums[mi], a[k % 2][mi], tiles + k * (BN * 32 / 16));
            commit_products();
        }
        wait_products<0>();
#else
        u32 fragments = chunk_weights +
                        wn * (NI / 2) * 512 + lane * 16 + wk * (KK / WK) * (BN / 16) * 512;
#pragma unroll
        for (int k = 0; k < DEPTHS; k++) {
            const int tap = k / (KK / WK), kk = k % (KK / WK);
            const int offset = FOLD ? folded[FOLD ? k : 0] : tap_offset(tap) + kk * 32;
            const int from = (tap * KK + kk) * (BN / 16) * 512;
            u32 a[MI][4];
            uint4 b[NI / 2];
#pragma unroll
            for (int q = 0; q < NI / 2; q++) b[q] = load_shared16(fragments + from + q * 512);
#pragma unroll
            for (int mi = 0; mi < MI; mi++)
                load_matrices(a[mi], input + rows_at[mi] + offset);
            if (FOLD && TAPS % 2 == 1 && k == DEPTHS - 1)
#pragma unroll
                for (int mi = 0; mi < MI; mi++) a[mi][2] = a[mi][3] = 0;
#pragma unroll
            for (int mi = 0; mi < MI; mi++)
#pragma unroll
                for (int q = 0; q < NI / 2; q++) {
                    MULTIPLY(sums[mi][2 * q], a[mi], b[q].x, b[q].y);
                    MULTIPLY(sums[mi][2 * q + 1], a[mi], b[q].z, b[q].w);
                }
        }
#endif
        if (++stage == STAGES) stage = 0;
        if (++chunk < CHUNKS) continue;
        chunk = 0;
        if constexpr (WK > 1) {
            // Warps that shared a product: all but the first hand over their sums, in order.
            SUM4* partial = (SUM4*)(shared + (RESIDENT ? CHUNKS : STAGES) * CHUNK_WEIGHTS +
                                        STAGES * INPUT_BYTES);
            __syncthreads();
            if (wk > 0)
#pragma unroll
                for (int mi = 0; mi < MI; mi++)
#pragma unroll
                    for (int ni = 0; ni < NI; ni++) {
                        int at = ((wk - 1) * MI * NI + mi * NI + ni) * WM * WN + wm + WM * wn;
                        partial[at * 32 + lane] =
                            {sums[mi][ni][0], sums[mi][ni][1], sums[mi][ni][2],
                             sums[mi][ni][3]};
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
                            SUM4 v = partial[at * 32 + lane];
                            sums[mi][ni][0] += v.x, sums[mi][ni][1] += v.y;
                            sums[mi][ni][2] += v.z, sums[mi][ni][3] += v.w;
                        }
        }
        // Not earlier: blocks that wait take room from those that work.
        if (step == steps - 1) let_next_start();
        if (wk == 0)
            finish(conv, tile_at(tile_index), block_n * BN + wn * NI * 8, m0, ahead, sums);
        tile_index += WORKERS;
    }
}
