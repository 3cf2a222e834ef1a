"""The `rgtg` command: every job, with one config file and section.key=value overrides."""

import itertools
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated, Any

import typer

from rgtg.errors import Unavailable, UserError, redacted


def _version(asked: bool) -> None:
    if asked:
        print(f"rgtg {version('rgtg')}")
        raise typer.Exit


app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Make preference datasets by reward-guided decoding, as batch jobs on Ray. Start with: rgtg nightly",
)


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None: ...


ConfigFile = Annotated[
    str | None, typer.Option("--config", "-c", metavar="FILE", help="YAML settings; without one, the sandbox.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[SECTION.KEY=VALUE]...", help="Settings over the file's, such as generate.beta=1.5"),
]


NewRun = Annotated[
    bool,
    typer.Option("--new-run", help="Where the run exists, start beside it as <run id>-2, -3 ...: other settings."),
]


def _job(module: str, config_file: str | None, overrides: list[str] | None, new_run: bool) -> None:
    """Run one job. Its imports wait until the settings are known to be right: Ray and torch take seconds."""
    import importlib

    from rgtg.config_file import load

    settings = load(config_file, overrides or [])
    _run(importlib.import_module(f"pipelines.{module}").run, settings, new_run)


def _run(job: Callable[[Any], Any], settings: Any, new_run: bool) -> None:
    """Run a job while no other one writes to its run directory."""
    from pipelines.inputs import slow_settings
    from rgtg import lease, storage

    root = storage.absolute(settings.run.root, must_exist=False)
    run_id = settings.run.id
    if "id" not in settings.run.model_fields_set and lease.is_possible(root):
        from pipelines.run_directory import night

        run_id = night(root)
    if new_run:
        names = (f"{run_id}-{n}" if n > 1 else run_id for n in itertools.count(1))
        run_id = next(name for name in names if not storage.exists(storage.join(root, name)))
    settings = settings.model_copy(update={"run": settings.run.model_copy(update={"id": run_id})})

    def lost(sentence: str) -> None:
        print(f"failed: {sentence}", file=sys.stderr, flush=True)
        os._exit(1)

    with lease.held(storage.join(root, run_id), lost):
        for warning in slow_settings(settings):
            print(f"warning: {warning}", file=sys.stderr, flush=True)
        job(settings)


@app.command()
def sandbox() -> None:
    """Build the small world of text that runs without a config: its language model, pairs and prompts."""
    from rgtg import sandbox as world

    made = world.ensure()
    print(f"language model  {made.language}\npairs           {made.pairs}\nprompts         {made.prompts}")


@app.command(name="train-reward")
def train_reward(config: ConfigFile = None, overrides: Overrides = None, new_run: NewRun = False) -> None:
    """Fit the reward model on partial sequences (Ray Train): train_reward.pairs to <run>/reward_model."""
    _job("train_reward", config, overrides, new_run)


@app.command()
def generate(config: ConfigFile = None, overrides: Overrides = None, new_run: NewRun = False) -> None:
    """Complete the prompts under guidance (Ray Data): generate.prompts to <run>/completions."""
    _job("generate", config, overrides, new_run)


@app.command()
def preferences(config: ConfigFile = None, overrides: Overrides = None, new_run: NewRun = False) -> None:
    """Select chosen and rejected of each prompt: <run>/completions to <run>/preferences. Cheap to run again."""
    _job("preferences", config, overrides, new_run)


@app.command()
def nightly(config: ConfigFile = None, overrides: Overrides = None, new_run: NewRun = False) -> None:
    """All stages of one run, in order; a stage that is done is not done again. Ends with a summary."""
    _job("nightly", config, overrides, new_run)


@app.command()
def evaluate(config: ConfigFile = None, overrides: Overrides = None, new_run: NewRun = False) -> None:
    """Compare methods on the same prompts: rewards by guide and judges, KL, diversity, calls, time."""
    _job("evaluate", config, overrides, new_run)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    help="Measure this machine: decoding (beside transformers and the published loops), training, job. See --help",
)
def benchmark(context: typer.Context) -> None:
    from pipelines.benchmarks import decoding, job, training

    command = typer.Typer(add_completion=False, no_args_is_help=True)
    for measured in (decoding, training, job):
        command.command(measured.__name__.rpartition(".")[2])(measured.main)
    command(context.args, prog_name="rgtg benchmark", standalone_mode=False)


@app.command()
def settings() -> None:
    """Print every setting with its default and what it does, as a config file to start from."""
    from rgtg.config_file import as_yaml

    print(as_yaml())


@app.command()
def doctor(config: ConfigFile = None, overrides: Overrides = None) -> None:
    """Say what this machine has, and whether the configured inputs can be reached."""
    from pipelines import doctor as job
    from rgtg.config_file import load

    job.run(load(config, overrides or []))


def entry() -> None:
    """The console script."""
    guarded(app)


def main(run: Callable[[Any], Any], *, writes: bool = True) -> None:
    """`python -m pipelines.<job>`: the same options as the job's command."""

    def job(config: ConfigFile = None, overrides: Overrides = None, new_run: NewRun = False) -> None:
        from rgtg.config_file import load

        given = load(config, overrides or [])
        _run(run, given, new_run) if writes else run(given)

    job.__doc__ = sys.modules[run.__module__].__doc__
    guarded(lambda: typer.run(job))


def guarded(command: Callable[[], Any]) -> None:
    """A user's mistake is one sentence and exit code 2; what a later attempt may mend exits with 1."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    hangup = [] if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else [signal.SIGHUP]  # ignored under nohup
    for number in (signal.SIGINT, signal.SIGTERM, *hangup):
        signal.signal(number, _stop)
    sys.unraisablehook = _unraisable
    try:
        command()
    except _Stopped:
        print("stopped: the same command goes on where this one was", file=sys.stderr)
        sys.exit(130)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (Unavailable, OSError) as error:  # an OSError that no room explained: a disk that is full, most often
        if error.__cause__:
            _print_trace(error.__cause__)
        print(redacted(f"failed: {error}"), file=sys.stderr)
        sys.exit(1)
    except Exception as error:  # a mistake of ours
        _print_trace(error)
        sys.exit(1)


def _print_trace(error: BaseException) -> None:
    """What libraries say in it may quote headers, URLs and the environment."""
    print(redacted("".join(traceback.format_exception(error))), file=sys.stderr, end="")


class _Stopped(BaseException):
    """By a person or a scheduler; everything is closed on the way out."""


def _stop(*_: object) -> None:
    raise _Stopped


def _unraisable(lost: "sys.UnraisableHookArgs") -> None:
    """What was raised where nobody can catch it, as in a __del__. A signal of that moment comes again soon."""
    if isinstance(lost.exc_value, _Stopped):
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    else:
        sys.__unraisablehook__(lost)


if __name__ == "__main__":
    entry()
