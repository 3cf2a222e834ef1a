"""Show the hardware and versions of this machine, and check that the configured inputs can be reached."""

import os
import platform
from collections.abc import Callable
from functools import partial
from importlib.metadata import version

import torch
from rich.console import Console
from rich.table import Table

from pipelines.generate_actor import memory_plan
from pipelines.runtime import gpus
from pipelines.runtime.ray_session import cores
from pipelines.runtime.resolved_config import check_data_is_named, on_gpu, slow_settings
from pipelines.runtime.run_directory import PACKAGES
from rgtg import storage
from rgtg.config import Config
from rgtg.config_section import SANDBOX
from rgtg.errors import TransientError, UserError
from rgtg.input_files import SUFFIXES
from rgtg.models.loading import check_cacheable, has_fast_bfloat16, load_config, load_tokenizer, resolve_device


def run(config: Config) -> None:
    """Print a table. Raises UserError after all checks if an input cannot be reached."""
    table = Table(show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in _machine():
        table.add_row(name, value)
    for warning in slow_settings(config):
        table.add_row("slow", f"[yellow]{warning}[/]")
    wrong: list[str] = []
    for name, check in _checks(config):
        if name == "memory" and any(of.startswith("models.") for of in wrong):
            continue
        try:
            table.add_row(name, f"[green]ok[/]  {check()}")
        except (UserError, TransientError) as error:
            table.add_row(name, f"[red]no[/]  {error}")
            wrong.append(name)
    Console().print(table)
    if wrong:
        raise UserError(f"{', '.join(wrong)} cannot be used as configured; see above")


def _machine() -> list[tuple[str, str]]:
    cpu = "fast bfloat16" if has_fast_bfloat16(torch.device("cpu")) else "float32"
    address = os.environ.get("RAY_ADDRESS")
    return [
        ("cores", f"{cores()} ({cpu})"),
        ("GPUs", gpus.described()),
        ("Ray", f"the cluster at {address}" if address else "embedded on this machine (RAY_ADDRESS is not set)"),
        ("versions", ", ".join([f"Python {platform.python_version()}", *(f"{p} {version(p)}" for p in PACKAGES)])),
    ]


def _checks(config: Config) -> list[tuple[str, Callable[[], str]]]:
    """A check of each path that the configured jobs read or write; it raises UserError or returns a description."""

    def model(path: str, name: str) -> str:
        if path == SANDBOX:
            return "sandbox, built on first use"
        trust = config.models.trust_remote_code
        found = load_config(storage.absolute(path), name, trust_remote_code=trust)
        load_tokenizer(storage.absolute(path), name, trust_remote_code=trust)
        if config.models.reward_reads == "tokens" or name != "models.reward":
            check_cacheable(found, name)
        return f"{path} ({found.model_type})"

    def files(paths: list[str], **read: bool) -> str:
        check_data_is_named(config, **{"pairs": False, "prompts": False} | read)
        given = [path for path in paths if path != SANDBOX]
        found = [file for path in given for file in storage.list_files(path, SUFFIXES)]
        if given and not found:
            raise UserError(f"there are no {' or '.join(SUFFIXES)} files at {', '.join(map(repr, given))}")
        return f"{', '.join(paths)} ({len(found)} files)" if given else "sandbox, built on first use"

    def writable() -> str:
        probe = storage.join(storage.absolute(config.run.root, must_exist=False), ".doctor")
        storage.write_bytes(probe, b"")
        storage.remove(probe)
        return config.run.root

    def memory() -> str:
        models = config.models.model_copy(update={"language": storage.absolute(config.models.language)})
        reward = storage.absolute(models.reward or config.train_reward.init or models.language)
        needed = memory_plan(models, reward, config.generate, resolve_device(models.device))
        slots = config.generate.slots
        return f"an actor needs {needed}: {needed.fitting(slots)} of {slots} slots"

    checks: list[tuple[str, Callable[[], str]]] = [
        ("run.root", writable),
        ("models.language", lambda: model(config.models.language, "models.language")),
    ]
    for reward in config.models.rewards:
        checks.append(("models.reward", partial(model, reward, "models.reward")))
    if not config.models.reward:
        checks.append(("train_reward.pairs", lambda: files(config.train_reward.pairs, pairs=True)))
    checks.append(("generate.prompts", lambda: files(config.generate.prompts, prompts=True)))
    if config.models.language != SANDBOX and not os.environ.get("RAY_ADDRESS"):  # on a cluster the actors check it
        checks.append(("memory", memory))
    if on_gpu(config.models) and not os.environ.get("RAY_ADDRESS"):
        checks.append(("GPUs of actors", partial(gpus.check, config)))
    return checks


if __name__ == "__main__":
    from pipelines.runtime.launch import main

    main(run, writes=False)
