"""S3 as a pyarrow file system: where the environment says that it is, and how often and how long it is asked."""

import os
import random
import time
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pyarrow.fs as pafs

T = TypeVar("T")

# pyarrow's own three attempts and three silent seconds are few for a store under load. By these, one that is down is
# given up after some fifteen seconds where it says so, and after two minutes where it is silent.
ATTEMPTS, PAUSE_S = 5, 1.0  # with pauses of up to 1, 2, 4 and 8 s between them
CONNECT_S, SILENT_S = 5.0, 20.0


class RetryingS3FileSystem(pafs.S3FileSystem):
    """pyarrow's, which forgets its retries where it is sent to a worker."""

    def __reduce__(self) -> tuple[Any, ...]:
        _, (options,) = super().__reduce__()
        return connect, (options["region"], options["scheme"], options["endpoint_override"])


def filesystem() -> pafs.S3FileSystem:
    """The S3 that the environment gives: see storage.py."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    parts = urlsplit(endpoint or "https://")
    return connect(region, parts.scheme, parts.netloc)


def connect(region: str | None, scheme: str, endpoint: str) -> pafs.S3FileSystem:
    return RetryingS3FileSystem(
        region=region,
        scheme=scheme,
        endpoint_override=endpoint or None,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        connect_timeout=CONNECT_S,
        request_timeout=SILENT_S,  # without a byte
        tls_ca_file_path=os.environ.get("AWS_CA_BUNDLE") or None,  # as boto3 takes it
        allow_delayed_open=True,  # a small object in one request: nothing is left of it where that fails
    )


def retry_read(read: Callable[[], T]) -> T:
    """What `read` gives. It is tried again where pyarrow does not: a store's error that is longer than the piece that
    was asked for looks to it like one of its own making.
    """
    for attempt in range(1, ATTEMPTS):
        try:
            return read()
        except OSError as error:
            if "Failed to flush response stream" not in str(error):
                raise
        # A busy store is given time: longer after each failure, and drawn at random, so that workers which it turned
        # away together do not come back together.
        time.sleep(random.random() * PAUSE_S * 2 ** (attempt - 1))
    return read()
