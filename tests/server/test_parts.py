"""Parts of the server for themselves: memory, batches, types, wrong HTTP/2."""

from __future__ import annotations

import contextlib
import json
import socket
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade.server.arena import Arena
from saccade.server.batching import Batching
from saccade.server.dtypes import ITEM_BYTES, join_strings, split_strings, to_bytes, to_list
from saccade.server.http2 import PREFACE, frame
from saccade.server.kserve import read_infer
from saccade.server.multipart import split_parts
from saccade.server.problems import Problem
from saccade.server.stats import Histogram


@contextlib.contextmanager
def refused(*statuses):
    """All goes well, or ends in a problem with one of these statuses."""
    problem = None
    try:
        yield
    except Problem as exc:
        problem = exc
    assert problem is None or problem.status in statuses


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 300_000)), max_size=200))
def test_blocks_do_not_overlap_and_come_back(steps):
    arena = Arena(1 << 20)
    held: dict[int, int] = {}
    for is_taken, num in steps:
        if is_taken:
            offset = arena.take(num)
            if offset is None:
                continue
            size = arena.size(offset)
            assert size >= num
            assert offset + size <= arena.num_bytes
            assert all(offset + size <= o or o + s <= offset for o, s in held.items())
            held[offset] = size
        elif held:
            arena.give_back(held.popitem()[0] if num % 2 else (first := next(iter(held))))
            if not num % 2:
                del held[first]
        assert arena.used_bytes == sum(held.values())
    for offset in held:
        arena.give_back(offset)
    assert arena.take(1 << 20) == 0
    arena.close()


def test_a_full_arena_says_so():
    arena = Arena(1 << 20)
    assert arena.take(1 << 20) == 0
    assert arena.take(1) is None
    arena.close()


def test_batches_share_work_between_idle_threads():
    batching = Batching(8, 0.05)
    assert batching.share(1, 4, 0) == 1
    assert batching.share(4, 4, 0) == 1
    assert batching.share(9, 4, 0) == 3
    assert batching.share(100, 1, 0) == 8
    for num in range(1, 9):
        batching.ran(num, 0.01 * num)
    assert batching.share(100, 1, 0) == 5, "five meet the objective of 50 ms"
    assert batching.share(100, 1, 0.035) == 1
    assert batching.share(100, 1, 1.0) == 8, "what is too late anyway is done at the best rate"


def test_waiting_must_pay():
    batching = Batching(4, 0.05)
    assert batching.wait_s(1, 0) == 0, "nothing is known yet"
    batching.ran(1, 0.010)
    batching.ran(2, 0.011)
    assert batching.wait_s(1, 0) == 0, "no request is expected soon"
    for k in range(200):
        batching.arrived(10 + k * 0.001)
    assert 0 < batching.wait_s(1, 0) <= 0.003
    assert batching.wait_s(1, 0.0495) == 0, "the objective would be missed"
    assert batching.wait_s(4, 0) == 0
    batching.ran(2, 0.5)
    for _ in range(100):
        batching.ran(2, 0.020)
    assert batching.wait_s(1, 0) == 0, "a larger batch saves nothing"


@pytest.mark.parametrize("datatype", [*ITEM_BYTES])
def test_types_there_and_back(datatype, rng):
    if datatype == "BOOL":
        values = [True, False, True]
    elif datatype in ("FP16", "FP32", "FP64", "BF16"):
        values = [0.5, -3.0, 96.0]
    else:
        values = [0, 1, 127]
    data = to_bytes("x", datatype, (3,), values)
    assert len(data) == 3 * ITEM_BYTES[datatype]
    assert to_list(datatype, data) == values
    if datatype not in ("BF16", "BOOL"):
        kind = {"FP": "f", "IN": "i", "UI": "u"}[datatype[:2]] + str(ITEM_BYTES[datatype])
        assert np.frombuffer(data, f"<{kind}").tolist() == values


@pytest.mark.parametrize(
    ("datatype", "value"),
    [
        *(("UINT8", 256), ("INT8", -129), ("INT32", 1.5), ("FP32", "1"), ("FP32", None)),
        *(("BOOL", 2), ("BYTES", 3), ("INT64", 1 << 63), ("UINT64", -1), ("FP32", True)),
    ],
)
def test_values_that_do_not_fit(datatype, value):
    with pytest.raises(Problem, match="must be"):
        to_bytes("x", datatype, (1,), [value])


@given(st.lists(st.binary(max_size=50)))
def test_strings_there_and_back(items):
    assert split_strings(join_strings(items)) == items


@given(st.binary(max_size=200))
def test_any_strings_are_read_or_refused(data):
    with refused(400):
        assert join_strings(split_strings(data)) == data


def _no_memory(name, offset, size):
    raise Problem("not_found", "a region must be registered", "this one is not")


_names = st.sampled_from(["binary_data_size", "shared_memory_region", "classification", "other"])
_junk = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
_tensors = st.fixed_dictionaries(
    {"name": st.text(max_size=5), "shape": st.lists(st.integers(-2, 5), max_size=3)},
    optional={
        "datatype": st.sampled_from([*ITEM_BYTES, "BYTES", "NONE"]),
        "parameters": st.dictionaries(_names, _junk, max_size=2),
        "data": st.lists(_junk | st.lists(_junk, max_size=3), max_size=6) | _junk,
    },
)


@given(st.lists(_tensors, max_size=3), st.binary(max_size=64), st.integers(-5, 5))
def test_any_request_is_read_or_refused(tensors, tail, shift):
    header = json.dumps({"inputs": tensors}).encode()
    with refused(400, 404):
        asked = read_infer(header + tail, len(header) + shift if tail else None, _no_memory)
        assert sum(part.num_bytes for part in asked.inputs) == asked.num_bytes
        assert sum(map(len, asked.parts)) == asked.num_bytes


@given(st.binary(max_size=300))
def test_any_form_is_read_or_refused(data):
    with refused(400, 413):
        split_parts(b"--cut" + data, b"cut", 8)


def test_quantiles_of_a_histogram():
    histogram = Histogram((1.0, 2.0, 4.0))
    assert histogram.quantile(0.5) == 0
    for value in (0.5, 1.5, 1.5, 3.0):
        histogram.observe(value)
    assert histogram.counts == [1, 2, 1, 0]
    assert 1 < histogram.quantile(0.5) <= 2
    assert histogram.quantile(1) == 4


# Wrong HTTP/2 against a real server.


def goodbye(served, data):
    """What a client hears after the preface and some bytes: codes of GOAWAY and RST_STREAM."""
    host, _, port = served.grpc.partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        got = b""
        # What the server leaves unread ends the connection; what it said before is here by then.
        with contextlib.suppress(ConnectionResetError):
            while chunk := sock.recv(65536):
                got += chunk
    codes, at = [], 0
    while at + 9 <= len(got):
        size, kind = int.from_bytes(got[at : at + 3], "big"), got[at + 3]
        payload = got[at + 9 : at + 9 + size]
        if kind == 7:
            codes.append(struct.unpack(">II", payload[:8])[1])
        at += 9 + size
    return codes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"GET / HTTP/1.1\r\n\r\n" + b" " * 20, 1),
        (PREFACE + frame(0, 0, 0, b"x"), 1),
        (PREFACE + frame(0, 0, 5, b"x"), 1),
        (PREFACE + frame(1, 4, 2, b"\x88"), 1),
        (PREFACE + frame(1, 4, 1, b"\xff\xff\xff\xff\xff\xff\xff\xff"), 9),
        (PREFACE + frame(1, 0, 1, b"\x88") + frame(6, 0, 0, b"12345678"), 1),
        (PREFACE + frame(6, 0, 0, b"1"), 3 * 2),
        (PREFACE + frame(4, 0, 0, b"12345"), 6),
        (PREFACE + frame(5, 0, 1, b""), 1),
        (PREFACE + frame(8, 0, 0, b"\0\0\0\0"), 3),
        (PREFACE + frame(9, 0, 1, b""), 1),
        (PREFACE + b"\xff\xff\xff\0\0\0\0\0\1", 6),
        (PREFACE + frame(6, 0, 0, b"12345678") * 5000, 11),
    ],
)
def test_wrong_frames_end_the_connection_in_order(served, data, code):
    assert goodbye(served, data) == [code]
    assert served.get("/v2/health/ready")[0] == 200


@pytest.mark.slow
def test_random_frames_harm_nobody(served, rng):
    for _ in range(150):
        frames = [
            frame(
                int(rng.integers(0, 12)),
                int(rng.integers(0, 256)),
                int(rng.integers(0, 6)),
                rng.bytes(int(rng.integers(0, 40))),
            )
            for _ in range(int(rng.integers(1, 20)))
        ]
        goodbye(served, PREFACE + b"".join(frames))
    assert served.get("/v2/health/ready")[0] == 200
    assert not served.json("/page/live")["num_restarts"]
