"""One file a job; each is `python -m pipelines.<job> --config FILE [key=value ...]`, and a command of `rgtg`."""

import os

# For every node that goes, Ray says dozens of times on a job's log, in colours, what it does about it. Only a node
# without memory left is for people to mend. It is said here, since Ray reads it when it is imported.
if not os.environ.get("RGTG_RAY_LOGS"):
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", r"(?s)\A(?!.*memory)")
    os.environ.setdefault("RAY_DEDUP_LOGS_AGG_WINDOW_S", "0")  # "repeated 5x" would be in colours
    os.environ.setdefault("RAY_COLOR_PREFIX", "0")
