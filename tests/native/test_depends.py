"""Order, streams and memory: what may run side by side never shares bytes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from saccade.graph.passes.loading import load_tidy
from saccade.graph.reading import read_model
from saccade.native.depends import depends, scheduled
from saccade.native.drafting import drafted
from saccade.native.memory import lives_of, placed
from saccade.native.reference import Machine, interpret


@pytest.fixture(scope="module")
def draft(shared):
    model = read_model(shared / "models" / "light_person_192.onnx")
    return drafted(load_tidy(model), {"images": (1, 3, 192, 192)}, "fp32")


def order_by_streams(places, rng):
    """An order that some card might choose: any stream's next step whose waits are done."""
    queues = {}
    for index, place in enumerate(places):
        queues.setdefault(place.stream, []).append(index)
    done = []
    while any(queues.values()):
        able = [
            queue
            for queue in queues.values()
            if queue and all(wait in done for wait in places[queue[0]].waits)
        ]
        done.append(able[rng.integers(len(able))].pop(0))
    return done


@pytest.mark.shared
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("num_streams", [1, 3])
def test_any_order_that_streams_allow_gives_the_same_answer(draft, share, num_streams):
    rng = np.random.default_rng(num_streams)
    feeds = {"images": rng.random((1, 3, 192, 192), dtype=np.float32) * 255}
    want = interpret(draft, feeds)["output"]
    plan = placed(draft, share=share)
    places = scheduled(depends(plan), num_streams)
    assert {place.stream for place in places} == set(range(num_streams))
    for _ in range(3):
        order = order_by_streams(places, rng)
        machine = Machine(plan)
        machine.feed(feeds)
        for index in order:
            machine.run(plan.steps[index])
        np.testing.assert_array_equal(machine.outputs()["output"], want)
    if num_streams > 1:
        assert order != sorted(order)


@pytest.mark.shared
def test_buffers_that_live_together_lie_apart_and_sharing_saves(draft):
    plan = placed(draft)
    lives = lives_of(plan.steps)
    inner = [n for n, buffer in enumerate(plan.buffers) if buffer.kind == "arena"]
    for i in inner:
        assert plan.buffers[i].offset % 256 == 0
        assert plan.buffers[i].offset + plan.buffers[i].num_bytes <= plan.arena_bytes
        for j in inner:
            together = lives[i].first <= lives[j].last and lives[j].first <= lives[i].last
            a, b = plan.buffers[i], plan.buffers[j]
            if i < j and together:
                assert a.offset + a.num_bytes <= b.offset or b.offset + b.num_bytes <= a.offset
    assert plan.arena_bytes < placed(draft, share=False).arena_bytes / 2


@pytest.mark.shared
def test_the_arena_check_would_see_a_wrong_place(draft):
    """With two living buffers on the same bytes the answer changes: the tests above can fail."""
    feeds = {"images": np.random.default_rng(0).random((1, 3, 192, 192), dtype=np.float32)}
    plan = placed(draft)
    bad = tuple(
        replace(buffer, offset=0) if buffer.kind == "arena" else buffer for buffer in plan.buffers
    )
    got = interpret(replace(plan, buffers=bad), feeds)["output"]
    assert not np.array_equal(got, interpret(plan, feeds)["output"])
