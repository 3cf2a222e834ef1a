"""S3 as a pyarrow file system: its address and credentials from the environment, its retries and timeouts."""

import os
import random
import time
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pyarrow.fs as pafs

T = TypeVar("T")

# pyarrow's default of three attempts and three silent seconds is little for a store under load. With these values a
# store that is down fails the call after about fifteen seconds where it says so, and two minutes where it is silent.
ATTEMPTS, PAUSE_S = 5, 1.0  # with pauses of up to 1, 2, 4 and 8 s between them
CONNECT_S, SILENT_S = 5.0, 20.0


class RetryingS3FileSystem(pafs.S3FileSystem):
    """S3FileSystem that keeps its retries and timeouts when it is pickled; pyarrow's own forgets them."""

    def __reduce__(self) -> tuple[Any, ...]:
        _, (options,) = super().__reduce__()
        return connect, (options["region"], options["scheme"], options["endpoint_override"])


def filesystem() -> pafs.S3FileSystem:
    """The S3 of the environment's endpoint, region and credentials."""
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
        request_timeout=SILENT_S,  # seconds without a byte
        tls_ca_file_path=os.environ.get("AWS_CA_BUNDLE") or None,  # the variable of boto3
        allow_delayed_open=True,  # a small object is one request: a failure leaves nothing behind
    )


def retry_read(read: Callable[[], T]) -> T:
    """The result of `read`, with retries that pyarrow leaves out.

    Where a store's error message is longer than the piece of the file that was requested, pyarrow takes it for an
    error of its own and does not retry.
    """
    for attempt in range(1, ATTEMPTS):
        try:
            return read()
        except OSError as error:
            if "Failed to flush response stream" not in str(error):
                raise
        # Exponential backoff with jitter: workers that a busy store refused together must not return together.
        time.sleep(random.random() * PAUSE_S * 2 ** (attempt - 1))
    return read()
