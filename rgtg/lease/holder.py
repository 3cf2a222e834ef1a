"""The holder of a lease, as its file names it, and whether that process is alive. The file may hold anything."""

import errno
import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from rgtg.errors import printable

MAX_BYTES = 1 << 16  # of the file that are read
TEXTS = ("host", "id", "process")
NUMBERS = {"pid": 1 << 31, "began": 1 << 33, "count": 1 << 53}
LONGEST = 500  # characters of a text that are kept


def parsed(content: bytes) -> tuple[dict[str, Any] | None, str | None]:
    """The holder, as far as it can be read, and the version of the file; None for an empty file, just being made."""
    if not content:
        return None, None
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError):
        fields = None
    holder: dict[str, Any] = {}
    for name, value in fields.items() if isinstance(fields, dict) else ():
        if name in TEXTS and isinstance(value, str):
            holder[name] = printable(value[:LONGEST])
        elif name in NUMBERS and type(value) is int and 0 <= value < NUMBERS[name]:
            holder[name] = value
    return holder, content.decode(errors="replace")


def who(found: dict[str, Any] | None) -> str:
    if not found:
        return "another job"
    began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(found.get("began", 0)))
    return f"another job (process {found.get('pid')} on {found.get('host')}, since {began})"


def is_dead(holder: dict[str, Any]) -> bool:
    """Whether the holder is a process of this machine that has ended. False for other machines: nothing is known."""
    pid, process = holder.get("pid"), str(holder.get("process"))
    if not isinstance(pid, int) or not process.startswith(f"{_here()} "):
        return False
    return started(pid) != process


def _here() -> str:
    """An id of this boot of this machine and of the PID namespace."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


def started(pid: int) -> str | None:
    """An id of a process that includes its start time, since PIDs are reused; None where there is no such process."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        try:
            os.kill(pid, 0)
        except OSError as error:
            return None if error.errno == errno.ESRCH else f"{_here()} alive"
        return f"{_here()} alive"
    return None if status[0] == "Z" else f"{_here()} {status[19]}"
