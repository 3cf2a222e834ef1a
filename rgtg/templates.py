"""Chat templates, rendered by transformers in a process of their own whose memory and time are bounded."""

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

MAX_TEMPLATE = 1 << 20  # characters; the longest of the field have some 20,000
PROGRAM = Path(__file__).with_name("template_process.py")
WORD = [{"role": "user", "content": "word"}]


class Renderer:
    """Renders for all threads of this process, one conversation at a time; its own process starts on first use."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.parents: list[subprocess.Popen[bytes] | None] = []  # never let go: that would write what is in a buffer
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        """Two processes that speak to one get each other's texts; and the lock may be a thread's that is no more."""
        self.parents.append(self.process)
        self.lock, self.process = threading.Lock(), None

    def render(self, template: str, messages: list[Any], day: date, options: dict[str, Any], name: str) -> str:
        """The text of a conversation. `options` are transformers' own, with the special tokens; `name` is the model's.

        Raises UserError for a template that is broken or does not end for any conversation, RowError for one that
        does not take this conversation.
        """
        if len(template) > MAX_TEMPLATE:
            raise UserError(
                f"the chat template of {name!r} has {len(template)} characters, and {MAX_TEMPLATE} are allowed; "
                "give a model with a shorter one"
            )
        request = {"template": template, "messages": messages, "date": day.isoformat(), "options": options}
        # What is no JSON reaches a template as its type's name, as with transformers.
        line = json.dumps(request, default=lambda value: f"<{type(value).__name__}>").encode()
        word = json.dumps(request | {"messages": WORD, "options": {**options, "continue_final_message": False}})
        with self.lock:
            reply = self._ask(line)
            if "fails" in reply and "fails" in self._ask(word.encode()):  # whatever the conversation
                raise UserError(
                    f"the chat template of {name!r} {reply['fails']}, even for one word; give a model with another"
                )
        if "fails" in reply:
            raise RowError(f"the chat template {reply['fails']} for the prompt")
        if "broken" in reply:
            raise UserError(f"the chat template of {name!r} is broken: {reply['broken']}")
        if "refuses" in reply:
            raise RowError(f"the chat template refuses the prompt: {reply['refuses']}")
        return reply["text"]

    def _ask(self, line: bytes) -> dict[str, str]:
        """The answer to a request; `fails` where its process ended over it."""
        answer = self._answer(line)
        if isinstance(answer, int) and answer != -signal.SIGPROF:  # somebody else may have killed it
            answer = self._answer(line)
        if isinstance(answer, dict):
            return answer
        return {"fails": "takes too long" if answer == -signal.SIGPROF else f"ends its process (code {answer})"}

    def _answer(self, line: bytes) -> dict[str, str] | int:
        """The answer of the process, or with which code it ended."""
        if self.process is None:
            self.process = _start()
        process, self.process = self.process, None  # back when it has answered: a signal may interrupt us in between
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
    """The process. It has the modules of this one, and nothing else of its environment: no credentials."""
    environment = {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "OPENBLAS_NUM_THREADS": "1",  # each thread takes address space
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
        start_new_session=True,  # the terminal's signals are for whoever waits for it
    )


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    with suppress(BrokenPipeError):
        process.communicate()


renderer = Renderer()
