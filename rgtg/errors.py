"""What a user's mistake raises: its text is the whole answer. No credentials are in it."""

import os
import re

# Of a URL: what stands before @, but for a lone user of hdfs:// and the like; and parameters that sign or open. Of
# headers: what follows.
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
_SHORTEST = 8  # a value of the environment that is shorter is as likely a word


def without_url_credentials(text: str) -> str:
    return _PARAMETER.sub(r"\1=***", _USER_INFO.sub("***", text))


def redacted(text: str) -> str:
    """`text` without the credentials in it: those of URLs and headers, and values of the environment's secrets."""
    text = _HEADER.sub(r"\1\2\3***", without_url_credentials(text))
    for name, value in os.environ.items():
        if len(value.strip()) >= _SHORTEST and _SECRET_NAMES.search(name) and not os.path.isabs(value):
            text = text.replace(value.strip(), "***")
    return text


class UserError(Exception):
    """What is wrong, where, and what to do, in one sentence. Commands print it and exit with 2."""

    def __init__(self, sentence: str) -> None:
        super().__init__(redacted(printable(sentence)))


class TransientError(Exception):
    """Something outside does not answer; the same command may well work later. Printed too, and the exit code is 1."""

    def __init__(self, sentence: str) -> None:
        super().__init__(redacted(printable(sentence)))


class RowError(UserError):
    """The mistake is in one row of the data: that row is marked with the sentence, and the rest goes on."""


def printable(text: str) -> str:
    """Text as one line that any terminal and log can take: names of files, ids and keys may hold anything."""
    line = " ".join(text.splitlines())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def first_line(error: BaseException) -> str:
    """What an exception says, as part of a sentence; some say nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
