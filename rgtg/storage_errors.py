"""Errors of disks and object stores, translated: UserError where the user can fix it, TransientError where time may.

These are errors of pyarrow, as storage.py meets them; the lease has an S3 client of its own (lease/s3_object.py).
"""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from rgtg.errors import TransientError, UserError, first_line

# Answers of a store that a retry would get again. A HEAD request has no body: its status is all that is known.
LASTING = re.compile(
    r"HTTP status (301|40[0134])\b|Bucket '.*' not found|AWS Error (NO_SUCH_BUCKET|NO_SUCH_KEY|ACCESS_DENIED|"
    "INVALID_ACCESS_KEY_ID|INVALID_CLIENT_TOKEN_ID|SIGNATURE_DOES_NOT_MATCH|UNRECOGNIZED_CLIENT)"
)
OF_CERTIFICATES = re.compile(r"curlCode: (51|60|77)\b")
AUTHORITY = "; if your store has its own certificate authority, set AWS_CA_BUNDLE to its file"
CREDENTIALS = "; check that the credentials in the environment are right and have not expired"
OF_CREDENTIALS = re.compile(r"HTTP status 40[013]\b|ACCESS_DENIED|ACCESS_KEY|TOKEN|SIGNATURE|UNRECOGNIZED_CLIENT")


@contextmanager
def translate_errors(what: str) -> Iterator[None]:
    """Raise errors of a disk or a store as UserError or TransientError, whose message begins with `what`."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        if of_store := failure_of_store(what, str(error)):
            raise of_store from None  # its message is complete
        first = first_line(error)
        if isinstance(error, OSError) and error.errno is not None:  # of a disk: `what` names the path already
            first = os.strerror(error.errno)
        if _is_lasting(error):
            raise UserError(f"{what}: {first}") from error
        raise TransientError(f"{what}: {first}; try again later") from error


def _is_lasting(error: Exception) -> bool:
    """Whether a retry would fail too, as for a missing file or permission; a full disk may have room later."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EINTR)
    return isinstance(error, (FileNotFoundError, pa.ArrowException)) or "is a directory" in str(error)


def failure_of_store(what: str, text: str) -> UserError | TransientError | None:
    """The error of an object store in the text of an exception; None where no store failed.

    `text` is what pyarrow says, possibly somewhere in the traceback of a worker.
    """
    found = re.search(r"(When [^\n]*AWS Error|Bucket '[^\n]*' not found|AWS Error)[^\n]*", text)
    if not found:
        return None
    said = found[0].removesuffix(" To create buckets, enable the allow_bucket_creation option.").rstrip(".")
    answer = said[max(0, said.find("AWS Error")) :]  # the text before it has names that the user chose
    if OF_CERTIFICATES.search(answer):
        return UserError(f"{what}: {said}{AUTHORITY}")
    if "RequestTimeout" in answer or not LASTING.search(answer):
        return TransientError(f"{what}: {said}; try again later")
    return UserError(f"{what}: {said}{CREDENTIALS if OF_CREDENTIALS.search(answer) else ''}")
