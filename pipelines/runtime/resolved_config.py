"""The resolved config: absolute paths, pinned hub ids and the sandbox's files, checked before Ray starts."""

import os

import torch

from rgtg import sandbox, storage
from rgtg.config import Config, Models
from rgtg.config_section import SANDBOX
from rgtg.errors import UserError
from rgtg.models.hub import pinned
from rgtg.models.loading import slow_bfloat16


def resolved(config: Config, *, models: bool = True, pairs: bool = False, prompts: bool = False) -> Config:
    """The config with absolute local paths, since workers run in other directories, and the files of the sandbox.

    `models`, `pairs` and `prompts` say what the job reads: only for these is the sandbox built, on first use, and a
    hub asked. Raises UserError for settings that cannot work on a cluster.
    """
    reads = [
        *([config.models.language] if models else ()),
        *(config.train_reward.pairs if pairs else ()),
        *(config.generate.prompts if prompts else ()),
    ]
    check_data_is_named(config, pairs=pairs, prompts=prompts)
    _check_cluster(config, models=models, pairs=pairs)
    sandbox_files, eval_pairs = {}, config.train_reward.eval_pairs
    if SANDBOX in reads:
        world = sandbox.ensure()
        sandbox_files = {"language": world.language, "pairs": world.pairs, "prompts": world.prompts}
        if config.train_reward.pairs == [SANDBOX]:
            eval_pairs = eval_pairs or [str(world.eval_pairs)]

    def path(value: str, kind: str) -> str:
        return str(sandbox_files.get(kind, SANDBOX)) if value == SANDBOX else storage.absolute(value)

    def paths(values: list[str], kind: str) -> list[str]:
        return [path(value, kind) for value in values]

    def model(value: str, setting: str) -> str:
        return pinned(path(value, "language"), setting) if models else value

    changes = {
        "run": {"root": storage.absolute(config.run.root, must_exist=False)},
        "models": {
            "language": model(config.models.language, "models.language"),
            "reward": config.models.reward and model(config.models.reward, "models.reward"),
            "ensemble": [model(value, "models.ensemble") for value in config.models.ensemble],
        },
        "train_reward": {
            "pairs": paths(config.train_reward.pairs, "pairs"),
            "eval_pairs": eval_pairs and paths(eval_pairs, "pairs"),
            "init": config.train_reward.init and model(config.train_reward.init, "train_reward.init"),
        },
        "generate": {"prompts": paths(config.generate.prompts, "prompts")},
    }
    sections = {name: getattr(config, name).model_copy(update=update) for name, update in changes.items()}
    return config.model_copy(update=sections)


def unnamed_data(config: Config, *, pairs: bool, prompts: bool) -> list[str]:
    """The settings by which another language model than the sandbox's would read the sandbox's data by default."""
    read = {"train_reward.pairs": pairs, "generate.prompts": prompts}
    named = {f"{section}.{name}" for section, of in config for name in of.model_fields_set}
    return [key for key in read if config.models.language != SANDBOX and read[key] and key not in named]


def check_data_is_named(config: Config, *, pairs: bool, prompts: bool) -> None:
    """Raises UserError for `unnamed_data`."""
    if missing := unnamed_data(config, pairs=pairs, prompts=prompts):
        raise UserError(
            f"set {' and '.join(missing)}: by default they are the sandbox's, which go with its own language model; "
            f"name your files, or write {missing[0]}=sandbox to use them all the same"
        )


def _check_cluster(config: Config, *, models: bool, pairs: bool) -> None:
    """Raises UserError with all that works on one machine and not on a cluster."""
    if not os.environ.get("RAY_ADDRESS"):
        return
    faults = []
    if models and config.models.device == "auto":
        faults.append("models.device is auto, which looks at the driver's machine alone; set it to cuda or cpu")
    local = [] if os.environ.get("RGTG_SHARED_DISK") else _local_paths(config, models=models, pairs=pairs)
    if local:
        faults.append(
            f"{' and '.join(local)}, on the disk of this machine, which other machines of the cluster cannot read; "
            "use s3://, or set RGTG_SHARED_DISK=1 if all of them mount it"
        )
    if faults:
        raise UserError(f"on a cluster {'; '.join(faults)}")


def _local_paths(config: Config, *, models: bool, pairs: bool) -> list[str]:
    """The settings that name a local path which other machines than the driver's read or write.

    Prompts are read by the driver alone.
    """
    used = {"run.root": [config.run.root]}
    if models:
        used |= {"models.language": [config.models.language], "models.reward": config.models.rewards}
    if pairs:
        used |= {
            "train_reward.init": [config.train_reward.init or ""],
            "train_reward.pairs": config.train_reward.pairs,
            "train_reward.eval_pairs": config.train_reward.eval_pairs or [],
        }
    return [
        f"{name} is {path!r}"
        for name, paths in used.items()
        for path in paths
        if path
        and storage.is_local(path)
        and (name == "run.root" or path == SANDBOX or os.path.exists(os.path.expanduser(path)))
    ]


def slow_settings(config: Config) -> list[str]:
    """A warning for each setting that asks for bfloat16 on a CPU that emulates it."""
    device = torch.device("cuda" if on_gpu(config.models) else "cpu")
    asked = {"models.dtype": config.models.dtype, "train_reward.precision": config.train_reward.precision}
    warnings = (slow_bfloat16(f"{name}=bfloat16", device) for name, value in asked.items() if value == "bfloat16")
    return [warning for warning in warnings if warning]


def on_gpu(models: Models) -> bool:
    """Whether actors and workers ask for a GPU: as `device` says; with `auto`, if this machine has one."""
    return models.device == "cuda" or (models.device == "auto" and torch.cuda.is_available())
