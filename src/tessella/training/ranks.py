"""Ranks of a distributed training: equal options are checked, and if one process is lost, the others end.

torchrun, accelerate launch, or any launcher that sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT starts them. Each
process has a connection to each other one and sends regular signs of life. A killed process closes its connections, a
stopped one becomes silent. A training process may then be blocked inside its backend, so a thread watches and ends it.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import torch
from torch import Tensor, distributed

from tessella.foundation.errors import TessellaError, TrainingError, on_command_line, option

GRACE = 3.0
"""Seconds that a process has to report its own error before it ends because of another one's."""
SETTLED = 0.5
"""Seconds within which the loss of several processes counts as one event."""
STATUS = 2


def world() -> int:
    """Return the number of processes started together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return the rank of this process."""
    return int(os.environ.get("RANK", "0"))


@contextmanager
def joining(seconds: float) -> Iterator[None]:
    """End this process with a message if the block, which waits for the others, fails or exceeds `seconds`."""
    if world() == 1:
        yield
        return
    where = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
    missing = f"process {rank()} of {world()} could not join the others at {where}"
    remedy = f"start all {world()} processes, or wait longer with {option('rank_timeout')}"
    late = threading.Timer(seconds, lambda: _end(f"{missing} within {seconds:g} seconds: {remedy}"))
    late.daemon = True
    late.start()
    try:
        yield
    except (RuntimeError, OSError, ValueError) as error:
        _end(f"{missing} ({_one_line(error)[:120]}): {remedy}")
    finally:
        late.cancel()


def agree(facts: Mapping[str, Any], device: torch.device) -> None:
    """Check that all processes were started with equal options.

    Raises:
        TrainingError: if one differs from process 0, with the first option that differs.
    """
    told = [json.loads(text) for text in _gathered(json.dumps(facts, default=str), device)]
    for number, theirs in enumerate(told[1:], 1):
        for name in dict.fromkeys((*told[0], *theirs)):
            if told[0].get(name) != theirs.get(name):
                raise TrainingError(
                    f"process {number} was started with {name.replace('_', ' ')} {theirs.get(name)}, process 0 with "
                    f"{told[0].get(name)}: start all processes with the same options",
                    code="started-differently",
                    process=number,
                    option=name,
                )


def _gathered(text: str, device: torch.device) -> list[str]:
    """Gather a text from each process, by rank."""
    words = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).to(device)
    lengths = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(world())]
    distributed.all_gather(lengths, torch.tensor([len(words)], device=device))
    most = max(int(length) for length in lengths)
    padded = torch.zeros(most, dtype=torch.uint8, device=device)
    padded[: len(words)] = words
    parts: list[Tensor] = [torch.zeros_like(padded) for _ in range(world())]
    distributed.all_gather(parts, padded)
    return [bytes(part[: int(n)].tolist()).decode() for part, n in zip(parts, lengths, strict=True)]


class Watch:
    """Thread that ends this process when another one is lost.

    Args:
        peers: connections to the other processes, by rank.
        seconds: seconds of silence after which a process counts as lost.
    """

    def __init__(self, peers: dict[int, socket.socket], seconds: float) -> None:
        self.peers, self.seconds = peers, seconds
        self.beat = min(1.0, seconds / 5)
        self.read: dict[int, bytes] = dict.fromkeys(peers, b"")
        self.lost: dict[int, str] = {}
        self.leaving = threading.Lock()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._run, name="ranks", daemon=True)
        for peer in peers.values():
            peer.setblocking(False)
        _open.add(self)
        self.thread.start()

    @classmethod
    def of_all(cls, seconds: float, device: torch.device) -> Watch:
        """Connect all pairs of processes, and start watching."""
        with socket.create_server(("", 0), backlog=world()) as server:
            address = [_own_address(), server.getsockname()[1], os.urandom(16).hex()]
            places = [json.loads(text) for text in _gathered(json.dumps(address), device)]
            key = bytes.fromhex(places[0][2])
            peers: dict[int, socket.socket] = {}
            for number in range(rank()):
                peers[number] = socket.create_connection((places[number][0], places[number][1]), timeout=seconds)
                peers[number].sendall(key + rank().to_bytes(4, "big"))
            while len(peers) < world() - 1:
                peer, _ = server.accept()
                peer.settimeout(seconds)
                hello = _exactly(peer, 20)
                if hello[:16] == key:
                    peers[int.from_bytes(hello[16:], "big")] = peer
                else:  # a stranger
                    peer.close()
        return cls(peers, seconds)

    def leave(self, error: BaseException | None) -> None:
        """Leave the other processes: normally, or because of an error, which ends them too."""
        with self.leaving:
            self.done.set()
            self._tell("bye" if error is None else f"failed {_one_line(error)}")
        self.close()

    def close(self) -> None:
        _open.discard(self)
        for peer in self.peers.values():
            with suppress(OSError):
                peer.close()

    def _tell(self, word: str) -> None:
        for peer in self.peers.values():
            with suppress(OSError):
                peer.send(f"{word}\n".encode())

    def _run(self) -> None:
        heard = dict.fromkeys(self.peers, time.monotonic())
        before = time.monotonic()
        with selectors.DefaultSelector() as selector:
            for number, peer in self.peers.items():
                selector.register(peer, selectors.EVENT_READ, number)
            while heard and not self.done.is_set():
                ready = selector.select(self.beat)
                now = time.monotonic()
                if now - before > 3 * self.beat:  # it is this process that was stopped, or the whole machine
                    heard = {number: at + (now - before) for number, at in heard.items()}
                before = now
                self._tell("")
                for number in [key.data for key, _ in ready]:
                    heard[number] = now
                    if not self._listen(number):
                        selector.unregister(self.peers[number])
                        del heard[number]
                for number, at in heard.items():
                    if now - at > self.seconds and number not in self.lost:
                        self.lost[number] = (
                            f"has not answered for {self.seconds:g} seconds: it was stopped, or its machine is down"
                        )
                if self.lost:
                    self._end_for_lost()

    def _listen(self, number: int) -> bool:
        """Receive messages of a process; return False once its connection is closed."""
        try:
            got = self.peers[number].recv(4096)
        except BlockingIOError:
            return True
        except OSError:
            got = b""
        *lines, self.read[number] = (self.read[number] + got).split(b"\n")
        for line in lines:
            word, _, rest = line.decode("utf-8", "replace").partition(" ")
            if word == "bye":
                return False
            if word == "failed":
                self._end_for_failure(number, rest)
            if word == "lost":
                which, _, what = rest.partition(" ")
                self.lost.setdefault(int(which), what)
        if not got:
            self.lost.setdefault(number, "has ended: it was killed, or has failed")
        return bool(got)

    def _end_for_lost(self) -> None:
        """End because processes were lost; the remaining process with the lowest rank prints the message."""
        with self.leaving:
            if self.done.is_set():
                return
            for number, what in self.lost.items():
                self._tell(f"lost {number} {what}")
            time.sleep(SETTLED)  # learn of processes lost at the same moment
            left = {rank(), *(number for number, peer in self.peers.items() if not _closed(peer))} - set(self.lost)
            if rank() in self.lost:  # the others count this process as lost, and have printed the message
                _end(None)
            number, what = next(iter(self.lost.items()))
            again = f"start all processes again with {option('resume')}"
            line = f"process {number} of {world()} {what}; the last checkpoint is kept: {again}"
            _end(line if rank() == min(left) else None)

    def _end_for_failure(self, number: int, what: str) -> None:
        """End because another process failed with an error; process 0 prints it."""
        if self.done.wait(GRACE):  # this process ended by itself with the same error
            return
        with self.leaving:
            if not self.done.is_set():
                _end(f"process {number} of {world()}: {what}" if rank() == 0 else None)


_open: set[Watch] = set()


def _forget() -> None:
    """Close the connections in a forked child, so that the end of its parent is noticed."""
    for watch in list(_open):
        watch.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


@contextmanager
def watched(seconds: float, device: torch.device) -> Iterator[None]:
    """Watch the other processes during the block. This process ends if one is lost or fails."""
    if world() == 1 or _open:
        yield
        return
    with joining(seconds):
        watch = Watch.of_all(seconds, device)
    try:
        with _unhurried(watch):
            try:
                yield
            except Exception as error:
                if not isinstance(error, TessellaError):  # perhaps the backend noticed a lost process
                    watch.thread.join(2 * GRACE)
                raise
    except BaseException as error:
        watch.leave(error)
        raise
    watch.leave(None)


@contextmanager
def _unhurried(watch: Watch) -> Iterator[None]:
    """Delay SIGTERM of a launcher until this process has reported the lost one."""

    def note(number: int, frame: Any) -> None:
        if not watch.lost:
            signal.signal(number, before)
            os.kill(os.getpid(), number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _own_address() -> str:
    """Return the address of this machine on its route to process 0."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((os.environ.get("MASTER_ADDR", "127.0.0.1"), int(os.environ.get("MASTER_PORT", "29500"))))
            return probe.getsockname()[0]
        except OSError:
            return "127.0.0.1"


def _exactly(peer: socket.socket, count: int) -> bytes:
    got = b""
    while len(got) < count and (more := peer.recv(count - len(got))):
        got += more
    return got


def _closed(peer: socket.socket) -> bool:
    """Return whether the other end has closed the connection."""
    try:
        return not peer.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _one_line(error: BaseException) -> str:
    text = error.message if isinstance(error, TessellaError) else str(error)
    return " ".join(text.split()) or type(error).__name__


def _end(line: str | None) -> NoReturn:
    """End the process at once, even if other threads are blocked, after printing the message."""
    if line is not None:
        with suppress(OSError):
            os.write(2, f"tessella: {on_command_line(line)}\n".encode())
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(STATUS)
