"""The log of a job: a line with its time for all that happens. A command prints its tables and last words itself."""

import logging


class _Printed(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), flush=True)


log = logging.getLogger("rgtg")  # what the library logs comes here too
if not log.handlers:
    handler = _Printed()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
