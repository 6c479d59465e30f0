// What all kernels of the engine share. No header of CUDA's is needed: NVRTC comes without them.

typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;

struct f16 { u16 bits; };
struct bf16 { u16 bits; };
struct e4m3 { u8 bits; };

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(f16 v) {
    float out;
    asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(v.bits));
    return out;
}
__device__ __forceinline__ float to_float(bf16 v) { return __uint_as_float((u32)v.bits << 16); }
__device__ __forceinline__ float to_float(u8 v) { return v; }
__device__ __forceinline__ float to_float(i8 v) { return v; }
__device__ __forceinline__ float to_float(int v) { return v; }
__device__ __forceinline__ float to_float(i64 v) { return v; }
__device__ __forceinline__ float to_float(bool v) { return v; }

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
template <> __device__ __forceinline__ u8 from_float<u8>(float v) { return (u8)(int)v; }
template <> __device__ __forceinline__ i8 from_float<i8>(float v) { return (i8)(int)v; }
template <> __device__ __forceinline__ int from_float<int>(float v) { return (int)v; }
template <> __device__ __forceinline__ i64 from_float<i64>(float v) { return (i64)v; }
template <> __device__ __forceinline__ bool from_float<bool>(float v) { return v != 0; }

// Two values as one word, the first in the lower half.
template <typename T> __device__ __forceinline__ u32 pack(float low, float high);
template <> __device__ __forceinline__ u32 pack<f16>(float low, float high) {
    u32 out;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    return out;
}
template <> __device__ __forceinline__ u32 pack<bf16>(float low, float high) {
    u32 out;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    return out;
}
// Kernels whose results are FP32 or codes name it in code that they never reach.
template <> __device__ __forceinline__ u32 pack<float>(float, float) { return 0; }
template <> __device__ __forceinline__ u32 pack<i8>(float, float) { return 0; }
template <> __device__ __forceinline__ u32 pack<e4m3>(float, float) { return 0; }
template <> __device__ __forceinline__ e4m3 from_float<e4m3>(float) { return {0}; }
template <typename T> __device__ __forceinline__ float unpack(u32 pair, int which);
template <> __device__ __forceinline__ float unpack<f16>(u32 pair, int which) {
    return to_float(f16{(u16)(which ? pair >> 16 : pair)});
}
template <> __device__ __forceinline__ float unpack<bf16>(u32 pair, int which) {
    return __uint_as_float(which ? pair & 0xffff0000u : pair << 16);
}

#if __CUDA_ARCH__ >= 890
__device__ __forceinline__ float to_float(e4m3 v) {
    u32 pair;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(pair) : "h"((u16)v.bits));
    return unpack<f16>(pair, 0);
}
// Two values as e4m3, the first in the lower byte; what is too large becomes the largest.
__device__ __forceinline__ u32 pack_e4m3(float low, float high) {
    u16 out;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(out) : "f"(high), "f"(low));
    return out;
}
#endif

// Real values as 8-bit codes, halves to even, clipped: four as one word, the first lowest. Where
// 1.5 * 2^23 is added, the lowest bits of a float are a whole number.
#define WHOLE 12582912.0f
template <typename T> __device__ __forceinline__ u32 codes(const float* v, float inverse) {
    // The bits of floats are in the order of the floats, as long as these are positive.
    int b[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        b[i] = __float_as_int(fmaxf(fmaf(v[i], inverse, WHOLE), 0.0f)) - __float_as_int(WHOLE);
    u32 high, out;
    asm("cvt.pack.sat.s8.s32.b32 %0, %1, %2, 0;" : "=r"(high) : "r"(b[3]), "r"(b[2]));
    asm("cvt.pack.sat.s8.s32.b32 %0, %1, %2, %3;" : "=r"(out) : "r"(b[1]), "r"(b[0]), "r"(high));
    return out;
}
#if __CUDA_ARCH__ >= 890
template <> __device__ __forceinline__ u32 codes<e4m3>(const float* v, float inverse) {
    return pack_e4m3(v[0] * inverse, v[1] * inverse) |
           pack_e4m3(v[2] * inverse, v[3] * inverse) << 16;
}
#endif
// The numbers that four codes stand for, less their unit.
template <typename T> __device__ __forceinline__ void numbers(u32 word, float* v) {
#pragma unroll
    for (int i = 0; i < 4; i++)
        v[i] = __uint_as_float(__byte_perm(word ^ 0x80808080u, 0x4b000000u, 0x7540 + i)) -
               8388736.0f;
}
#if __CUDA_ARCH__ >= 890
template <> __device__ __forceinline__ void numbers<e4m3>(u32 word, float* v) {
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] = to_float(e4m3{(u8)(word >> 8 * i)});
}
#endif

template <> __device__ __forceinline__ float unpack<i8>(u32, int) { return 0; }
template <> __device__ __forceinline__ float unpack<e4m3>(u32, int) { return 0; }

// Kernels of a graph may start while the one before them ends: constants can be read at once, what
// other kernels wrote only after `wait_for_inputs`. Without that launch attribute both do nothing.
__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}
__device__ __forceinline__ void wait_for_inputs() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ u32 shared_address(const void* pointer) {
    return (u32)__cvta_generic_to_shared(pointer);
}

// Copies `valid` of BYTES bytes to shared memory behind the thread's back, and zeros for the rest.
template <int BYTES>
__device__ __forceinline__ void copy_async(u32 to, const void* from, int valid) {
    if constexpr (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                     "r"(valid)
                     : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from),
                     "n"(BYTES), "r"(valid)
                     : "memory");
}
__device__ __forceinline__ void commit_async() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int PENDING> __device__ __forceinline__ void wait_async() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

__device__ __forceinline__ void load_matrices(u32 (&a)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
                 : "r"(address)
                 : "memory");
}
__device__ __forceinline__ uint4 load_shared16(u32 address) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(address)
                 : "memory");
    return v;
}
__device__ __forceinline__ u32 load_shared4(u32 address) {
    u32 v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(address) : "memory");
    return v;
}

// c += a b: a is 16x16, b 16x8, sums in FP32.
template <typename T>
__device__ __forceinline__ void multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1);
template <>
__device__ __forceinline__ void multiply<f16>(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, "
                 "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ __forceinline__ void multiply<bf16>(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, "
                 "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The same on 8-bit codes, 32 deep: whole numbers give whole sums.
__device__ __forceinline__ void multiply_codes(int (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, "
                 "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#if __CUDA_ARCH__ >= 890
__device__ __forceinline__ void multiply_codes(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0,%1,%2,%3}, "
                 "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif
