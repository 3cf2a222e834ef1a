"""One file a job; each is `python -m pipelines.<job> --config FILE [key=value ...]`, and a command of `rgtg`."""

import os

# For every node that goes, Ray says dozens of times on a job's log, in colours, what it does about it. Only a node
# without memory left is for people to mend. It is said here, since Ray reads it when it is imported.
if not os.environ.get("RGTG_RAY_LOGS"):
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", r"(?s)\A(?!.*memory)")
    os.environ.setdefault("RAY_DEDUP_LOGS_AGG_WINDOW_S", "0")  # "repeated 5x" would be in colours
    os.environ.setdefault("RAY_COLOR_PREFIX", "0")

# For each table of Parquet files Ray starts 32 processes that read footers: seconds of every stage on two cores. One
# is enough, which reads those of a batch of files at once.
os.environ.setdefault("RAY_DATA_PARQUET_FOOTER_NUM_ACTORS", "1")
os.environ.setdefault("RAY_DATA_PARQUET_FOOTER_BATCH_SIZE", "128")
