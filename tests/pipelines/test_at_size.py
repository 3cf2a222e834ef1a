"""Intake of a million prompts, beside one of a hundred thousand."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

# Prints the seconds of an intake, and by how many MiB its peak is above the start.
INTAKE = """
import sys, threading, time
from pathlib import Path
from pipelines import prompts
from rgtg.input_files import find

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) / 256

start = peak = resident()
done = threading.Event()

def watch():
    global peak
    while not done.wait(0.02):
        peak = max(peak, resident())

threading.Thread(target=watch, daemon=True).start()
counts = prompts.take_in(find([sys.argv[1]]), sys.argv[2], 0.0)
done.set()
assert counts["rows"] == int(sys.argv[3]), counts
print(peak - start)
"""
FILE_ROWS = 5_000


def write(folder: Path, num_files: int) -> None:
    folder.mkdir()
    for number in range(num_files):
        words = " ".join(f"word{i}" for i in range(250))
        rows = ({"prompt": f"{number} {i} {words}", "topic": "x"} for i in range(FILE_ROWS))
        (folder / f"{number:05d}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_memory_does_not_grow_with_the_number_of_prompts(tmp_path):
    peaks = []
    for num_files in (20, 200):
        write(tmp_path / str(num_files), num_files)
        arguments = [str(tmp_path / str(num_files)), str(tmp_path / f"out-{num_files}"), str(num_files * FILE_ROWS)]
        done = subprocess.run([sys.executable, "-c", INTAKE, *arguments], capture_output=True, text=True, check=True)
        peaks.append(float(done.stdout.split()[-1]))
    assert peaks[1] <= 2 * peaks[0], peaks
