"""The log of a job, one line with the time per event. Tables and closing lines are printed by the command itself."""

import logging


class _Printed(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), flush=True)


log = logging.getLogger("rgtg")  # the library logs to it too
if not log.handlers:
    handler = _Printed()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
