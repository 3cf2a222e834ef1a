"""The actor of `generate`: both models on one device, and one engine that serves several calls."""

import gc
import os
import queue
import threading
import traceback
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict
from datetime import date
from typing import Any

import pyarrow as pa
import ray
import torch
from ray.actor import ActorHandle

from pipelines.runtime.fingerprints import check_unchanged
from rgtg.config import Generate, Models
from rgtg.decoding.decoder import Completion, Decoder
from rgtg.decoding.prefill import HELD
from rgtg.decoding.request import Request
from rgtg.errors import RowError, UserError
from rgtg.methods import METHODS
from rgtg.models.loading import context_length, load_config, resolve_device, resolve_dtype
from rgtg.models.memory import Plan, memory_of, plan
from rgtg.models.shapes import SLOT_MULTIPLE, round_up
from rgtg.schemas import completions_schema


def memory_plan(models: Models, reward: str | None, settings: Generate, device: torch.device) -> Plan:
    """The memory that an actor needs on a device. Raises UserError where the device has too little for one slot."""
    trust, preset = models.trust_remote_code, METHODS[settings.method]
    language = load_config(models.language, "models.language", trust_remote_code=trust)
    rewards = [
        load_config(path, "models.reward", trust_remote_code=trust)
        for path in ([reward, *models.ensemble] if reward else [])
    ]
    longest = min(settings.max_prompt_tokens + settings.max_new_tokens, context_length(language))
    # A reward model with a cache needs room for the candidates where it scores each of them.
    k = (preset.k if settings.k is None else settings.k) or language.vocab_size
    seen = {"none": 0, "next-token": longest, "candidates": longest + k}[preset.guidance]
    seen = seen if models.reward_reads == "tokens" else 0
    needed = plan(
        [(language, longest), *((config, seen) for config in rewards)],
        resolve_dtype(models.dtype, device),
        device,
        memory=int(memory_of(device) * (settings.gpus_per_actor if device.type == "cuda" else 1)),
        held=HELD,
        trust_remote_code=trust,
    )
    if not needed.fitting(1):
        raise UserError(
            f"an actor needs {needed}; use smaller models, lower generate.max_prompt_tokens, or use a larger device"
        )
    return needed


class Generator:
    """Completes batches of the table of prompts. Ray Data calls it from several threads at once.

    The engine runs in its own thread. Calls submit requests and wait for them, so that slots are refilled from the
    next batch while the last completions of this one are still running.
    """

    def __init__(
        self,
        models: Models,
        reward: str | None,
        settings: Generate,
        seed: int,
        progress: ActorHandle,
        day: date | None = None,
        digests: dict[str, str] | None = None,
    ) -> None:
        """`day` is the date that chat templates write, by default today. `digests` are those of the models, by path,
        when the job began. Raises UserError where a model has changed since.
        """
        torch.set_num_threads(settings.threads)
        self.settings, self.seed, self.progress = settings, seed, progress
        self.slots = self._fitting_slots(models, reward)
        self.decoder = Decoder.load(
            models.language,
            [reward, *models.ensemble] if reward else None,
            settings.model_copy(update={"slots": self.slots}),
            **models.model_dump(exclude={"language", "reward", "ensemble"}),
            day=day,
        )
        check_unchanged(digests or {})  # after loading, so that a change during it is noticed
        progress.add.remote(actors=1)
        self.inbox: queue.SimpleQueue[tuple[Request, Future]] = queue.SimpleQueue()
        threading.Thread(target=self._serve, name="engine", daemon=True).start()

    def _fitting_slots(self, models: Models, reward: str | None) -> int:
        """The slots that fit the device's memory, at most the configured ones. Raises UserError where none fits."""
        device, asked = resolve_device(models.device), self.settings.slots
        needed = memory_plan(models, reward, self.settings, device)
        slots = needed.fitting(asked)
        if slots < asked:
            self.progress.log.remote(f"an actor needs {needed}; it decodes with {slots} slots instead of {asked}")
        return slots

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Complete a batch of the table of prompts."""
        results = [self._submit(row) for row in batch.select(["prompt_id", "prompt", "error"]).to_pylist()]
        rows = [result if isinstance(result, str) else _outcome(result) for result in results]
        completions = [None if isinstance(row, str) else [asdict(c) for c in row] for row in rows]
        errors = [row if isinstance(row, str) else None for row in rows]
        done = [c for row in rows if not isinstance(row, str) for c in row]
        scores = [c.score for c in done if c.score is not None and c.method == self.settings.method]
        self.progress.add.remote(
            rows=len(rows),
            errors=sum(error is not None for error in errors),
            tokens=sum(c.num_tokens for c in done),
            completions=len(done),
            cut=sum(c.finish_reason == "length" for c in done),
            score=sum(scores),
            scored=len(scores),
        )
        columns = {
            **{name: batch[name] for name in batch.column_names},
            "completions": completions,
            "method": [self.settings.method] * len(rows),
            "error": errors,
        }
        schema = completions_schema(batch.schema)
        return pa.table([pa.array(c, f.type) if isinstance(c := columns[f.name], list) else c for f in schema], schema)

    def _submit(self, row: dict[str, Any]) -> Future | str:
        """A future of the row's completions, or the reason why there are none."""
        if row["error"] is not None:
            return row["error"]
        try:
            request = self.decoder.request(
                row["prompt"],
                samples=self.settings.samples,
                unguided_samples=self.settings.unguided_samples or 0,
                opposed_samples=self.settings.opposed_samples or 0,
                max_new_tokens=self.settings.max_new_tokens,
                seed=self.seed,
                prompt_id=row["prompt_id"],
            )
        except RowError as error:
            return str(error)
        future: Future = Future()
        self.inbox.put((request, future))
        return future

    def _serve(self) -> None:
        """The engine's thread: it works until an error, with fewer slots each time memory runs out."""
        waiting: dict[Request, Future] = {}
        try:
            while True:
                with suppress(torch.OutOfMemoryError):
                    self._work(waiting)
                self._shrink(waiting)  # outside the `with`, since the frames of the exception hold tensors
        except torch.AcceleratorError:
            # The device is in an unknown state and must not decode another row. The actor dies with the reason in the
            # job's log; Ray starts a new one and gives it the same blocks.
            try:
                line = f"an actor lost its device and will be replaced: {traceback.format_exc()}"
                ray.get(self.progress.log.remote(line), timeout=5)
            finally:
                os._exit(1)
        except RowError as error:  # its row is unknown, and as a RowError it would be committed for all rows
            self._fail(waiting, RuntimeError(f"the engine stopped: {error}"))
        except BaseException as error:
            self._fail(waiting, error)

    def _work(self, waiting: dict[Request, Future]) -> None:
        """Submit incoming requests, step, and return finished completions, forever."""
        engine = self.decoder.engine
        if engine.device.type == "cuda" and engine.slots > 1:
            # Reserved now, while there is nothing to copy. A single slot needs little, and grows.
            longest = self.settings.max_prompt_tokens + self.settings.max_new_tokens
            engine.reserve(min(longest, self.decoder.context), self.settings.max_new_tokens)
        while True:
            while not engine.busy or not self.inbox.empty():
                request, future = self.inbox.get()
                waiting[request] = future
                engine.submit(request)
            for request in engine.step():
                future = waiting[request]
                try:
                    future.set_result(self.decoder.completions(request))
                except RowError as error:
                    future.set_exception(error)
                del waiting[request]  # only now, so that any other error above reaches its caller

    def _shrink(self, waiting: dict[Request, Future]) -> None:
        """Restart all waiting requests with fewer slots.

        A request that has no room even alone becomes a row with an error. The cause was that row, so all slots are
        tried again.
        """
        slots = self.decoder.engine.slots
        if slots > 1:
            fewer = round_up(slots // 2, SLOT_MULTIPLE) if slots > SLOT_MULTIPLE else 1
            self.progress.log.remote(f"a device ran out of memory with {slots} slots; continuing with {fewer}")
        else:
            # The request in the only slot, or one that is finished and being scored.
            alone = next((owner[0] for owner in self.decoder.engine.owners if owner), None) or next(iter(waiting))
            waiting.pop(alone).set_exception(RowError("the device has no memory for this prompt, even alone"))
            fewer = self.slots
        del self.decoder.engine  # with its caches, before new ones are allocated
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.decoder.engine = self.decoder.new_engine(fewer)
        for request in waiting:
            request.reset()
            self.decoder.engine.submit(request)

    def _fail(self, waiting: dict[Request, Future], error: BaseException) -> None:
        """Stop the engine: all requests, waiting or later, fail with the error."""
        for future in waiting.values():
            future.set_exception(error)
        while True:
            self.inbox.get()[1].set_exception(error)


def _outcome(future: Future) -> list[Completion] | str:
    try:
        return future.result()
    except RowError as error:
        return str(error)
