/* The arithmetic of a strip: a few columns of K/V under one KV head against the rows of queries that share it.

Keys are turned, so that a vector holds one dimension of several columns and no sum runs across a vector. Products of
blocks of rows stay in registers; the compiler unrolls them because their sizes are constants. */

#pragma once

#include "vectors.h"

enum {
    VECTORS = 32 / LANES,    /* of a strip */
    STRIP = VECTORS * LANES, /* columns */
    ROWS = 6,                /* of queries that one block of registers holds */
    OUTPUTS = 64 / LANES,    /* vectors of an output row that one block of registers holds */
};

/* The memory of one thread, cut up. Rows are queries: token by token, in it head by head. */
struct work {
    float *queries; /* (rows, key_dim) */
    float *keys;    /* (key_dim, STRIP) */
    float *values;  /* (STRIP, width) */
    float *scores;  /* (rows, STRIP) */
    float *sums;    /* (rows, width), width = value_dim rounded up to whole vectors */
    float *totals;  /* (rows, LANES): their sum is the row's sum of weights */
    float *largest; /* (rows,) */
    int64_t width;
};

#if defined(__AVX512F__)
/* 16 rows of 16 numbers of 32 bits, in place. */
INLINE void turn(__m512i rows[16]) {
    __m512i pairs[16], fours[16];
    for (int i = 0; i < 8; i++) {
        pairs[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 2; j++) {
            fours[4 * i + 2 * j] = _mm512_unpacklo_epi64(pairs[4 * i + j], pairs[4 * i + 2 + j]);
            fours[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(pairs[4 * i + j], pairs[4 * i + 2 + j]);
        }
    for (int j = 0; j < 4; j++) {
        __m512i low = _mm512_shuffle_i32x4(fours[j], fours[4 + j], 0x88);
        __m512i high = _mm512_shuffle_i32x4(fours[j], fours[4 + j], 0xdd);
        __m512i low_end = _mm512_shuffle_i32x4(fours[8 + j], fours[12 + j], 0x88);
        __m512i high_end = _mm512_shuffle_i32x4(fours[8 + j], fours[12 + j], 0xdd);
        rows[j] = _mm512_shuffle_i32x4(low, low_end, 0x88);
        rows[8 + j] = _mm512_shuffle_i32x4(low, low_end, 0xdd);
        rows[4 + j] = _mm512_shuffle_i32x4(high, high_end, 0x88);
        rows[12 + j] = _mm512_shuffle_i32x4(high, high_end, 0xdd);
    }
}

/* 64 bytes of each of 16 columns: 16 dimensions in float32, 32 in bfloat16. */
INLINE void turn_block(const char *const columns[LANES], int64_t offset, float *keys, int dtype) {
    __m512i rows[16];
    for (int i = 0; i < 16; i++) rows[i] = _mm512_loadu_si512(columns[i] + offset);
    turn(rows);
    for (int i = 0; i < 16; i++) {
        if (dtype == FLOAT32) {
            _mm512_storeu_si512(keys + i * STRIP, rows[i]);
        } else {
            _mm512_storeu_si512(keys + 2 * i * STRIP, _mm512_slli_epi32(rows[i], 16));
            _mm512_storeu_si512(keys + (2 * i + 1) * STRIP,
                                _mm512_and_si512(rows[i], _mm512_set1_epi32((int)0xffff0000u)));
        }
    }
}
#endif

INLINE float one_number(const char *place, int dtype) {
    uint32_t bits;
    uint16_t half;
    float number;
    if (dtype == FLOAT32) {
        memcpy(&number, place, 4);
        return number;
    }
    memcpy(&half, place, 2);
    bits = (uint32_t)half << 16;
    memcpy(&number, &bits, 4);
    return number;
}

/* keys[dimension][column] of up to LANES columns; those beyond `count` repeat the last one. */
INLINE void turn_keys(const char *column, int64_t distance, int64_t count, int64_t dim, float *keys, int dtype) {
    const char *columns[LANES];
    int64_t done = 0;
    for (int lane = 0; lane < LANES; lane++) columns[lane] = column + (lane < count ? lane : count - 1) * distance;
#if defined(__AVX512F__)
    int64_t step = dtype == FLOAT32 ? 16 : 32;
    for (; done + step <= dim; done += step) turn_block(columns, done * size_of(dtype), keys + done * STRIP, dtype);
#endif
    for (; done < dim; done++)
        for (int lane = 0; lane < LANES; lane++)
            keys[done * STRIP + lane] = one_number(columns[lane] + done * size_of(dtype), dtype);
}

/* Lines that will be wanted next, so that memory sends them while sums are made: `count` columns, `distance` bytes apart.
   A line per turn of a loop: many at once would stop the processor until memory had sent most of them. */
struct ahead {
    const char *lines;
    int64_t distance, count;
};

/* The part of a column's line that begins at `byte`, `bytes` long. */
INLINE void fetch_column(const struct ahead *ahead, int64_t column, int64_t byte, int64_t bytes) {
    if (column >= ahead->count) return;
    const char *line = ahead->lines + column * ahead->distance + byte;
    for (int64_t done = 0; done < bytes; done += 64) __builtin_prefetch(line + done, 0, 2);
}

/* Values of a strip: a line per column, `distance` numbers apart. */
struct lines {
    const void *base;
    int64_t distance, count;
    int dtype;
};

/* In float32 and whole vectors, side by side: worth it where several blocks of rows read them, or vectors are cut. */
INLINE void spread_values(struct lines *values, int64_t dim, const struct work *work, int dtype) {
    for (int64_t index = 0; index < values->count; index++)
        for (int64_t at_dim = 0; at_dim < dim; at_dim += LANES)
            *(vfloat *)(work->values + index * work->width + at_dim) =
                load_some(values->base, index * values->distance + at_dim, dim - at_dim, dtype);
    values->base = work->values;
    values->distance = work->width;
    values->dtype = FLOAT32;
}

/* scores[row][column] = queries[row] . keys[column], for constant `rows` and `vectors` of columns. */
INLINE void score_block(const float *queries, int64_t dim, const float *keys, float *scores, const struct ahead *ahead,
                        int64_t key_bytes, const int rows, const int vectors) {
    int64_t step = dim < STRIP ? 1 : dim / STRIP;
    vfloat sums[ROWS][VECTORS];
    for (int row = 0; row < rows; row++)
        for (int vector = 0; vector < vectors; vector++) sums[row][vector] = (vfloat){0};
    for (int64_t column = 0, index = 0; index < dim; column++) {
        fetch_column(ahead, column, 0, key_bytes);
        for (int64_t end = index + step < dim ? index + step : dim; index < end; index++) {
            vfloat columns[VECTORS];
            for (int vector = 0; vector < vectors; vector++)
                columns[vector] = *(const vfloat *)(keys + index * STRIP + vector * LANES);
            for (int row = 0; row < rows; row++)
                for (int vector = 0; vector < vectors; vector++)
                    sums[row][vector] += columns[vector] * queries[row * dim + index];
        }
    }
    for (int row = 0; row < rows; row++)
        for (int vector = 0; vector < vectors; vector++)
            *(vfloat *)(scores + row * STRIP + vector * LANES) = sums[row][vector];
}

/* sums[row] = sums[row] * factors[row] + weights[row] . values, for constant `rows` and `vectors` of dimensions. */
INLINE void sum_block(const float *weights, const float *factors, const struct lines *values, const int dtype,
                      int64_t dim, float *sums, int64_t width, const struct ahead *ahead, int64_t value_size,
                      const int rows, const int vectors) {
    vfloat registers[ROWS][OUTPUTS];
    for (int row = 0; row < rows; row++)
        for (int vector = 0; vector < vectors; vector++)
            registers[row][vector] = *(vfloat *)(sums + row * width + vector * LANES) * factors[row];
    for (int64_t index = 0; index < values->count; index++) {
        fetch_column(ahead, index, dim * value_size, vectors * LANES * value_size);
        vfloat line[OUTPUTS];
        for (int vector = 0; vector < vectors; vector++)
            line[vector] = load(values->base, index * values->distance + dim + vector * LANES, dtype);
        for (int row = 0; row < rows; row++)
            for (int vector = 0; vector < vectors; vector++)
                registers[row][vector] += line[vector] * weights[row * STRIP + index];
    }
    for (int row = 0; row < rows; row++)
        for (int vector = 0; vector < vectors; vector++)
            *(vfloat *)(sums + row * width + vector * LANES) = registers[row][vector];
}

#define EACH_ROW_COUNT(rows, CALL) \
    switch (rows) {                \
        case 1: CALL(1); break;    \
        case 2: CALL(2); break;    \
        case 3: CALL(3); break;    \
        case 4: CALL(4); break;    \
        case 5: CALL(5); break;    \
        default: CALL(6); break;   \
    }

static void score_rows(const struct work *work, int64_t row, int64_t rows, int64_t dim, int64_t count,
                       const struct ahead *ahead, int64_t key_bytes) {
    const float *queries = work->queries + row * dim;
    float *scores = work->scores + row * STRIP;
    if (count > LANES) {
#define SCORE(number) score_block(queries, dim, work->keys, scores, ahead, key_bytes, number, VECTORS)
        EACH_ROW_COUNT(rows, SCORE)
#undef SCORE
    } else {
#define SCORE(number) score_block(queries, dim, work->keys, scores, ahead, key_bytes, number, 1)
        EACH_ROW_COUNT(rows, SCORE)
#undef SCORE
    }
}

INLINE void sum_rows_of(const struct work *work, int64_t row, int64_t rows, const float *factors,
                        const struct lines *values, const struct ahead *ahead, int64_t value_size, const int dtype) {
    const float *weights = work->scores + row * STRIP;
    for (int64_t dim = 0; dim < work->width;) {
        float *sums = work->sums + row * work->width + dim;
        if (work->width - dim >= OUTPUTS * LANES) {
#define SUM(number) sum_block(weights, factors, values, dtype, dim, sums, work->width, ahead, value_size, number, OUTPUTS)
            EACH_ROW_COUNT(rows, SUM)
#undef SUM
            dim += OUTPUTS * LANES;
        } else {
#define SUM(number) sum_block(weights, factors, values, dtype, dim, sums, work->width, ahead, value_size, number, 1)
            EACH_ROW_COUNT(rows, SUM)
#undef SUM
            dim += LANES;
        }
    }
}

static void sum_rows(const struct work *work, int64_t row, int64_t rows, const float *factors,
                     const struct lines *values, const struct ahead *ahead, int64_t value_size) {
    if (values->dtype == FLOAT32)
        sum_rows_of(work, row, rows, factors, values, ahead, value_size, FLOAT32);
    else
        sum_rows_of(work, row, rows, factors, values, ahead, value_size, BFLOAT16);
}
