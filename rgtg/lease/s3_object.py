"""The file of a lease on S3: an object that changes by conditional writes."""

from typing import Any

from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    ResponseStreamingError,
    SSLError,
)
from urllib3.exceptions import HTTPError

from rgtg.errors import TransientError, UserError
from rgtg.lease.holder import MAX_BYTES, parsed
from rgtg.storage_errors import AUTHORITY


class _NoConditions(Exception):
    """The store does not support conditional writes."""


class S3Object:
    """An object that changes by conditional writes."""

    def __init__(self, uri: str) -> None:
        import boto3

        bucket, _, key = uri.removeprefix("s3://").partition("/")
        # Short timeouts: answers must come well before the lease expires.
        config = Config(connect_timeout=5, read_timeout=5, retries={"total_max_attempts": 2})
        self.client, self.object = boto3.client("s3", config=config), {"Bucket": bucket, "Key": key}
        self.uri = uri

    def read(self) -> tuple[dict[str, Any] | None, str | None]:
        answer = self._ask("get_object")
        return (parsed(answer["Content"])[0], answer["ETag"]) if answer else (None, None)

    def replace(self, content: bytes, version: str | None) -> str | None:
        condition = {"IfMatch": version} if version else {"IfNoneMatch": "*"}
        try:
            answer = self._ask("put_object", Body=content, **condition)
        except _NoConditions:  # without conditional writes, reading first is the best there is
            answer = self._ask("put_object", Body=content) if self.read()[1] == version else None
        return str(answer["ETag"]) if answer else None

    def delete(self, version: str) -> None:
        if self.read()[1] == version:
            self._ask("delete_object")

    def _ask(self, name: str, **options: Any) -> dict[str, Any] | None:
        """The store's answer; None where the object does not exist, or its version is not the expected one."""
        try:
            try:
                return self._answer(name, options)
            except (
                IncompleteReadError,
                ResponseStreamingError,
                HTTPError,
            ):  # while a body is read, which botocore does not retry
                return self._answer(name, options)
        except ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            code = error.response.get("Error", {}).get("Code", "")
            if code == "NoSuchKey" or status in (409, 412):
                return None
            if status == 501:
                raise _NoConditions from error
            message = f"cannot reach {self.uri!r}: {code or status}"
            if status in (400, 401, 403, 404):
                raise UserError(message) from error
            raise TransientError(f"{message}; try again later") from None
        except SSLError as error:
            raise UserError(f"cannot reach {self.uri!r}: {error}{AUTHORITY}") from None
        except (NoCredentialsError, PartialCredentialsError, ProfileNotFound) as error:
            raise UserError(f"cannot reach {self.uri!r}: {error}") from error
        except (BotoCoreError, HTTPError) as error:
            raise TransientError(f"cannot reach {self.uri!r}: {error}; try again later") from None

    def _answer(self, name: str, options: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = getattr(self.client, name)(**self.object, **options)
        if "Body" in answer:
            answer["Content"] = answer["Body"].read(MAX_BYTES)
        return answer
