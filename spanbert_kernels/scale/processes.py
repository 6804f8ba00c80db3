"""Processes that work for this one: started without its main module, and ended with it however it ends.

Those of `multiprocessing` would run a script without `if __name__ == "__main__"` again, and outlive a killed parent.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable
from typing import IO, Any, Protocol

_SERVE = "from spanbert_kernels.scale.processes import serve; serve()"


class WorkerDied(RuntimeError):
    """A process that did a part of the work is gone; the message says how."""


class Told(Protocol):
    """Who hears of a process: a value that it sent, or that it is gone, with None."""

    def __call__(self, process: Process, value: Any) -> None: ...


class Channel:
    """Both ways between a process and the one that started it.

    Args:
        incoming: what the other sends.
        outgoing: what it gets.
    """

    def __init__(self, incoming: IO[bytes], outgoing: IO[bytes]) -> None:
        self._incoming, self._outgoing = incoming, outgoing

    def send(self, value: Any) -> None:
        """Sends a value.

        Raises:
            BrokenPipeError: nobody is there.
        """
        pickle.dump(value, self._outgoing, pickle.HIGHEST_PROTOCOL)
        self._outgoing.flush()

    def receive(self) -> Any:
        """The next value.

        Raises:
            EOFError: nobody is there.
        """
        return pickle.load(self._incoming)


class Process:
    """A process that runs a function with an argument and a `Channel`.

    Args:
        function: "module:name".
        argument: its first.
        name: for messages.
        told: hears of what it sends, in a thread of its own; in the end None.
    """

    def __init__(self, function: str, argument: Any, name: str, told: Told) -> None:
        self.name, self._told = name, told
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-c", _SERVE]
        self._popen = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self._channel = Channel(self._popen.stdout, self._popen.stdin)
        self.send((function, argument))
        threading.Thread(target=self._listen, daemon=True).start()

    def send(self, value: Any) -> None:
        """Sends a value; a process that is gone gets none, which `told` hears."""
        with contextlib.suppress(BrokenPipeError):
            self._channel.send(value)

    def _listen(self) -> None:
        with contextlib.suppress(EOFError, OSError, ValueError, pickle.UnpicklingError):
            while True:
                self._told(self, self._channel.receive())
        self._told(self, None)

    def how_it_ended(self) -> WorkerDied:
        """Of a process that is gone, for who waited for it."""
        code = self._popen.wait()
        if code == -signal.SIGKILL:
            ended = "was killed, for want of memory perhaps"
        else:
            ended = f"ended with {f'signal {signal.Signals(-code).name}' if code < 0 else f'exit code {code}'}"
        return WorkerDied(f"{self.name} {ended}: what is whole stays, and the same command goes on")

    def end(self) -> None:
        """Ends it, whatever it does."""
        self._popen.kill()
        self._popen.wait()
        for stream in (self._popen.stdin, self._popen.stdout):
            with contextlib.suppress(OSError, AttributeError):
                stream.close()  # type: ignore[union-attr]


def serve() -> None:
    """What a process that was started runs; what it prints goes to standard error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is for the one that started it
    channel = Channel(os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb"))
    os.dup2(2, 1)
    with contextlib.suppress(EOFError, BrokenPipeError):
        name, argument = channel.receive()
        module, _, function = name.partition(":")
        getattr(importlib.import_module(module), function)(argument, channel)
    os._exit(0)  # nothing is left to do, and libraries may take their time


class Pool:
    """Processes that compute one function, each call on the one that has least to do.

    Args:
        function: "module:name" of a function of an argument and a `Channel`, which answers each value that it receives.
        argument: its first.
        count: of processes.
        name: of one of them, for messages.
    """

    def __init__(self, function: str, argument: Any, count: int, name: str) -> None:
        self._lock = threading.Lock()
        self._answers: dict[Process, queue.SimpleQueue[Any]] = defaultdict(queue.SimpleQueue)
        self._sent = dict.fromkeys((Process(function, argument, name, self._hear) for _ in range(count)), 0)

    def _hear(self, process: Process, value: Any) -> None:
        self._of(process).put(value)

    def _of(self, process: Process) -> queue.SimpleQueue[Any]:
        with self._lock:
            return self._answers[process]

    def submit(self, value: Any) -> Callable[[], Any]:
        """Begins a call; what this gives waits for its answer, and is called in the order of the calls.

        Raises:
            WorkerDied: by what it gives, if the process is gone.
        """
        process = min(self._sent, key=lambda each: self._sent[each])
        self._sent[process] += 1
        process.send(value)

        def answer() -> Any:
            found = self._of(process).get()
            self._sent[process] -= 1
            if found is None:
                raise process.how_it_ended()
            return found

        return answer

    def end(self) -> None:
        """Ends them."""
        for process in self._sent:
            process.end()
