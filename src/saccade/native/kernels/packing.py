"""Weights in the order in which kernels read them."""

from __future__ import annotations

import numpy as np

from saccade.native.kernels.tilings import Tiling

__all__ = ["as_bits", "folded", "pack_stem", "pack_tiles", "pack_weights", "permuted_channels"]


def permuted_channels(num_tiles: int) -> np.ndarray:
    """Channel of each column of a warp's 16x8 products.

    Threads hold columns 2t and 2t+1 of every product; numbered so, their channels lie side by side.

    Args:
        num_tiles: Products side by side (ni).

    Returns:
        (num_tiles, 8) int64.
    """
    group = 4 if num_tiles % 4 == 0 else 2
    tile, column = np.indices((num_tiles, 8))
    return tile // group * group * 8 + column // 2 * 2 * group + tile % group * 2 + column % 2


def pack_weights(
    weights: np.ndarray, first: int, tiling: Tiling, dtype: str = "float16"
) -> np.ndarray:
    """Weights in the order in which the kernel's threads hold them.

    Args:
        weights: (k, kh, kw, c) float32, or uint16 of bits.
        first: Channels of the first operand; the rest are of the second.
        tiling: Of the kernel.
        dtype: float16 or bfloat16.

    Returns:
        uint16, (blocks, chunks, taps, cc / 16, bn / 16, 32, 8): bits of the elements.
    """
    cut = _cut(weights, first, tiling)
    blocks, taps, chunks = len(cut), cut.shape[3], cut.shape[4]
    # Columns: pair q of products, which of them, column g. Rows k: half, thread t, which of two.
    cut = cut.reshape(
        blocks, tiling.wn, tiling.ni // 2, 2, 8, taps, chunks, tiling.cc // 16, 2, 4, 2
    )
    #       blocks chunk tap kk wn q  g  t  which half two
    order = (0, 6, 5, 7, 1, 2, 4, 9, 3, 8, 10)
    packed = np.ascontiguousarray(cut.transpose(order))
    return as_bits(packed, dtype).reshape(
        blocks, chunks, taps, tiling.cc // 16, tiling.bn // 16, 32, 8
    )


def pack_tiles(
    weights: np.ndarray, first: int, tiling: Tiling, dtype: str = "float16"
) -> np.ndarray:
    """Weights in 8x8 tiles as the matrix units read them from shared memory.

    Args:
        weights: (k, kh, kw, c) float32, or uint16 of bits.
        first: Channels of the first operand; the rest are of the second.
        tiling: Of the kernel.
        dtype: float16 or bfloat16.

    Returns:
        uint16, (blocks, chunks, taps, cc / 16, 2, bn / 8, 8, 8): bits of the elements.
    """
    cut = _cut(weights, first, tiling)
    blocks, taps, chunks = len(cut), cut.shape[3], cut.shape[4]
    cut = cut.reshape(blocks, tiling.wn, tiling.ni, 8, taps, chunks, tiling.cc // 16, 2, 8)
    #       blocks chunk tap kk half wn ni column depth
    packed = np.ascontiguousarray(cut.transpose(0, 5, 4, 6, 7, 1, 2, 3, 8))
    return as_bits(packed, dtype).reshape(
        blocks, chunks, taps, tiling.cc // 16, 2, tiling.bn // 8, 8, 8
    )


def folded(weights: np.ndarray) -> np.ndarray:
    """Weights of eight channels with taps in twos: (k, kh, kw, 8) as (k, 1, taps / 2, 16)."""
    taps = weights.reshape(len(weights), -1, 8)
    taps = np.pad(taps, ((0, 0), (0, taps.shape[1] % 2), (0, 0)))
    return taps.reshape(len(weights), 1, -1, 16)


def _cut(weights: np.ndarray, first: int, tiling: Tiling) -> np.ndarray:
    """(blocks, wn, ni * 8, taps, chunks, cc / 16, 16): padded, columns as threads hold them."""
    num, kh, kw, _ = weights.shape
    parts = [weights[..., :first], weights[..., first:]]
    padded = []
    for part in parts:
        if part.shape[-1]:
            spare = -part.shape[-1] % tiling.cc
            padded.append(np.pad(part, ((0, 0), (0, 0), (0, 0), (0, spare))))
    whole = np.concatenate(padded, axis=-1)
    blocks = -(-num // tiling.bn)
    whole = np.pad(whole, ((0, blocks * tiling.bn - num), (0, 0), (0, 0), (0, 0)))
    chunks = whole.shape[-1] // tiling.cc
    cut = whole.reshape(blocks, tiling.wn, tiling.ni * 8, kh * kw, chunks, tiling.cc // 16, 16)
    return cut[:, :, permuted_channels(tiling.ni).reshape(-1)]


def as_bits(values: np.ndarray, dtype: str) -> np.ndarray:
    """Float32 values rounded to float16 or bfloat16, as uint16; uint16 stays as it is."""
    if values.dtype == np.uint16:
        return values
    if dtype == "float16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).view(np.uint16)
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def pack_stem(weights: np.ndarray, lead: int, block: int, dtype: str) -> np.ndarray:
    """Weights in the order in which the kernel's threads hold them.

    Args:
        weights: (k, kh, kw, c) float32, c <= 4.
        lead: Columns of zeros before the kernel's first.
        block: Channels that a warp makes at a time.
        dtype: float16 or bfloat16.

    Returns:
        uint16, (kh, quads, channels / 16, 32, 8).
    """
    num, kh, kw, c = weights.shape
    quads = -(-(lead + kw) // 4)
    channels = -(-num // block) * block
    after = quads * 4 - lead - kw
    whole = np.pad(weights, ((0, channels - num), (0, 0), (lead, after), (0, 4 - c)))
    tiles = block // 8
    # (blocks, q, which, g, kh, quads, half, t, two)
    cut = whole.reshape(channels // block, block, kh, quads, 16)
    cut = cut[:, permuted_channels(tiles).reshape(-1)]
    cut = cut.reshape(channels // block, tiles // 2, 2, 8, kh, quads, 2, 4, 2)
    packed = np.ascontiguousarray(cut.transpose(4, 5, 0, 1, 3, 7, 2, 6, 8))
    return as_bits(packed, dtype).reshape(kh, quads, channels // 16, 32, 8)
