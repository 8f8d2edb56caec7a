"""Triton kernels of elementwise layers: RMS norm and rotary embedding. They know pointers and numbers.

In a decode step every one of transformers' operations is a kernel of a few microseconds that moves a few kilobytes, and
norms and rotations are most of them. Sums and products are float32, and rounded where transformers' code rounds.
"""
# ruff: noqa: N803  # Triton's own style: what is known when a kernel is compiled is in capitals
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

import triton
import triton.language as tl


@triton.jit
def rms_norm_kernel(
    out, rows, weight, row_stride, epsilon,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, IS_OFFSET: tl.constexpr,
):  # fmt: skip
    """A program per row. IS_OFFSET: Gemma's norm, which multiplies by 1 + weight before it rounds."""
    row = tl.program_id(0).to(tl.int64)
    places = tl.arange(0, BLOCK)
    is_inside = places < WIDTH
    own = tl.load(rows + row * row_stride + places, mask=is_inside, other=0.0)
    values = own.to(tl.float32)
    normed = values * (1.0 / tl.sqrt(tl.sum(values * values, 0) / WIDTH + epsilon))
    factors = tl.load(weight + places, mask=is_inside, other=0.0).to(tl.float32)
    normed = normed if IS_OFFSET else normed.to(own.dtype).to(tl.float32)
    factors = factors + 1.0 if IS_OFFSET else factors
    tl.store(out + row * WIDTH + places, (normed * factors).to(own.dtype), mask=is_inside)


@triton.jit
def rotate_kernel(
    heads, cosines, sines, token_stride, head_stride, angle_stride, num_heads,
    HALF: tl.constexpr, BLOCK_HEADS: tl.constexpr, BLOCK_HALF: tl.constexpr,
):  # fmt: skip
    """A program per token turns the first 2 * HALF places of all its heads, in place."""
    token = tl.program_id(0).to(tl.int64)
    places = tl.arange(0, BLOCK_HALF)[None, :]
    numbers = tl.arange(0, BLOCK_HEADS)[:, None]
    mask = (numbers < num_heads) & (places < HALF)
    first_at = heads + token * token_stride + numbers * head_stride + places
    first = tl.load(first_at, mask=mask, other=0.0)
    second = tl.load(first_at + HALF, mask=mask, other=0.0)
    angle_at = token * angle_stride + places
    is_angle = places < HALF
    cosine, sine = tl.load(cosines + angle_at, mask=is_angle), tl.load(sines + angle_at, mask=is_angle)
    tl.store(first_at, _turned(first, cosine, second, sine, -1.0), mask=mask)
    cosine = tl.load(cosines + angle_at + HALF, mask=is_angle)
    sine = tl.load(sines + angle_at + HALF, mask=is_angle)
    tl.store(first_at + HALF, _turned(second, cosine, first, sine, 1.0), mask=mask)


@triton.jit
def _turned(own, cosine, other, sine, SIGN: tl.constexpr):
    """own * cosine + SIGN * other * sine, each product and the sum rounded."""
    left = (own.to(tl.float32) * cosine.to(tl.float32)).to(own.dtype)
    right = (SIGN * other.to(tl.float32) * sine.to(tl.float32)).to(own.dtype)
    return (left.to(tl.float32) + right.to(tl.float32)).to(own.dtype)
