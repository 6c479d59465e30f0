"""A candidate's own process: what it answers, and every way in which it may die."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import msgspec
import psutil
import pytest

from builder import colours
from nets import mean_color_detector
from saccade.builder.answers import read
from saccade.builder.process import COMMAND, Limits, WorkerFailed, WorkerProcess
from saccade.builder.records import Candidate, Recipe
from saccade.builder.worker import Request
from saccade.pipeline.detector import load
from saccade.types import Plan

WRONG = (sys.executable, str(Path(__file__).parent / "wrong_worker.py"))
LIMIT_S = 60.0
PLENTY = Limits(memory_bytes=4 << 30)


@pytest.fixture
def job(tmp_path):
    folder = tmp_path / "pictures"
    colours.draw(folder)
    pictures = tmp_path / "pictures.json"
    pictures.write_bytes(msgspec.json.encode(sorted(map(str, folder.glob("*.jpg")))))
    path = mean_color_detector(tmp_path / "net.onnx")
    with load(path) as detector:
        contract = detector.contract

    def request(backend: str, batch: int = 1) -> Request:
        candidate = Candidate(Recipe(), Plan(backend, batch=batch, streams=2), 2)
        return Request("load", str(path), contract, candidate, str(pictures))

    return request


@pytest.fixture
def start(tmp_path):
    opened: list[WorkerProcess] = []

    def make(limits: Limits = PLENTY, command=COMMAND) -> WorkerProcess:
        opened.append(WorkerProcess(tmp_path / "stderr.txt", limits, command))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def test_a_candidate_answers_and_is_timed(job, start, tmp_path):
    worker = start()
    told = worker.ask(job("onnxruntime", batch=4), LIMIT_S)
    assert told["load_s"] > 0
    assert told["fallbacks"] == []
    worker.ask(Request("observe", str(tmp_path / "a.npz"), batches=(1, 4)), LIMIT_S)
    answers = read(tmp_path / "a.npz")
    assert [one.batch for one in answers.passes] == [1, 4]
    assert all(len(one.detections) == colours.NUM_PICTURES for one in answers.passes)
    rate = worker.ask(Request("rate", seconds=0.2), LIMIT_S)
    assert rate["pictures_per_s"] > 0
    assert rate["cpu_ms"] > 0
    latency = worker.ask(Request("latency", seconds=0.1), LIMIT_S)
    assert 0 < latency["p50_ms"] <= latency["p99_ms"]
    assert worker.peak_memory_bytes > 1 << 20


def test_what_a_back_end_says_is_the_error(job, start):
    worker = start()
    request = job("onnxruntime")
    assert request.candidate is not None
    bf16 = msgspec.structs.replace(
        request, candidate=Candidate(Recipe(), Plan("onnxruntime", "bf16"), 1)
    )
    with pytest.raises(WorkerFailed, match="precision of back end 'onnxruntime' must be"):
        worker.ask(bf16, LIMIT_S)
    # The process lives on and serves what is right.
    assert worker.ask(request, LIMIT_S)["load_s"] > 0


def test_asking_before_loading_is_told(start):
    with pytest.raises(WorkerFailed, match="must load a candidate first"):
        start().ask(Request("rate", seconds=0.1), LIMIT_S)


def test_a_hang_is_ended_in_time(job, start):
    worker = start(command=WRONG)
    with pytest.raises(WorkerFailed, match="hung: no answer to 'load' within 4 s"):
        worker.ask(job("wrong_hang"), 4)
    assert_gone(worker)


def test_a_memory_eater_is_ended_before_the_machine_suffers(job, start):
    worker = start(Limits(memory_bytes=1 << 30), WRONG)
    with pytest.raises(WorkerFailed, match=r"out of memory: \d\.\d+ GiB used, 1.00 GiB allowed"):
        worker.ask(job("wrong_eater"), LIMIT_S)
    assert 1 << 30 <= worker.peak_memory_bytes < 4 << 30
    assert_gone(worker)


def test_a_crash_is_told_in_words(job, start):
    worker = start(command=WRONG)
    with pytest.raises(WorkerFailed, match=r"invalid memory access \(signal 11\).*goes wrong here"):
        worker.ask(job("wrong_crash"), LIMIT_S)
    with pytest.raises(WorkerFailed, match="signal 11"):
        worker.ask(job("wrong_honest"), LIMIT_S)


def test_a_kill_from_outside_is_told(job, start):
    worker = start()
    os.kill(pid_of(worker), signal.SIGKILL)
    with pytest.raises(WorkerFailed, match="most likely because memory ran out"):
        worker.ask(job("onnxruntime"), LIMIT_S)


def test_an_exit_is_told(job, start):
    worker = start(command=(sys.executable, "-c", "raise SystemExit(7)"))
    with pytest.raises(WorkerFailed, match="exit code 7"):
        worker.ask(job("onnxruntime"), LIMIT_S)


def test_what_a_runtime_prints_does_not_disturb_the_protocol(job, start):
    worker = start(command=WRONG)
    assert worker.ask(job("wrong_noisy"), LIMIT_S)["load_s"] > 0


def test_a_reply_that_is_none_is_told(job, start):
    worker = start(command=(sys.executable, "-c", "print('hello', flush=True); input()"))
    with pytest.raises(WorkerFailed, match="answered with something else than a reply: 'hello"):
        worker.ask(job("onnxruntime"), LIMIT_S)


def pid_of(worker: WorkerProcess) -> int:
    return worker._process.pid


def assert_gone(worker: WorkerProcess) -> None:
    assert not psutil.pid_exists(pid_of(worker))
