/* Vectors of floats as wide as the machine's registers, and how bfloat16 and float32 come into them and go out again.

Written with the vector types that GCC and clang share: right on every machine, fast where registers are wide. */

#pragma once

#include <stdint.h>
#include <string.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif

#define INLINE static inline __attribute__((always_inline))

typedef float vfloat __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t vint __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef uint32_t vuint __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef uint16_t vhalf __attribute__((vector_size(LANES * 2), aligned(2), may_alias));

enum dtype { FLOAT32 = 0, BFLOAT16 = 1 };

INLINE int64_t size_of(int dtype) { return dtype == FLOAT32 ? 4 : 2; }

INLINE vfloat splat(float number) { return (vfloat){0} + number; }

INLINE vfloat choose(vint mask, vfloat yes, vfloat no) { return (vfloat)((mask & (vint)yes) | (~mask & (vint)no)); }

/* A NaN in `x` stays, whatever the bound. */
INLINE vfloat at_least(vfloat bound, vfloat x) {
#if defined(__AVX512F__)
    return (vfloat)_mm512_max_ps((__m512)bound, (__m512)x);
#else
    return choose(x < bound, bound, x);
#endif
}

INLINE vfloat at_most(vfloat bound, vfloat x) {
#if defined(__AVX512F__)
    return (vfloat)_mm512_min_ps((__m512)bound, (__m512)x);
#else
    return choose(x > bound, bound, x);
#endif
}

INLINE float sum_of(vfloat vector) {
    float total = 0;
    for (int lane = 0; lane < LANES; lane++) total += vector[lane];
    return total;
}

INLINE float largest_of(vfloat vector) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)vector);
#endif
    float largest = vector[0];
    for (int lane = 1; lane < LANES; lane++) largest = vector[lane] > largest ? vector[lane] : largest;
    return largest;
}

INLINE vfloat from_bfloat16(vhalf half) {
#if defined(__AVX512F__)
    return (vfloat)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)half), 16);
#else
    return (vfloat)(__builtin_convertvector(half, vuint) << 16);
#endif
}

/* To nearest, ties to even, as torch rounds; a NaN stays one. */
INLINE vhalf to_bfloat16(vfloat vector) {
#if defined(__AVX512BF16__)
    return (vhalf)_mm512_cvtneps_pbh((__m512)vector); /* and zero for what is below 1.2e-38 */
#else
    vuint bits = (vuint)vector;
    vuint rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    vuint is_nan = (vuint)(vector != vector);
    return __builtin_convertvector((rounded & ~is_nan) | (is_nan & 0x7fc0), vhalf);
#endif
}

/* What a store to memory and a load from it would leave of the number. */
INLINE vfloat rounded(vfloat vector, int dtype) {
    return dtype == FLOAT32 ? vector : from_bfloat16(to_bfloat16(vector));
}

INLINE const void *at(const void *base, int64_t index, int dtype) {
    return (const char *)base + index * size_of(dtype);
}

INLINE vfloat load(const void *base, int64_t index, int dtype) {
    const void *place = at(base, index, dtype);
    return dtype == FLOAT32 ? *(const vfloat *)place : from_bfloat16(*(const vhalf *)place);
}

INLINE void store(void *base, int64_t index, vfloat vector, int dtype) {
    void *place = (char *)base + index * size_of(dtype);
    if (dtype == FLOAT32)
        *(vfloat *)place = vector;
    else
        *(vhalf *)place = to_bfloat16(vector);
}

/* The first `count` lanes; the others are zero. */
INLINE vfloat load_part(const void *base, int64_t index, int64_t count, int dtype) {
    char buffer[LANES * 4] = {0};
    memcpy(buffer, at(base, index, dtype), count * size_of(dtype));
    return load(buffer, 0, dtype);
}

INLINE void store_part(void *base, int64_t index, int64_t count, vfloat vector, int dtype) {
    char buffer[LANES * 4];
    store(buffer, 0, vector, dtype);
    memcpy((char *)base + index * size_of(dtype), buffer, count * size_of(dtype));
}

INLINE vfloat load_some(const void *base, int64_t index, int64_t count, int dtype) {
    return count >= LANES ? load(base, index, dtype) : load_part(base, index, count, dtype);
}

INLINE void store_some(void *base, int64_t index, int64_t count, vfloat vector, int dtype) {
    if (count >= LANES)
        store(base, index, vector, dtype);
    else
        store_part(base, index, count, vector, dtype);
}

/* e to the power of x, to about one unit in the last place (Cephes' expf). x is kept within -87 and 88; NaN stays. */
INLINE vfloat exponential(vfloat x) {
    const float to_integer = 12582912.0f; /* 1.5 * 2**23: adding it leaves the nearest integer in the low bits */
    vfloat bounded = at_most(splat(88.0f), at_least(splat(-87.0f), x));
    vfloat shifted = bounded * 1.44269504088896341f + to_integer;
    vfloat whole = shifted - to_integer;
    vfloat rest = bounded - whole * 0.693359375f + whole * 2.12194440e-4f;
    vfloat series = rest * 1.9875691500e-4f + 1.3981999507e-3f;
    series = series * rest + 8.3334519073e-3f;
    series = series * rest + 4.1665795894e-2f;
    series = series * rest + 1.6666665459e-1f;
    series = series * rest + 5.0000001201e-1f;
    series = series * (rest * rest) + rest + 1.0f;
    vint power = ((vint)shifted - 0x4b400000 + 127) << 23;
    return series * (vfloat)power;
}

INLINE vfloat hyperbolic_tangent(vfloat x) { return 1.0f - 2.0f / (exponential(x + x) + 1.0f); }
