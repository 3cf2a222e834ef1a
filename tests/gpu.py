"""What holds on this machine's GPU and what does not, in about ten minutes: `make test-gpu`.

A line a check, with what was measured; the exit code is 1 where one of them does not hold. `--device cpu` tries the
script itself on a machine without a GPU, with smaller models.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ |= {"RAY_AUTH_MODE": "disabled", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import torch

from pipelines.benchmarks import models
from pipelines.runtime import gpus
from rgtg.decoding.decoder import Decoder
from rgtg.decoding.request import Request, Sequence
from rgtg.models.loading import load_config
from rgtg.models.memory import USABLE, plan

METHODS = {"unguided": None, "pargs": "reward", "farma": "next-token", "pargs-best-of-n": "reward"}
LAST_LINES = 12

# Sums of some thousand float32 terms, one behind the other in a few layers, differ by some hundred roundings. TF32,
# which a GPU takes for float32 where it is let, rounds to 2e-3.
FLOAT32 = 512 * torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class Machine:
    device: str
    folder: Path
    size: models.Size
    places: dict[str, str]  # of models of this size

    def decoder(self, method: str, dtype: str, *, device: str | None = None, **options) -> Decoder:
        kind = METHODS[method]
        place = self.places[kind] if kind else None
        options = {"k": 10, "slots": 32, "beta": 1.0, **options}
        return Decoder.load(
            self.places["language"], place, method, device=device or self.device, dtype=dtype, **options
        )

    def requests(self, number: int, new: int, longest: int = 400) -> list[Request]:
        lengths = torch.linspace(3, longest, number).long().tolist()
        texts = models.texts(lengths, self.size.vocabulary)
        return [Request(str(i), ids, ids, 2, new, seed=0) for i, ids in enumerate(texts)]


def decoded(decoder: Decoder, requests: list[Request]) -> list[Sequence]:
    decoder.engine.run(requests)
    return [request.sequences[sample] for request in requests for sample in range(request.samples)]


def marked_tests(machine: Machine) -> str:
    """The tests of the suite that need a GPU."""
    if machine.device == "cpu":
        return "left out on a CPU"
    return run([sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--durations=0", "--durations-min=60"])[-1]


def parity(machine: Machine) -> str:
    """Rewards and log-probabilities in float32 against a CPU's, as far as the same tokens were drawn."""
    largest, same, tokens = 0.0, 0, 0
    for method in ("unguided", "pargs", "farma"):
        ours, theirs = (
            decoded(machine.decoder(method, "float32", device=device), machine.requests(8, 16, longest=200))
            for device in (machine.device, "cpu")
        )
        for one, other in zip(ours, theirs, strict=True):
            common = os.path.commonprefix([one.token_ids, other.token_ids])
            same, tokens = same + len(common), tokens + len(other.token_ids)
            if len(common) == len(other.token_ids):
                largest = max(largest, abs(one.logprob - other.logprob) / max(1.0, abs(other.logprob)))
            scale = max([1.0, *map(abs, other.token_rewards)])
            for a, b in zip(one.token_rewards[: len(common)], other.token_rewards, strict=False):
                largest = max(largest, abs(a - b) / scale)
    said = f"largest difference {largest:.1e} of {FLOAT32:.1e} allowed, {same} of {tokens} tokens alike"
    # Two candidates that differ by less than a rounding may change places; what follows is another text.
    assert largest < FLOAT32, said
    assert same > 0.9 * tokens, said
    return said


def equal_bits(machine: Machine) -> str:
    """Completions in bfloat16 in any company and order, on rows that others used, by another engine."""
    for method in METHODS:
        decoder = machine.decoder(method, "bfloat16")
        together = decoded(decoder, machine.requests(40, 24))
        backwards = decoded(decoder, machine.requests(40, 24)[::-1])
        assert [backwards[i ^ 1] for i in range(79, -1, -1)] == together, f"{method}: the order of prompts counts"
        alone = decoded(decoder, machine.requests(40, 24)[7:8])
        assert alone == together[14:16], f"{method}: company counts"
        assert decoded(machine.decoder(method, "bfloat16"), machine.requests(40, 24)) == together, f"{method}: twice"
    return f"{len(METHODS)} methods, 80 completions each"


def graphs_against_eager(machine: Machine) -> str:
    """Steps by CUDA graphs give the tokens of eager steps, faster, and none was left aside."""
    if machine.device == "cpu":
        return "left out on a CPU"
    said = []
    for method in METHODS:
        found, seconds = [], []
        for wanted in (True, False):
            decoder = machine.decoder(method, "bfloat16", cuda_graphs=wanted)
            decoded(decoder, machine.requests(32, 48))  # warm
            began = time.monotonic()
            found.append(decoded(decoder, machine.requests(32, 48)))
            seconds.append(time.monotonic() - began)
            if wanted:
                assert decoder.engine.graphs, f"{method}: no graphs are used"
                assert decoder.engine.graphs.replays, f"{method}: no graph was kept"
        assert found[0] == found[1], f"{method}: graphs change a bit"
        said.append(f"{method} {seconds[1] / seconds[0]:.2f}x")
    return "eager seconds over those of graphs: " + ", ".join(said)


def no_waiting(machine: Machine) -> str:
    """A step launches its kernels without asking the device for a value."""
    if machine.device == "cpu":
        return "left out on a CPU"
    for method in METHODS:
        engine = machine.decoder(method, "bfloat16", cuda_graphs=False).engine
        for request in machine.requests(16, 24):
            engine.submit(request)
        engine.step()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            with torch.inference_mode():
                engine.language.begin_step()
                if engine.guidance:
                    engine.guidance.begin_step()
                engine._compute()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return f"{len(METHODS)} methods"


def memory(machine: Machine) -> str:
    """As many slots as the plan grants 8 GiB, on texts of the longest kind: never more than these."""
    if machine.device == "cpu":
        return "left out on a CPU"
    limit, longest, new = 8 * 2**30, 2304, 16
    configs = [load_config(machine.places[name], name) for name in ("language", "reward")]
    device = torch.device(machine.device)
    made = plan([(configs[0], longest), (configs[1], longest + 10)], torch.bfloat16, device, memory=limit, held=2048)
    slots = made.fitting(100_000)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    decoder = machine.decoder("pargs", "bfloat16", slots=slots)
    decoder.engine.reserve(longest, new)
    decoded(decoder, machine.requests(slots, new, longest=longest - new))
    peak = torch.cuda.max_memory_reserved()
    said = f"{slots} slots, {peak / 2**30:.2f} GiB at most, {limit * USABLE / 2**30:.2f} planned, 8 granted"
    assert peak <= limit, said
    return said


def speed(machine: Machine) -> str:
    """Tokens a second, by the benchmark of the product."""
    options = ["--slots", "1,8,32,128", "--dtype", "bfloat16", "--no-loops", "--device", machine.device]
    if machine.device == "cpu":
        options = [*options, "--slots", "1,8", "--new-tokens", "4", "--hidden", "64", "--layers", "2"]
    return "\n".join(run([sys.executable, "-m", "pipelines.cli", "benchmark", "decoding", *options]))


def night(machine: Machine) -> str:
    """A night on the sandbox; guided text must have more of the true reward."""
    settings = [f"run.root={machine.folder}", "run.id=night", f"models.device={machine.device}"]
    if machine.device == "cpu":
        settings += ["train_reward.epochs=1", "nightly.compare_objectives=false", "generate.max_new_tokens=16"]
    lines = run([sys.executable, "-m", "pipelines.cli", "nightly", *settings])
    return "\n".join(lines[-32:])


def run(command: list[str]) -> list[str]:
    """The lines that a command prints; its last ones where it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = done.stdout.strip().splitlines()
    assert not done.returncode, "\n".join([f"exit code {done.returncode}", *lines[-LAST_LINES:]])
    return lines or [""]


CHECKS: list[Callable[[Machine], str]] = [
    parity,
    equal_bits,
    graphs_against_eager,
    no_waiting,
    memory,
    marked_tests,
    speed,
    night,
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", nargs="*", default=[check.__name__ for check in CHECKS], help="names of checks")
    given = parser.parse_args()
    print(f"GPUs: {gpus.described()}; torch {torch.__version__}", flush=True)
    if given.device != "cpu" and not torch.cuda.is_available():
        sys.exit("there is no CUDA device; --device cpu tries the script itself")
    wrong, began = [], time.monotonic()
    size = models.Size(hidden=64, layers=2, vocabulary=512) if given.device == "cpu" else models.Size()
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine(given.device, Path(folder), size, models.write(Path(folder), size))
        for check in CHECKS:
            if check.__name__ not in given.only:
                continue
            start = time.monotonic()
            try:
                said, holds = check(machine), "holds"
            except Exception as error:
                said = str(error) if isinstance(error, AssertionError) else traceback.format_exc()
                holds = "DOES NOT HOLD"
                wrong.append(check.__name__)
            print(f"{check.__name__}: {holds} ({time.monotonic() - start:.0f} s): {said}", flush=True)
    print(f"{time.monotonic() - began:.0f} s; " + (f"{', '.join(wrong)} failed" if wrong else "all hold"))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
