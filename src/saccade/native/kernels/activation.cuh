// Functions of one value; ops.Activation says what each means. NaN stays NaN in all of them.

enum {
    NONE, RELU, CLIP, LEAKY_RELU, SILU, SIGMOID, HARD_SIGMOID, HARD_SWISH,
    GELU, GELU_TANH, TANH, ELU, SOFTPLUS, MISH
};

__device__ __forceinline__ float maximum(float a, float b) {
    float out;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(out) : "f"(a), "f"(b));
    return out;
}
__device__ __forceinline__ float minimum(float a, float b) {
    float out;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(out) : "f"(a), "f"(b));
    return out;
}
__device__ __forceinline__ float exp2_fast(float x) {
    float out;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
    return out;
}
__device__ __forceinline__ float inverse_fast(float x) {
    float out;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
    return out;
}
__device__ __forceinline__ float sigmoid(float x) {
    return inverse_fast(1.0f + exp2_fast(x * -1.44269504f));
}

template <int KIND> __device__ __forceinline__ float activate(float x, float a, float b) {
    if constexpr (KIND == RELU) return maximum(x, 0.0f);
    if constexpr (KIND == CLIP) return minimum(maximum(x, a), b);
    if constexpr (KIND == LEAKY_RELU) return x < 0.0f ? a * x : x;
    // exp2 is infinite for x < -88: then x * 0, which is right, but -inf * 0 must not be NaN.
    if constexpr (KIND == SILU) return maximum(x, -1e30f) * sigmoid(x);
    if constexpr (KIND == SIGMOID) return sigmoid(x);
    if constexpr (KIND == HARD_SIGMOID) return minimum(maximum(fmaf(a, x, b), 0.0f), 1.0f);
    if constexpr (KIND == HARD_SWISH)
        return maximum(x, -1e30f) * minimum(maximum(fmaf(x, 1.0f / 6.0f, 0.5f), 0.0f), 1.0f);
    if constexpr (KIND == GELU) return 0.5f * x * (1.0f + erff(x * 0.70710678f));
    if constexpr (KIND == GELU_TANH)
        return 0.5f * x * (1.0f + tanhf(0.79788456f * fmaf(0.044715f * x * x, x, x)));
    if constexpr (KIND == TANH) return tanhf(x);
    if constexpr (KIND == ELU) return x < 0.0f ? a * expm1f(x) : x;
    if constexpr (KIND == SOFTPLUS)
        return maximum(x, 0.0f) + log1pf(exp2_fast(-fabsf(x) * 1.44269504f));
    if constexpr (KIND == MISH)
        return x * tanhf(maximum(x, 0.0f) + log1pf(exp2_fast(-fabsf(x) * 1.44269504f)));
    return x;
}

// Four values at once. The special function unit bounds few-channel layers, so SiLU takes one
// reciprocal for four: 1/a = bcd / abcd. Below -21 its value rounds to zero in FP16; there the
// argument is held, so that no product overflows.
template <int KIND> __device__ __forceinline__ void activate4(float* v, float a, float b) {
    if constexpr (KIND == SILU || KIND == SIGMOID) {
        float held[4], e[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            held[i] = maximum(v[i], -21.0f);
            e[i] = 1.0f + exp2_fast(held[i] * -1.44269504f);
        }
        float ab = e[0] * e[1], cd = e[2] * e[3];
        float r = inverse_fast(ab * cd);
        float rab = r * cd, rcd = r * ab;
        float s[4] = {rab * e[1], rab * e[0], rcd * e[3], rcd * e[2]};
#pragma unroll
        for (int i = 0; i < 4; i++) v[i] = KIND == SILU ? held[i] * s[i] : s[i];
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++) v[i] = activate<KIND>(v[i], a, b);
    }
}

// SiLU where the result is rounded to 8-bit codes: x/2 + x/2 tanh(x/2), of half the argument. The
// hardware's tanh is good to 2^-11 of its value.
__device__ __forceinline__ float silu_of_half(float half) {
    float t;
    asm("tanh.approx.f32 %0, %1;" : "=f"(t) : "f"(half));
    return fmaf(half, t, half);
}
