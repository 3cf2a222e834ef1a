"""The constants that can be measured are there, and are tried beside their own value."""

from importlib import import_module

import pytest

from pipelines.benchmarks.constants import CONSTANTS


@pytest.mark.parametrize("name", CONSTANTS)
def test_a_constant_is_tried_beside_its_value(name):
    constant = CONSTANTS[name]
    assert getattr(import_module(constant.module), name) in constant.values
    assert len(set(constant.values)) > 1
