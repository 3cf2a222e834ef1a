"""What is refused before Ray starts."""

from datetime import date
from types import SimpleNamespace

import pyarrow as pa
import pytest

from pipelines.runtime.fingerprints import InputDigests
from pipelines.runtime.job_context import JobContext
from pipelines.runtime.model_checks import check_models
from rgtg import storage, table_files
from rgtg.config import Config
from rgtg.errors import UserError


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (None, "has no chat template"),
        ("{% if %}", "the chat template of .* is broken"),
        ("{{ 'a' * 3000000000 }}", "takes more than 1 GiB of memory, even for one word"),
        ("{{ raise_exception('a system turn, please') }}", None),
    ],
)
def test_a_template_is_tried_before_a_night_of_messages(make_language, make_tokenizer, tmp_path, template, words):
    messages = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    prompts = pa.table({"prompt": pa.array([[{"role": "user", "content": "hi"}]], messages)})
    table_files.write_table(f"{tmp_path}/prompts/part.parquet", prompts)
    directory = SimpleNamespace(path=lambda *names: storage.join(str(tmp_path), *names), date=date(2024, 2, 29))
    settings = {"language": make_language(make_tokenizer(template=template)), "device": "cpu"}
    config = Config.model_validate({"models": settings, "generate": {"method": "unguided"}})
    job = JobContext(config, directory, InputDigests())
    if words:
        with pytest.raises(UserError, match=words):
            check_models(job, None)
    else:
        check_models(job, None)
