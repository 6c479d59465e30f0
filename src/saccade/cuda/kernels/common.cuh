// Types and conversions without any of CUDA's headers: NVRTC comes without them.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

struct f16 { u16 bits; };
struct bf16 { u16 bits; };

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(f16 v) {
    float out;
    asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(v.bits));
    return out;
}
__device__ __forceinline__ float to_float(bf16 v) { return __uint_as_float((u32)v.bits << 16); }

template <typename T> __device__ __forceinline__ T from_float(float v);
template <> __device__ __forceinline__ float from_float<float>(float v) { return v; }
template <> __device__ __forceinline__ f16 from_float<f16>(float v) {
    f16 out;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(v));
    return out;
}
template <> __device__ __forceinline__ bf16 from_float<bf16>(float v) {
    bf16 out;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(v));
    return out;
}
template <> __device__ __forceinline__ u8 from_float<u8>(float v) {
    return (u8)fminf(fmaxf(rintf(v), 0.0f), 255.0f);
}

// One picture of a batch; prepare.py has the same layout as a NumPy dtype.
struct Picture {
    const u8* pixels;      // packed RGB, gray, or the luma plane
    const u8* chroma;      // NV12: the plane of U and V in turns
    double scale_xy[2];    // input pixels per source pixel
    double offset_xy[2];   // input pixels left of and above the picture
    float step_xy[2];      // source pixels per input pixel
    int pitch, chroma_pitch;  // bytes from row to row
    int width, height;     // of the source; width 0: nothing in this place of the batch
    int left, top, new_width, new_height;  // where it lies in the input
    int format;            // PACKED, GRAY or NV12
    int matrix;            // NV12: 0 BT.601 limited, 1 BT.709 limited, 2 BT.601 full range
};

enum { PACKED = 0, GRAY = 1, NV12 = 2 };
