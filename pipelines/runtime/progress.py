"""Progress of a job as lines that read well in a log: Ray's workers report, the driver prints.

Ray's own messages stay in its log files. The log of a job holds its progress and errors, and nothing else.
"""

import threading
import time

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.runtime.job_log import log

EVERY_S = 5.0
MANY = 0.5  # of completions that are cut off


@ray.remote(num_cpus=0)
class ProgressActor:
    """Collects the counts and lines that workers report."""

    def __init__(self) -> None:
        self.totals: dict[str, float] = {}
        self.lines: list[str] = []
        self.first: float | None = None

    def add(self, **amounts: float) -> None:
        """Add to the totals of actors, rows, errors, tokens, completions, cut off and scored ones, and scores.

        The total `seconds` is the time since the first actor was ready: rates leave out the loading of models.
        """
        now = time.monotonic()
        self.first = self.first or now
        self.totals["seconds"] = now - self.first
        for name, amount in amounts.items():
            self.totals[name] = self.totals.get(name, 0.0) + amount

    def log(self, line: str) -> None:
        """Queue a line for the driver to print."""
        self.lines.append(line)

    def drain(self) -> tuple[dict[str, float], list[str]]:
        """The totals, and the lines since the last call."""
        lines, self.lines = self.lines, []
        return self.totals, lines


class Progress:
    """A context manager around the work: a thread of the driver prints the lines and totals that the actor collects.

    With `num_rows` it also prints the finished rows, every few seconds while they increase.
    """

    def __init__(self, name: str, num_rows: int = 0) -> None:
        self.name, self.num_rows = name, num_rows
        # On the driver's machine: other nodes may leave, and must take nothing with them but unfinished rows.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.actor = ProgressActor.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
        self.totals: dict[str, float] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._report, daemon=True)

    def __enter__(self) -> "Progress":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()
        ray.kill(self.actor)

    def _report(self) -> None:
        rows, ended = -1.0, False
        while not ended:
            ended = self._ended.wait(EVERY_S)
            try:
                self.totals, lines = ray.get(self.actor.drain.remote(), timeout=60)
            except RayError:  # a lost report must not stop the work
                continue
            for line in lines:
                log.info(line)
            if self.num_rows and (ended or self.totals.get("rows", 0.0) != rows):
                rows = self.totals.get("rows", 0.0)
                log.info(self._line())

    def _line(self) -> str:
        total = self.totals.get
        rows, tokens, scored, errors = (int(total(n, 0)) for n in ("rows", "tokens", "scored", "errors"))
        if not total("actors"):
            return f"{self.name}: {self.num_rows:,} prompts to complete, loading the models"
        seconds = max(total("seconds", 0.0), 1e-9)
        parts = [
            f"{rows:,}/{self.num_rows:,} prompts",
            f"{tokens / seconds:,.0f} tokens/s",
            f"{(self.num_rows - rows) * seconds / rows:,.0f} s left" if rows else "waiting for the first rows",
        ]
        if scored:
            parts.append(f"mean score {total('score', 0) / scored:+.3f}")
        if total("cut", 0.0) > MANY * total("completions", 0.0):
            parts.append(f"{int(total('cut', 0)):,} of {int(total('completions', 0)):,} cut off at max_new_tokens")
        if errors:
            parts.append(f"{errors:,} with an error")
        return f"{self.name}: {', '.join(parts)}"
