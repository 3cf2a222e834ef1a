"""Errors of disks and object stores as one sentence for a person: whose fault it is, and whether waiting may help."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from rgtg.errors import TransientError, UserError, first_line

# Words of a store that the same call would hear again. A HEAD has no body, so that its status is all there is.
LASTING = re.compile(
    r"HTTP status (301|40[0134])\b|Bucket '.*' not found|AWS Error (NO_SUCH_BUCKET|NO_SUCH_KEY|ACCESS_DENIED|"
    "INVALID_ACCESS_KEY_ID|INVALID_CLIENT_TOKEN_ID|SIGNATURE_DOES_NOT_MATCH|UNRECOGNIZED_CLIENT)"
)
OF_CERTIFICATES = re.compile(r"curlCode: (51|60|77)\b")
AUTHORITY = "; if the certificate is your own, name the file of its authority in AWS_CA_BUNDLE"
OF_CREDENTIALS = re.compile(r"HTTP status 40[013]\b|ACCESS_DENIED|ACCESS_KEY|TOKEN|SIGNATURE|UNRECOGNIZED_CLIENT")


@contextmanager
def translate_errors(what: str) -> Iterator[None]:
    """Errors of a disk or a store as one sentence: UserError for a mistake, TransientError where waiting may help."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        if of_store := failure_of_store(what, str(error)):
            raise of_store from None  # it says all of it
        first = first_line(error)
        if isinstance(error, OSError) and error.errno is not None:  # of a disk, whose path is said already
            first = os.strerror(error.errno)
        if _is_lasting(error):
            raise UserError(f"{what}: {first}") from error
        raise TransientError(f"{what}: {first}; try again later") from error


def _is_lasting(error: Exception) -> bool:
    """Whether the same call would fail again: no such file or permission; not a full disk."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EINTR)
    return isinstance(error, (FileNotFoundError, pa.ArrowException)) or "is a directory" in str(error)


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
