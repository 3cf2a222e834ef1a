"""Jobs on a cluster that grows from nothing: the short form of `make autoscaling`."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1800)
def test_jobs_fail_are_stopped_and_go_on_from_no_nodes(tmp_path):
    command = [sys.executable, "-m", "tests.autoscaling", "--short", "--samples=4", f"--keep={tmp_path}"]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[1])  # of its own: it sets up Ray's environment
    try:
        assert process.wait() == 0
    finally:
        process.terminate()
        process.wait()
