"""The benchmark runs every way at a size that takes seconds; what it measures is not asserted."""

import subprocess
import sys


def benchmark(*options):
    return subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "benchmark", *options], capture_output=True, text=True, timeout=200
    )


def test_every_way_is_measured():
    size = ["--hidden=32", "--layers=2", "--heads=4", "--kv-heads=2", "--vocabulary=100", "--threads=1"]
    result = benchmark(*size, "--slots=1,8", "--new-tokens=4", "--repeats=1")
    assert result.returncode == 0, result.stderr
    first, second = result.stdout.split("8 at once")
    ways = ["unguided", "candidates", "next token", "transformers generate", "a cached row a candidate"]
    assert all(way in part for way in ways for part in (first, second))
    assert "no cache" in first, "the loop that is published for one prompt at a time"
    assert "no cache" not in second
    assert result.stdout.count("peak memory") == 2


def test_a_wrong_option_is_one_sentence():
    result = benchmark("--slots=many")
    assert result.returncode == 2
    assert result.stderr.strip() == "error: --slots is 'many'; write numbers with commas between them"
