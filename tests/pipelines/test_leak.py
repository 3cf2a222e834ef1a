"""An actor's memory stays as it is, however much it decodes."""

from types import SimpleNamespace

import psutil
import pyarrow as pa
import pytest

from pipelines.generate_actor import Generator
from rgtg.config import Generate, Models

BATCH, SAMPLES, COMPLETIONS, WARM_UP = 64, 8, 100_000, 25_000


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_memory_is_flat_over_a_hundred_thousand_completions(language_dir, reward_dir):
    progress = SimpleNamespace(add=SimpleNamespace(remote=lambda **amounts: None))
    settings = Generate(prompts=["x"], samples=SAMPLES, max_new_tokens=4, slots=64, block_rows=BATCH)
    generator = Generator(Models(language=language_dir, device="cpu"), reward_dir, settings, seed=0, progress=progress)
    resident = {}
    for done in range(0, COMPLETIONS, BATCH * SAMPLES):
        prompts = [f"prompt {done + i}, {'of some length ' * (i % 5)}" for i in range(BATCH)]
        table = pa.table({"prompt_id": prompts, "prompt": prompts, "error": pa.nulls(BATCH, pa.string())})
        assert generator(table)["error"].null_count == BATCH
        resident[done] = psutil.Process().memory_info().rss / 2**20
    warm = max(size for done, size in resident.items() if done < WARM_UP)
    late = min(size for done, size in resident.items() if done > COMPLETIONS - WARM_UP)
    assert late < warm + 16, f"{late - warm:.0f} MiB more"  # a kilobyte a completion would be 75
