"""Where an engine process's tasks come from and its replies go: one line for each front.

A line is a socket and the arena of the front at its other end. Ids carry their line's number, so a
task and its replies find their line by themselves, and lines know nothing of one another.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import socket
from collections.abc import Iterable
from typing import Any

import msgspec

from saccade.server.arena import map_arena
from saccade.server.wire import LINE_SHIFT, PACKET_BYTES, Join, Loaded, Task

__all__ = ["Lines"]


class _Line:
    __slots__ = ("address", "arena", "is_over", "sock")

    def __init__(self, sock: socket.socket, arena_fd: int) -> None:
        self.sock = sock
        self.arena = map_arena(arena_fd)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.arena))
        self.is_over = False


class Lines:
    """All fronts of an engine process.

    One thread at a time receives; any may send.

    Args:
        sock: Packets from and to the first front; where it ends, the process does.
        arena_fd: Memory shared with it.
        door: Where the first front hands in further lines.

    Attributes:
        is_over: Whether the first front has gone.
    """

    def __init__(self, sock: socket.socket, arena_fd: int, door: socket.socket) -> None:
        self.is_over = False
        self._door = door
        self._lines = {0: _Line(sock, arena_fd)}
        self._first = sock
        self._ready: list[int] = []
        self._epoll: select.epoll | None = None  # while there is one line, nobody has to choose
        self._by_fd: dict[int, int] = {}
        self._buffer = bytearray(PACKET_BYTES + 4096)
        self._view = memoryview(self._buffer)
        self._tasks_of = msgspec.msgpack.Decoder(list[Task]).decode
        self._encode = msgspec.msgpack.encode

    # Receiving.

    def receive(self, *, wait: bool) -> list[Any]:
        """The tasks of a packet; none if nothing is there and `wait` is not asked for, or at the
        end. An empty list may come at any time."""
        if self.is_over:
            return []
        if self._epoll is None:
            return self._take(0, 0 if wait else socket.MSG_DONTWAIT)
        if not self._ready:
            self._ready = [fd for fd, _ in self._epoll.poll(-1 if wait else 0)]
        while self._ready:
            number = self._by_fd.get(self._ready.pop())
            if number is not None:
                return self._take(number, socket.MSG_DONTWAIT)
        return []

    def wait(self, seconds: float) -> bool:
        """Whether something comes within a time."""
        if self.is_over:
            return False
        if self._epoll is None:
            return bool(select.select([self._first], [], [], seconds)[0])
        if not self._ready:
            self._ready = [fd for fd, _ in self._epoll.poll(seconds)]
        return bool(self._ready)

    def _take(self, number: int, flags: int) -> list[Any]:
        line = self._lines[number]
        try:
            num = line.sock.recv_into(self._buffer, 0, flags)
        except BlockingIOError:
            return []
        except ConnectionResetError:
            num = 0
        if num == 0:
            self._end(number)
            return []
        tasks: list[Any] = self._tasks_of(self._view[:num])
        if number == 0 and any(type(task) is Join for task in tasks):
            for task in tasks:
                if type(task) is Join:
                    self._join()
                    self.send([Loaded(task.id, b"{}")])
            tasks = [task for task in tasks if type(task) is not Join]
        return tasks

    def _join(self) -> None:
        content, fds, _, _ = socket.recv_fds(self._door, 64, 2)
        sock = socket.socket(fileno=fds[0])
        sock.setblocking(True)
        number = int(content)
        self._lines[number] = _Line(sock, fds[1])
        os.close(fds[1])
        if self._epoll is None:
            self._epoll = select.epoll()
            self._watch(0)
        self._watch(number)

    def _watch(self, number: int) -> None:
        assert self._epoll is not None
        fd = self._lines[number].sock.fileno()
        self._by_fd[fd] = number
        self._epoll.register(fd, select.EPOLLIN)

    def _end(self, number: int) -> None:
        line = self._lines[number]
        line.is_over = True
        if number == 0:
            self.is_over = True
            return
        # The line stays: tasks that came over it may still be under way, in its arena.
        assert self._epoll is not None
        fd = line.sock.fileno()
        self._epoll.unregister(fd)
        self._by_fd.pop(fd, None)
        line.sock.close()

    # Memory.

    def block(self, task: Any) -> memoryview:
        """The arena block of a task."""
        arena = self._lines[task.id >> LINE_SHIFT].arena
        return arena[task.block : task.block + task.capacity]

    def address(self, task: Any) -> int:
        """Where a task's arena block starts."""
        return self._lines[task.id >> LINE_SHIFT].address + int(task.block)

    # Sending.

    def send(self, replies: Iterable[Any]) -> None:
        """Send replies to the fronts that asked; those of fronts that have gone are dropped."""
        by_line: dict[int, list[Any]] = {}
        for reply in replies:
            by_line.setdefault(reply.id >> LINE_SHIFT, []).append(reply)
        for number, its_replies in by_line.items():
            line = self._lines[number]
            if line.is_over:
                continue
            try:
                line.sock.send(self._encode(its_replies))
            except (BrokenPipeError, ConnectionResetError):
                line.is_over = True  # there is nobody to tell; receiving sees the end
            except OSError:
                if not line.is_over:  # it was closed meanwhile
                    raise

    def close(self) -> None:
        """Close all sockets."""
        for line in self._lines.values():
            with contextlib.suppress(OSError):
                line.sock.close()
        self._door.close()
