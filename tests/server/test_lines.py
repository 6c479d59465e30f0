"""An engine process's lines to several fronts: tasks, memory and replies of each kept apart."""

from __future__ import annotations

import socket

import msgspec
import pytest

from saccade.server.arena import Arena
from saccade.server.lines import Lines
from saccade.server.wire import LINE_SHIFT, Detect, Done, Join, Loaded, Reply

SECOND = 3  # the number that the first front gave it


def pair():
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


class Front:
    """The other end of a line."""

    def __init__(self, number):
        self.number = number
        self.arena = Arena(1 << 20)
        self.sock, self.its_sock = pair()
        self.sock.settimeout(5)

    def ask(self, number, content):
        """Send a picture in the arena."""
        block = self.arena.take(len(content))
        self.arena.view[block : block + len(content)] = content
        task = Detect(
            (self.number << LINE_SHIFT) + number,
            1,
            len(content),
            block=block,
            capacity=self.arena.size(block),
        )
        self.send(task)
        return task

    def send(self, *tasks):
        self.sock.send(msgspec.msgpack.encode(tasks))

    def close(self):
        self.sock.close()
        self.its_sock.close()
        self.arena.close()

    def replies(self):
        return msgspec.msgpack.decode(self.sock.recv(1 << 16), type=list[Reply])


@pytest.fixture
def first():
    made = Front(0)
    yield made
    made.close()


@pytest.fixture
def second():
    made = Front(SECOND)
    yield made
    made.close()


@pytest.fixture
def lines(first):
    door, its_door = pair()
    made = Lines(first.its_sock, first.arena.fd, its_door)
    made.other_side_of_the_door = door
    yield made
    made.close()
    door.close()


def join(lines, first, second):
    fds = [second.its_sock.fileno(), second.arena.fd]
    socket.send_fds(lines.other_side_of_the_door, [str(second.number).encode()], fds)
    second.its_sock.close()
    first.send(Join(77))
    assert lines.receive(wait=True) == []
    assert first.replies() == [Loaded(77, b"{}")]


def test_tasks_find_their_memory_and_replies_their_front(lines, first, second):
    assert lines.receive(wait=False) == []
    sent = first.ask(1, b"of the first")
    assert lines.receive(wait=True) == [sent]
    join(lines, first, second)
    ours, theirs = first.ask(2, b"again first"), second.ask(2, b"of the second")
    taken = []
    while len(taken) < 2:
        assert lines.wait(5)
        taken += lines.receive(wait=True)
    assert sorted(taken, key=lambda task: task.id) == [ours, theirs]
    assert bytes(lines.block(ours)[:11]) == b"again first"
    assert bytes(lines.block(theirs)[:13]) == b"of the second"
    assert lines.address(ours) != lines.address(theirs)
    lines.send([Done(theirs.id, 5), Done(ours.id, 6), Done(theirs.id + 1, 7)])
    assert [reply.num_bytes for reply in second.replies()] == [5, 7]
    assert [reply.num_bytes for reply in first.replies()] == [6]


def test_a_front_that_goes_takes_only_its_own_line(lines, first, second):
    join(lines, first, second)
    task = second.ask(1, b"held while its front goes")
    assert lines.receive(wait=True) == [task]
    second.sock.close()
    assert lines.receive(wait=True) == []  # its end
    assert bytes(lines.block(task)[:4]) == b"held"
    lines.send([Done(task.id)])
    sent = first.ask(1, b"goes on")
    assert lines.receive(wait=True) == [sent]
    lines.send([Done(sent.id, 3)])
    assert first.replies()[0].num_bytes == 3
    assert not lines.is_over
    first.sock.close()
    assert lines.receive(wait=True) == []
    assert lines.is_over
    assert not lines.wait(0)
    lines.send([Done(sent.id)])
