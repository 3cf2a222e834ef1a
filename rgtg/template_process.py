"""The process that renders chat templates for `templates.py`: a line of JSON in, a line of JSON out.

A template is a program that comes with a model. It may run forever, or fill the memory, within one call into C that no
other thread can interrupt; then the kernel ends this process. The file runs as a script and imports nothing of this
package, which would take seconds and hundreds of megabytes.
"""

import json
import resource
import signal
import sys
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from transformers.utils import chat_template_utils

MEMORY = 1 << 30  # bytes of address space, the interpreter's 200 MB included
CPU_S = 5.0  # CPU time, which does not depend on the load of the machine
MAX_TEXT = 1 << 24  # characters; a context of a million tokens has about four million

FULL = {"fails": f"takes more than {MEMORY >> 30} GiB of memory"}


def answer(request: dict[str, Any]) -> dict[str, str]:
    """`text`, or why there is none: the template is `broken`, `refuses` the conversation, or `fails` a bound."""
    template, options = request["template"], request["options"]
    try:
        # In place of the global function of transformers, which gives the time of rendering.
        midnight = datetime.fromisoformat(request["date"])
        compiled = chat_template_utils._compile_jinja_template(template)
        compiled.environment.globals["strftime_now"] = midnight.strftime
    except MemoryError:
        return FULL
    except Exception as error:
        return {"broken": _line(error)}
    try:
        rendered = chat_template_utils.render_jinja_template([request["messages"]], chat_template=template, **options)
        text = rendered[0][0]
    except MemoryError:
        return FULL
    except Exception as error:
        return {"refuses": _line(error)}
    if len(text) > MAX_TEXT:
        return {"fails": f"makes a text of {len(text)} characters"}
    return {"text": text}


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:500]


def main() -> None:
    with suppress(ValueError, OSError):  # not every system has this limit
        # Some modules map gigabytes of address space without using them: half of MEMORY is on top of those.
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limit = max(MEMORY, mapped + MEMORY // 2)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, CPU_S)
        try:
            reply = json.dumps(answer(json.loads(line)))
        except MemoryError:
            reply = json.dumps(FULL)
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(reply + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
