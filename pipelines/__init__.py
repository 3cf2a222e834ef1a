"""Jobs on Ray: `rgtg <job>`, or `python -m pipelines.<job> --config FILE [section.key=value ...]`."""

import os

# Ray prints dozens of colored lines on a job's log when a node leaves. Only a node that is out of memory needs a
# person. The variables are set here because Ray reads them when it is imported.
if not os.environ.get("RGTG_RAY_LOGS"):
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", r"(?s)\A(?!.*memory)")
    os.environ.setdefault("RAY_DEDUP_LOGS_AGG_WINDOW_S", "0")  # "repeated 5x" would be colored
    os.environ.setdefault("RAY_COLOR_PREFIX", "0")

# Ray starts 32 processes to read the footers of each Parquet table, which costs every stage seconds on two cores. One
# process is enough: it reads the footers of a batch of files at once.
os.environ.setdefault("RAY_DATA_PARQUET_FOOTER_NUM_ACTORS", "1")
os.environ.setdefault("RAY_DATA_PARQUET_FOOTER_BATCH_SIZE", "128")
