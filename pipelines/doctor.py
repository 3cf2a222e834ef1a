"""Show the hardware and versions of this machine, and check all that the config names, down to the first rows."""

import os
import platform
from functools import partial
from importlib.metadata import version

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines.generate_actor import memory_plan
from pipelines.input_checks import Check, Doubt, checks, findings
from pipelines.runtime import gpus
from pipelines.runtime.ray_session import cores
from pipelines.runtime.resolved_config import on_gpu, slow_settings
from pipelines.runtime.run_directory import PACKAGES
from rgtg import storage
from rgtg.config import Config
from rgtg.config_section import SANDBOX
from rgtg.errors import UserError
from rgtg.models.loading import has_fast_bfloat16, resolve_device


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
    for found in findings(_checks(config)):
        mark = "[red]no[/]" if found.error else "[yellow]??[/]" if isinstance(found.text, Doubt) else "[green]ok[/]"
        table.add_row(found.name, f"{mark}  {escape(found.text)}")
        if found.error:
            wrong.append(found.name)
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


def _checks(config: Config) -> list[Check]:
    """Those of a whole night, and of this machine."""

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

    found = [Check("run.root", writable), *checks(config, method=config.generate.method, pairs=True, prompts=True)]
    if config.models.language != SANDBOX and not os.environ.get("RAY_ADDRESS"):  # on a cluster the actors check it
        found.append(Check("memory", memory, ("models.language", "models.reward", "train_reward.init")))
    if on_gpu(config.models) and not os.environ.get("RAY_ADDRESS"):
        found.append(Check("GPUs of actors", partial(gpus.check, config)))
    return found


if __name__ == "__main__":
    from pipelines.runtime.launch import main

    main(run, writes=False)
