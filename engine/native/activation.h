/* Activations of gated layers, in float32. */

#pragma once

#include "vectors.h"

enum activation { SILU = 0, GELU_TANH = 1 };

INLINE vfloat activated(vfloat x, int activation) {
    if (activation == SILU) return x / (1.0f + exponential(-x));
    vfloat inner = (x + x * x * x * 0.044715f) * 0.7978845608028654f; /* sqrt(2 / pi) */
    return x / (1.0f + exponential(-2.0f * inner));                   /* (1 + tanh(inner)) / 2, without cancelling */
}
