"""Exceptions whose text is all that a user needs to see: one line, without credentials."""

import os
import re

# In a URL: the part before @, except a lone user name as in hdfs://user@host; and parameters with keys or signatures.
# In a header: its value.
_USER_INFO = re.compile(
    r"(?i)(?<=://)[^/\s@:'\"]*:[^\s'\"]*?(?=@)|(?:(?<=https://)|(?<=http://)|(?<=s3://))[^/\s'\"]*(?=@)"
)
_PARAMETER = re.compile(
    r"(?i)(?<=[?&])((?:x-amz-|x-goog-)?(?:signature|credential|security-token|algorithm)|awsaccesskeyid|sig|token|secret|"
    r"password|(?:api|access|secret)[_-]?key|key|access_token|hf_token)=[^&\s'\"]+"
)
_HEADER = re.compile(
    r"(?i)\b(authorization|x-amz-security-token|x-api-key)(['\"]?\s*[:=]\s*['\"]?)(bearer |basic )?[^\s'\",]+"
)
_SECRET_NAMES = re.compile(r"(?i)(key|token|secret|password|passwd|credentials)$")
_SHORTEST = 8  # a shorter value of the environment is as likely an ordinary word


def without_url_credentials(text: str) -> str:
    return _PARAMETER.sub(r"\1=***", _USER_INFO.sub("***", text))


def redacted(text: str) -> str:
    """`text` without credentials: those of URLs and headers, and the values of secret environment variables."""
    text = _HEADER.sub(r"\1\2\3***", without_url_credentials(text))
    for name, value in os.environ.items():
        if len(value.strip()) >= _SHORTEST and _SECRET_NAMES.search(name) and not os.path.isabs(value):
            text = text.replace(value.strip(), "***")
    return text


class UserError(Exception):
    """A user's mistake: what is wrong, where, and what to do, in one sentence. Commands print it and exit with 2."""

    def __init__(self, message: str) -> None:
        super().__init__(redacted(printable(message)))


class QualityError(UserError):
    """The data is written and not good: a gate or a rate of errors says so. Commands print it and exit with 3."""


class TransientError(Exception):
    """Something outside does not answer; the same command may work later. Commands print it and exit with 1."""

    def __init__(self, message: str) -> None:
        super().__init__(redacted(printable(message)))


class RowError(UserError):
    """A mistake in one row of the data: the row is marked with the message, and the job continues."""


def kind_of(reason: str) -> str:
    """A reason without its numbers and quoted values: rows that fail alike have one kind."""
    return re.sub(r"\d+", "N", re.sub(r"'[^']*'", "'...'", reason))


def printable(text: str) -> str:
    """`text` as one line that any terminal and log can show; names of files, ids and keys may hold anything."""
    line = " ".join(text.splitlines())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, or its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
