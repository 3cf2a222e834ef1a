"""The log of a job, one line with the time per event. Tables and closing lines are printed by the command itself."""

import logging
import time


class _Printed(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), flush=True)


log = logging.getLogger("rgtg")  # the library logs to it too
if not log.handlers:
    handler = _Printed()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)


class Ticker:
    """Says how far a loop has come, every ten seconds."""

    def __init__(self, seconds: float = 10.0) -> None:
        self.seconds, self.said = seconds, time.monotonic()

    def __call__(self, text: str) -> None:
        if time.monotonic() - self.said >= self.seconds:
            self.said = time.monotonic()
            log.info(text)
