"""An object store (S3) as a file system: how long it is asked, and what its answers mean."""

import os
import random
import re
import time
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pyarrow.fs as pafs

from rgtg.errors import TransientError, UserError

T = TypeVar("T")

# pyarrow's own three attempts and three silent seconds are few for a store under load. By these, one that is down is
# given up after some fifteen seconds where it says so, and after two minutes where it is silent.
ATTEMPTS, PAUSE_S = 5, 1.0  # with pauses of up to 1, 2, 4 and 8 s between them
CONNECT_S, SILENT_S = 5.0, 20.0

# Words of a store that the same call would hear again. A HEAD has no body, so that its status is all there is.
LASTING = re.compile(
    r"HTTP status (301|40[0134])\b|Bucket '.*' not found|AWS Error (NO_SUCH_BUCKET|NO_SUCH_KEY|ACCESS_DENIED|"
    "INVALID_ACCESS_KEY_ID|INVALID_CLIENT_TOKEN_ID|SIGNATURE_DOES_NOT_MATCH|UNRECOGNIZED_CLIENT)"
)
OF_CERTIFICATES = re.compile(r"curlCode: (51|60|77)\b")
AUTHORITY = "; if the certificate is your own, name the file of its authority in AWS_CA_BUNDLE"
OF_CREDENTIALS = re.compile(r"HTTP status 40[013]\b|ACCESS_DENIED|ACCESS_KEY|TOKEN|SIGNATURE|UNRECOGNIZED_CLIENT")


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


def failure_of_store(what: str, text: str) -> UserError | TransientError | None:
    """What an object store answered, of the words of an exception; None where it was not a store that failed.

    They are a store's only in what pyarrow says, which may stand among the lines of a worker's traceback.
    """
    found = re.search(r"(When [^\n]*AWS Error|Bucket '[^\n]*' not found|AWS Error)[^\n]*", text)
    if not found:
        return None
    said = found[0].removesuffix(" To create buckets, enable the allow_bucket_creation option.").rstrip(".")
    answer = said[max(0, said.find("AWS Error")) :]  # what stands before it are names of the user's own
    if OF_CERTIFICATES.search(answer):
        return UserError(f"{what}: {said}{AUTHORITY}")
    if "RequestTimeout" in answer or not LASTING.search(answer):
        return TransientError(f"{what}: {said}; try again later")
    hint = "; are the credentials of the environment right, and not expired?" if OF_CREDENTIALS.search(answer) else ""
    return UserError(f"{what}: {said}{hint}")
