"""The benchmarks run every way at a size that takes seconds; what it measures is not asserted."""

import subprocess
import sys

import pytest


def benchmark(*options):
    return subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "benchmark", *options],
        capture_output=True,
        text=True,
        timeout=1000,
    )


def test_every_way_is_measured():
    size = ["--hidden=32", "--layers=2", "--heads=4", "--kv-heads=2", "--vocabulary=100", "--threads=1"]
    result = benchmark("decoding", *size, "--refill", "--slots=1,8", "--new-tokens=4", "--repeats=1")
    assert result.returncode == 0, result.stderr
    first, second = result.stdout.split("8 at once")
    ways = ["unguided", "candidates", "next token", "transformers generate", "a cached row a candidate"]
    assert all(way in part for way in ways for part in (first, second))
    assert "no cache" in first, "the loop that is published for one prompt at a time"
    assert "no cache" not in second
    assert result.stdout.count("peak memory") == 2
    assert "80 guided completions" in second, "ten for each slot"


def test_training_is_measured():
    size = ["--hidden=32", "--layers=2", "--heads=4", "--kv-heads=2", "--vocabulary=100", "--threads=1"]
    result = benchmark("training", *size, "--pairs=4", "--batch=2", "--response-tokens=6", "--repeats=1")
    assert result.returncode == 0, result.stderr
    ways = ["partial objective", "full objective", "not grouped by length", "a row for every prefix"]
    assert all(way in result.stdout for way in ways)


@pytest.mark.slow
@pytest.mark.ray
def test_the_job_is_measured_beside_the_engine():
    small = ["--num-prompts=3", "--repeats=1", "--rows=70", "--actors=1,2", "--blocks=1"]
    result = benchmark("job", "--method=unguided", *small)
    assert result.returncode == 0, result.stderr
    assert "12 completions by unguided: the job" in result.stdout
    assert "70 prompts on a device that takes no time" in result.stdout
    assert "2 simulated device(s)" in result.stdout


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["decoding", "--slots=many"], "error: --slots is 'many'; write numbers above 0 with commas between them"),
        (["decoding", "--prompt-tokens=64"], "--prompt-tokens is '64'; write 2 numbers above 0"),
        (["decoding", "--heads=7"], "does not fit"),
        (["decoding", "--vocabulary=3", "--k=2"], "the vocabulary of 3 is too small"),
        (["decoding", "--dtype=fp8"], "the dtype 'fp8' is unknown"),
        (["decoding", "--repeats=0"], "greater than or equal to 1"),
        (["training", "--device=tpu"], "the device 'tpu' is unknown"),
    ],
)
def test_a_wrong_option_is_one_sentence(options, sentence):
    result = benchmark(*options)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr
