"""What failed on a worker is said by its own last words."""

import pytest
from ray.exceptions import RayTaskError

from pipelines.runtime import ray_session
from rgtg.errors import TransientError, UserError

TRACEBACK = """\
Traceback (most recent call last):
  File "engine.py", line 5, in step
    embeddings[ids]
IndexError: index 512 is out of range
"""
ADVICE = """
The task failed. To retry, set max_retries, or see https://docs.ray.io/ for fault tolerance.
This may be a system error: set RAY_x=1
"""


@pytest.mark.parametrize("text", [TRACEBACK, TRACEBACK + ADVICE, f"ray::Generator()\n{TRACEBACK}\n\n{ADVICE * 3}"])
def test_the_reason_and_not_the_advice(text):
    with (
        pytest.raises(TransientError, match=r"^generation failed: IndexError: index 512 is out of range$"),
        ray_session.translate_ray_errors("generation"),
    ):
        raise RayTaskError("f", text, ValueError("x"))


def test_an_exception_without_words(monkeypatch):
    with (
        pytest.raises(TransientError, match="pyo3_runtime.PanicException: regex failed"),
        ray_session.translate_ray_errors("x"),
    ):
        raise RayTaskError("f", "Traceback:\n  x\npyo3_runtime.PanicException: regex failed\n" + ADVICE, ValueError())


def test_an_exception_of_any_name():
    text = "Traceback:\n  x\nrgtg.input_files.Unreadable: the file is empty\n" + ADVICE
    with (
        pytest.raises(TransientError, match="^x failed: rgtg.*: the file is empty$"),
        ray_session.translate_ray_errors("x"),
    ):
        raise RayTaskError("f", text, ValueError())


def test_a_mistake_of_the_user_is_its_sentence():
    text = TRACEBACK + "rgtg.errors.UserError: the model is none\n" + ADVICE
    with pytest.raises(UserError, match="^the model is none$"), ray_session.translate_ray_errors("x"):
        raise RayTaskError("f", text, ValueError("x"))
