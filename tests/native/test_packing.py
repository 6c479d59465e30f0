"""Packed weights, read as the kernels' threads read them, give the weights back."""

from __future__ import annotations

import numpy as np
import pytest

from saccade.native.kernels.packing import as_bits, pack_stem, pack_tiles, pack_weights
from saccade.native.kernels.tilings import Tiling


def channel_of(tile: int, column: int, num_tiles: int) -> int:
    """The output channel that a thread stores from a column of its tile-th 16x8 product.

    A thread t of four stores 2 * group channels that lie side by side; the matrix units give it
    columns 2t and 2t + 1 of each product.
    """
    group = 4 if num_tiles % 4 == 0 else 2
    thread, which = divmod(column, 2)
    return tile // group * group * 8 + thread * 2 * group + tile % group * 2 + which


def weights_of(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float16).astype(np.float32)


@pytest.mark.parametrize(
    ("channels", "first", "second", "tiling"),
    [
        (16, 16, 0, Tiling(1, 16, 16, 1, 1, 16)),
        (64, 64, 0, Tiling(1, 16, 64, 1, 2, 32)),
        (70, 40, 0, Tiling(1, 16, 48, 1, 1, 16)),
        (32, 24, 40, Tiling(1, 16, 32, 1, 1, 16)),
    ],
)
def test_threads_hold_the_weights_of_their_columns(channels, first, second, tiling, rng) -> None:
    weights = weights_of(rng, channels, 3, 2, first + second)
    packed = pack_weights(weights, first, tiling).view(np.float16)
    parts = [weights[..., :first], weights[..., first:]]
    for block, chunk, tap, kk, pair, lane in rng.integers(
        0, packed.shape[:6], (400, 6), endpoint=False
    ):
        column, t = divmod(lane, 4)
        chunks_first = -(-first // tiling.cc)
        part, inner = (0, chunk) if chunk < chunks_first else (1, chunk - chunks_first)
        for register in range(4):
            tile, upper = divmod(register, 2)
            for which in range(2):
                # mma.m16n8k16: b0 and b1 hold depth 2t, 2t + 1 and 8 more; the column is lane / 4.
                depth = inner * tiling.cc + kk * 16 + upper * 8 + 2 * t + which
                per_warp = tiling.ni // 2
                warp, local = divmod(pair, per_warp)
                channel = block * tiling.bn + warp * tiling.ni * 8
                channel += channel_of(local * 2 + tile, column, tiling.ni)
                ky, kx = divmod(tap, 2)
                is_there = channel < channels and depth < parts[part].shape[-1]
                want = parts[part][channel, ky, kx, depth] if is_there else 0.0
                assert packed[block, chunk, tap, kk, pair, lane, register * 2 + which] == want


@pytest.mark.parametrize("num", [32, 80])
def test_tiles_are_columns_by_depth(num, rng) -> None:
    tiling = Tiling(8, 16, 32, 4, 1, 32, is_joint=True)
    weights = weights_of(rng, num, 3, 3, 48)
    packed = pack_tiles(weights, 48, tiling).view(np.float16)
    shape = packed.shape
    assert shape == (-(-num // 32), 2, 9, 2, 2, 4, 8, 8)
    for block, chunk, tap, kk, half, tile, column, depth in rng.integers(0, shape, (400, 8)):
        channel = block * 32 + channel_of(tile, column, tiling.ni)
        c = chunk * 32 + kk * 16 + half * 8 + depth
        is_there = channel < num and c < 48
        want = weights[channel, tap // 3, tap % 3, c] if is_there else 0.0
        assert packed[block, chunk, tap, kk, half, tile, column, depth] == want


@pytest.mark.parametrize(("kernel", "lead"), [(3, 1), (3, 0), (7, 1), (6, 0)])
def test_stems_depth_is_four_pixels_of_four_channels(kernel, lead, rng) -> None:
    weights = weights_of(rng, 24, kernel, kernel, 3)
    packed = pack_stem(weights, lead, 32, "float16").view(np.float16)
    for ky, quad, pair, lane, at in rng.integers(0, packed.shape, (400, 5)):
        column, t = divmod(lane, 4)
        register, which = divmod(at, 2)
        tile, upper = divmod(register, 2)
        pixel, c = divmod(quad * 16 + upper * 8 + 2 * t + which, 4)
        channel = channel_of(pair * 2 + tile, column, 4)
        kx = pixel - lead
        is_there = channel < 24 and 0 <= kx < kernel and c < 3
        want = weights[channel, ky, kx, c] if is_there else 0.0
        assert packed[ky, quad, pair, lane, at] == want


def test_bfloat16_rounds_to_even_and_keeps_what_is_not_a_number() -> None:
    values = np.array([1.0, 1.00390625, 1.01171875, -2.5, np.inf, np.nan, 3e38], np.float32)
    bits = as_bits(values, "bfloat16")
    back = (bits.astype(np.uint32) << 16).view(np.float32)
    assert back[:5].tolist() == [1.0, 1.0, 1.015625, -2.5, np.inf]
    assert np.isnan(back[5])
    assert back[6] == pytest.approx(3e38, rel=0.01)
