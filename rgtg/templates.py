"""Rendering of chat templates by transformers, in a separate process with bounded memory and time."""

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack, suppress
from datetime import date
from pathlib import Path
from typing import Any

from rgtg.errors import RowError, UserError

MAX_TEMPLATE = 1 << 20  # characters; the longest known ones have about 20,000
PROGRAM = Path(__file__).with_name("template_process.py")
WORD = [{"role": "user", "content": "word"}]


class Renderer:
    """Renders conversations for all threads of this process, one at a time; its subprocess starts on first use."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.parents: list[subprocess.Popen[bytes] | None] = []  # kept alive: closing them would flush their buffers
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        """After a fork: a shared subprocess would mix up replies, and a thread that is gone may hold the lock."""
        self.parents.append(self.process)
        self.lock, self.process = threading.Lock(), None

    def render(self, template: str, messages: list[Any], day: date, options: dict[str, Any], name: str) -> str:
        """The text of a conversation. `options` are those of transformers, and the special tokens; `name` the model.

        Raises UserError for a template that is broken or exceeds its bounds for any conversation, RowError where it
        refuses this one or exceeds them for it.
        """
        if len(template) > MAX_TEMPLATE:
            raise UserError(
                f"the chat template of {name!r} has {len(template)} characters, and {MAX_TEMPLATE} are allowed; "
                "give a model with a shorter one"
            )
        request = {"template": template, "messages": messages, "date": day.isoformat(), "options": options}
        # A value that JSON does not have reaches the template as the name of its type.
        line = json.dumps(request, default=lambda value: f"<{type(value).__name__}>").encode()
        word = json.dumps(request | {"messages": WORD, "options": {**options, "continue_final_message": False}})
        with self.lock:
            reply = self._ask(line)
            if "fails" in reply and "fails" in self._ask(word.encode()):  # for any conversation
                raise UserError(
                    f"the chat template of {name!r} {reply['fails']}, even for one word; give a model with another one"
                )
        if "fails" in reply:
            raise RowError(f"the chat template {reply['fails']} for the prompt")
        if "broken" in reply:
            raise UserError(f"the chat template of {name!r} is broken: {reply['broken']}")
        if "refuses" in reply:
            raise RowError(f"the chat template refuses the prompt: {reply['refuses']}")
        return reply["text"]

    def _ask(self, line: bytes) -> dict[str, str]:
        """The reply to a request; `fails` where the subprocess ended while it rendered."""
        answer = self._answer(line)
        if isinstance(answer, int) and answer != -signal.SIGPROF:  # it may have been killed from outside
            answer = self._answer(line)
        if isinstance(answer, dict):
            return answer
        return {"fails": "takes too long" if answer == -signal.SIGPROF else f"ends its process (code {answer})"}

    def _answer(self, line: bytes) -> dict[str, str] | int:
        """The reply of the subprocess, or its exit code."""
        if self.process is None:
            self.process = _start()
        process, self.process = self.process, None  # set again after the reply: a signal may interrupt us here
        with ExitStack() as stack:
            stack.callback(_end, process)
            assert process.stdin
            assert process.stdout
            with suppress(BrokenPipeError):
                process.stdin.write(line + b"\n")
                process.stdin.flush()
                answer = process.stdout.readline()
                if answer.endswith(b"\n"):
                    stack.pop_all()
                    self.process = process
                    return json.loads(answer)
            return process.wait()


def _start() -> "subprocess.Popen[bytes]":
    """Start the subprocess with the module path of this one and nothing else of its environment: no credentials."""
    environment = {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "OPENBLAS_NUM_THREADS": "1",  # every thread takes address space
        "HF_HUB_OFFLINE": "1",
    }
    if "LD_LIBRARY_PATH" in os.environ:
        environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    return subprocess.Popen(
        [sys.executable, "-P", str(PROGRAM)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,  # signals of the terminal are for the parent
    )


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    with suppress(BrokenPipeError):
        process.communicate()


renderer = Renderer()
