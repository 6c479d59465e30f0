"""Channel shuffles without copies: who makes a channel writes it once, who needs it reads it there.

A shuffled network (ShuffleNetV2: Ma et al., 2018) concatenates two pictures, deals their channels
out in turn, and splits them again, unit after unit; written out, each channel is copied four times
per unit. Here every channel is traced back through copies to the convolution that made it. All of
these convolutions write side by side into one wide picture, and a convolution that wants some of
its channels reads the span that holds them, with weights of 0 for those between. What cannot do
that (a depthwise convolution) gets its channels by one `Gather`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from saccade.native.ops import (
    IDENTITY,
    Apply,
    Conv,
    Copy,
    Gather,
    Operand,
    Pointwise,
    reads,
    writes,
)
from saccade.native.passes.pad_channels import padded
from saccade.native.plan import Draft, with_views
from saccade.native.tensors import View

__all__ = ["activate_before_copies", "route_channels"]

# Slots begin where 16 bytes of halves do.
_SLOT = 8
# A span may hold so many times the channels that are wanted: reading them is cheaper than copies.
_MOST_WIDER = 16
# Sizes of pictures: n, h, w.
_Size = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class _Token:
    """A channel: of which convolution (index of the step), and which of its results."""

    maker: int
    channel: int


@dataclass(slots=True)
class _Layout:
    """How a buffer holds pictures.

    Attributes:
        size: Of the pictures.
        pixels: Elements from index to index along n, h and w, by how many pixels that is.
        tokens: What lies at an offset from a pixel's first element.
    """

    size: _Size
    pixels: dict[int, int]
    tokens: dict[int, _Token] = field(default_factory=dict)

    def traced(self, view: View) -> tuple[list[tuple[int, int, int]], np.ndarray] | None:
        """A view's pixel axes (axis, size, pixels per index), and its tokens' offsets.

        The offsets have the shape of the view's other axes. None if it is no part of the pictures.
        """
        by_stride = {stride: step for step, stride in self.pixels.items()}
        axes, offsets = [], np.array(view.offset)
        for axis, (size, stride) in enumerate(zip(view.shape, view.strides, strict=True)):
            if size > 1 and stride in by_stride:
                axes.append((axis, size, by_stride[stride]))
            elif size > 1:
                offsets = offsets[..., None] + np.arange(size) * stride
        if any(int(at) not in self.tokens for at in offsets.ravel()):
            return None
        return axes, offsets

    def is_whole(self, view: View) -> bool:
        """Whether a view is of whole pictures (n, h, w, channels), as pixels."""
        _, h, w = self.size
        wanted = ((0, w * h), (1, w), (2, 1))
        return (
            view.is_pixels
            and view.shape[:3] == self.size
            and all(
                view.shape[axis] == 1 or self.pixels.get(step) == view.strides[axis]
                for axis, step in wanted
            )
        )

    @property
    def pitch(self) -> int | None:
        """Elements from channel to channel; None if they lie unevenly."""
        steps = {two - one for one, two in itertools.pairwise(sorted(self.tokens))}
        return steps.pop() if len(steps) == 1 else None

    def moved(self, view: View, whole: View) -> View:
        """A view of these pictures, in a buffer that holds all their channels as pixels."""
        by_stride = {stride: step for step, stride in self.pixels.items()}
        assert self.pitch is not None
        strides = tuple(
            by_stride[stride] * whole.c
            if size > 1 and stride in by_stride
            else stride // self.pitch
            for size, stride in zip(view.shape, view.strides, strict=True)
        )
        offset = (view.offset - min(self.tokens)) // self.pitch
        return replace(whole, shape=view.shape, strides=strides, offset=offset)


def activate_before_copies(draft: Draft) -> None:
    """Let convolutions apply the activation that a step applies while it copies their result."""
    for index, step in enumerate(draft.steps):
        if not isinstance(step, Pointwise) or len(step.operands) != 1 or len(step.results) != 1:
            continue
        (expr,), (x,), (y,) = step.exprs, step.operands, step.results
        if not isinstance(expr, Apply) or expr.op != "act" or expr.args != (Operand(0),):
            continue
        makers = draft.writers().get(x.buffer, [])
        conv = draft.steps[makers[0]] if len(makers) == 1 else None
        if (
            isinstance(conv, Conv)
            and conv.activation == conv.after == IDENTITY
            and conv.scale == 1.0
            and not conv.residual_after
            and draft.readers().get(x.buffer) == [index]
            and x.buffer not in draft.output_buffers()
            and conv.y.num_elements == x.num_elements
            and not x.is_repeated
            and x.dtype == y.dtype
        ):
            draft.steps[makers[0]] = replace(conv, activation=expr.activation)
            draft.steps[index] = Copy(step.label, x, y)


def route_channels(draft: Draft) -> None:
    """Route every shuffle for which that is possible; others stay as they are."""
    done: set[int] = set()
    while True:
        copies = [
            step.y.buffer
            for step in draft.steps
            if isinstance(step, Copy) and step.y.buffer not in done
        ]
        if not copies:
            return
        copied = _copied_buffers(draft, copies[0])
        done |= {copies[0], *copied}
        _Router(draft, copied).route()
        draft.drop_dead()


def _copied_buffers(draft: Draft, first: int) -> set[int]:
    """Buffers that hold copies of each other and of what convolutions made."""
    writers, readers, outputs = draft.writers(), draft.readers(), draft.output_buffers()

    def is_copied(number: int) -> bool:
        makers = [draft.steps[index] for index in writers.get(number, [])]
        return (
            bool(makers)
            and number not in outputs
            and draft.buffers[number].kind == "arena"
            and any(isinstance(made, Copy) for made in makers)
            and all(
                isinstance(made, Conv) or (isinstance(made, Copy) and made.x.dtype == made.y.dtype)
                for made in makers
            )
        )

    found: set[int] = set()
    front = [first]
    while front:
        number = front.pop()
        if number in found or not is_copied(number):
            continue
        found.add(number)
        sources = {
            made.x.buffer
            for index in writers[number]
            if isinstance(made := draft.steps[index], Copy)
        }
        for source in (number, *sources):
            for index in readers.get(source, []):
                if isinstance(draft.steps[index], Copy):
                    front += [view.buffer for view in writes(draft.steps[index])]
        front += sources
    return found


class _Router:
    """One group of buffers that are copies of each other.

    Args:
        draft: Changed by `route`.
        copied: Numbers of the buffers.
    """

    def __init__(self, draft: Draft, copied: set[int]) -> None:
        self._draft, self._copied = draft, copied
        self._layouts: dict[int, _Layout] = {}
        self._wide = -1

    def route(self) -> None:
        """Change the draft, or leave it alone."""
        if not self._trace():
            return
        makers = sorted({t.maker for layout in self._layouts.values()
                         for t in layout.tokens.values()})  # fmt: skip
        uses = self._uses()
        size = next(iter(self._layouts.values())).size
        if uses is None or any(layout.size != size for layout in self._layouts.values()):
            return
        if not any(_is_shuffled(tokens) for _, _, tokens in uses):
            return  # whole slices in a row are written in place by others
        slots, width = {}, 0
        for maker in makers:
            slots[maker] = width
            width += -(-self._conv(maker).y.c // _SLOT) * _SLOT
        if any(_span(tokens, slots)[1] > _MOST_WIDER * len(tokens) for _, _, tokens in uses):
            return
        name = f"{self._conv(makers[0]).label}:routed"
        dtype = self._conv(makers[0]).y.dtype
        wide = self._draft.new(name, (*size, width), dtype)
        for maker in makers:
            self._draft.steps[maker] = self._widened(self._conv(maker), slots[maker], wide)
        gathered: dict[tuple[_Token, ...], View] = {}
        inserted = []
        for index, view, tokens in uses:
            step = self._draft.steps[index]
            if isinstance(step, Conv) and step.groups == 1 and view == step.x:
                self._draft.steps[index] = self._spanning(step, tokens, slots, wide)
                continue
            key = tuple(tokens)
            if key not in gathered:
                gathered[key], made = self._gather(step.label, tokens, slots, wide)
                inserted.append((index, made))
            place = gathered[key]
            if not self._layouts[view.buffer].is_whole(view):
                place = self._layouts[view.buffer].moved(view, place)
            self._draft.steps[index] = with_views(step, _replacing(view, place))
        self._insert(inserted)

    def _conv(self, index: int) -> Conv:
        step = self._draft.steps[index]
        assert isinstance(step, Conv)
        return step

    def _trace(self) -> bool:
        """Where every channel of every buffer comes from; buffers of which that cannot be said are
        left out, and what is copied there is one use among others."""
        lost: set[int] = set()
        while True:
            self._layouts = {}
            found = self._lost(lost)
            if found is None:
                return bool(self._copied)
            lost.add(found)
            self._copied.discard(found)

    def _lost(self, known: set[int]) -> int | None:
        """The first buffer that cannot be traced, besides those known."""
        for index, step in enumerate(self._draft.steps):
            for view in writes(step):
                number = view.buffer
                if number in known or not (number in self._copied or self._is_source(number)):
                    continue
                if isinstance(step, Conv):
                    can = self._begin(index, step)
                else:
                    can = isinstance(step, Copy) and self._follow(step)
                if not can:
                    return number
        return None

    def _is_source(self, number: int) -> bool:
        """Whether a buffer is copied from."""
        return any(
            isinstance(step, Copy) and step.x.buffer == number and step.y.buffer in self._copied
            for step in self._draft.steps
        )

    def _begin(self, index: int, conv: Conv) -> bool:
        y = conv.y
        can = (
            conv.groups == 1
            and y.is_packed
            and y.offset + y.c <= y.pitch
            and (conv.residual is None or y.c % _SLOT == 0)
            and self._draft.buffers[y.buffer].kind == "arena"
            and y.buffer not in self._draft.output_buffers()
        )
        if not can:
            return False
        steps = {1: y.pitch, y.w: y.w * y.pitch}
        if y.n > 1:
            steps[y.w * y.h] = y.w * y.h * y.pitch
        layout = self._layouts.setdefault(y.buffer, _Layout((y.n, y.h, y.w), steps))
        if layout.size != (y.n, y.h, y.w) or layout.pixels != steps:
            return False
        layout.tokens |= {y.offset + c: _Token(index, c) for c in range(y.c)}
        return True

    def _follow(self, copy: Copy) -> bool:
        source = self._layouts.get(copy.x.buffer)
        traced = None if source is None else source.traced(copy.x)
        if source is None or traced is None:
            return False
        axes, offsets = traced
        strides = {step: copy.y.strides[axis] for axis, _, step in axes}
        if not _covers(source.size, [(size, step) for _, size, step in axes]):
            return False
        if 1 in strides:
            # Axes that were joined: a row is as many columns.
            n, h, w = source.size
            strides.setdefault(w, w * strides[1])
            if n > 1:
                strides.setdefault(w * h, h * strides[w])
        own = self._layouts.setdefault(copy.y.buffer, _Layout(source.size, strides))
        if own.size != source.size or any(own.pixels.get(k, s) != s for k, s in strides.items()):
            return False
        is_pixel = {axis for axis, _, _ in axes}
        to = np.array(copy.y.offset)
        for axis, (size, stride) in enumerate(zip(copy.y.shape, copy.y.strides, strict=True)):
            if size > 1 and axis not in is_pixel:
                to = to[..., None] + np.arange(size) * stride
        pairs = zip(to.ravel().tolist(), offsets.ravel().tolist(), strict=True)
        own.tokens |= {at: source.tokens[came] for at, came in pairs}
        return True

    def _uses(self) -> list[tuple[int, View, list[_Token]]] | None:
        """Steps that read traced buffers, the view and its channels; None if one cannot."""
        found = []
        for index, step in enumerate(self._draft.steps):
            if isinstance(step, Copy) and step.y.buffer in self._copied:
                continue
            for view in dict.fromkeys(reads(step)):
                layout = self._layouts.get(view.buffer)
                if layout is None:
                    continue
                traced = layout.traced(view)
                if traced is None:
                    return None
                if layout.is_whole(view):
                    tokens = [layout.tokens[int(at)] for at in traced[1].ravel()]
                elif layout.pitch is not None:
                    tokens = [layout.tokens[at] for at in sorted(layout.tokens)]
                else:
                    return None
                found.append((index, view, tokens))
        return found

    def _widened(self, conv: Conv, slot: int, wide: View) -> Conv:
        """A convolution that writes its slot, the rest of it too: what is 0 times anything must
        be a number."""
        count = -(-conv.y.c // _SLOT) * _SLOT
        weight, bias = conv.weight, conv.bias
        if count != conv.y.c:
            more = count - conv.y.c
            array = self._draft.weights[weight]
            weight = self._draft.weight(f"{weight}:wide", padded(array, 0, more))
            if bias is not None:
                array = self._draft.weights[bias]
                bias = self._draft.weight(f"{bias}:wide", padded(array, 0, more))
        return replace(conv, weight=weight, bias=bias, y=wide.channels(slot, slot + count))

    def _spanning(
        self, conv: Conv, tokens: list[_Token], slots: Mapping[int, int], wide: View
    ) -> Conv:
        low, width = _span(tokens, slots)
        array = self._draft.weights[conv.weight]
        spread = np.zeros((*array.shape[:3], width), array.dtype)
        spread[..., [slots[t.maker] + t.channel - low for t in tokens]] = array
        weight = self._draft.weight(f"{conv.weight}:spread", spread)
        return replace(conv, weight=weight, x=wide.channels(low, low + width))

    def _gather(
        self, label: str, tokens: list[_Token], slots: Mapping[int, int], wide: View
    ) -> tuple[View, Gather]:
        places = np.array([slots[t.maker] + t.channel for t in tokens], np.int64)
        y = self._draft.new(f"{label}:gathered", (*wide.shape[:3], len(tokens)), wide.dtype)
        indices = self._draft.constant(places, f"{label}:places")
        return y, Gather(label, "take", wide, indices, y, 3)

    def _insert(self, made: list[tuple[int, Gather]]) -> None:
        for index, step in sorted(made, key=lambda pair: -pair[0]):
            self._draft.steps.insert(index, step)


def _replacing(old: View, new: View) -> Callable[[View], View]:
    return lambda view: new if view == old else view


def _covers(size: _Size, axes: list[tuple[int, int]]) -> bool:
    """Whether axes of (size, pixels per index) walk over every pixel of the pictures once."""
    expected = 1
    for count, step in sorted(axes, key=lambda axis: axis[1]):
        if step != expected:
            return False
        expected *= count
    return expected == size[0] * size[1] * size[2]


def _is_shuffled(tokens: list[_Token]) -> bool:
    """Whether most channels do not follow the one before them."""
    runs = sum(two != _Token(one.maker, one.channel + 1) for one, two in itertools.pairwise(tokens))
    return 2 * runs >= len(tokens)


def _span(tokens: list[_Token], slots: Mapping[int, int]) -> tuple[int, int]:
    """From which channel of the wide picture, and how many."""
    places = [slots[t.maker] + t.channel for t in tokens]
    low = min(places) // _SLOT * _SLOT
    return low, -(-(max(places) + 1) // _SLOT) * _SLOT - low
