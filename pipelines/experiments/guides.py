"""Reward models of the sandbox that guide, and what each has completed: by the product's own jobs, which resume."""

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, median
from typing import Any

from pipelines.experiments.labels import BEST_OF, OF_EACH, Rows, completed, held_out, prompts, scored, shuffled, truth
from rgtg import sandbox
from rgtg.decoding.decoder import Decoder

TIMED = 32  # prompts, four samples each, of a timing
REPEATS = 3


@dataclass(frozen=True)
class Guide:
    """One reward model and how it guides: as it is, with beta 0, or trained on shuffled labels."""

    seed: int
    kind: str
    out: Path

    @property
    def accuracy(self) -> dict[str, float]:
        """On held-out pairs, by score."""
        return self._made[1]["by_score"]

    @cached_property
    def _made(self) -> tuple[Rows, dict[str, Any]]:
        settings: dict[str, Any] = {"run.seed": self.seed, "generate.prompts": prompts(self.out)}
        if self.kind == "shuffled":
            settings["train_reward.pairs"] = shuffled(self.out, self.seed)
        if self.kind == "beta 0":
            settings["generate.beta"] = 0.0
            settings["models.reward"] = str(Guide(self.seed, "guide", self.out).reward_model)
        if self.kind != "guide":  # a control needs no more than guided against unguided
            settings |= {"generate.unguided_samples": OF_EACH, "generate.opposed_samples": 0}
        return completed(self.out, self.run_id, **settings)

    @property
    def run_id(self) -> str:
        return f"{self.kind.replace(' ', '-')}-{self.seed}"

    @property
    def reward_model(self) -> Path:
        return self.out / self.run_id / "reward_model"

    def rows(self, labels: str) -> Rows:
        """Scored by the guide, in the way that its training has chosen; in another way; or by the `truth`."""
        rows = self._made[0]
        if labels == "guide":
            return rows  # as the job has scored them
        return scored(rows, labels)

    def decoding(self) -> dict[str, float]:
        """What guidance itself gains over the language model and at which KL, how often a guided completion is better
        than an unguided one, whatever the scores say, and best-of-n by the score.
        """
        kept: dict[str, list[float]] = {name: [] for name in ("guided", "unguided", "best-of-n", "kl", "better")}
        for prompt, completions in self.rows("guide").items():
            guided, unguided = completions[:OF_EACH], completions[OF_EACH : OF_EACH + BEST_OF]
            of_guided, of_unguided = ([truth(prompt, c["text"]) for c in of] for of in (guided, unguided))
            kept["guided"] += of_guided
            kept["unguided"] += of_unguided
            kept["better"] += [(a > b) + 0.5 * (a == b) for a, b in zip(of_guided, of_unguided, strict=False)]
            if len(unguided) == BEST_OF:  # a control has fewer
                kept["best-of-n"].append(truth(prompt, max(unguided, key=lambda c: c["score"])["text"]))
            # Of both the same part comes from sampling among the top-k tokens alone.
            kl = [fmean(c["guided_logprob"] - c["logprob"] for c in of_kind) for of_kind in (guided, unguided)]
            kept["kl"].append(kl[0] - kl[1])
        means = {name: fmean(values) for name, values in kept.items() if values}
        of_the_model = means.pop("unguided")
        gains = {name: means.pop(name) - of_the_model for name in ("guided", "best-of-n") if name in means}
        return gains | means

    def seconds(self) -> dict[str, float]:
        """Of a guided and of an unguided completion with its score: medians of runs that take turns."""
        _ = self._made
        models = str(sandbox.ensure().language), str(self.reward_model)
        decoders = {
            method: Decoder.load(*models, method=method, k=20, device="cpu") for method in ("pargs", "unguided")
        }
        spent: dict[str, list[float]] = {method: [] for method in decoders}
        for repeat in range(REPEATS + 1):
            for method, decoder in decoders.items():
                begun = time.perf_counter()
                decoder.generate([*held_out()[:TIMED]], samples=OF_EACH, max_new_tokens=64, seed=repeat)
                spent[method].append(time.perf_counter() - begun)
        guided, unguided = (
            median(spent[m][1:]) / TIMED / OF_EACH for m in ("pargs", "unguided")
        )  # the first warms up
        # Unguided completions in the time of the default's four guided and four unguided ones.
        return {"guided": guided, "unguided": unguided, "best of n": OF_EACH * (guided + unguided) / unguided}
