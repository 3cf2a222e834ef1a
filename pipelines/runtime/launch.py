"""Start and exit of a command: options, the lease on the run directory, signals and exit codes."""

import itertools
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Annotated, Any

import typer

from rgtg.errors import QualityError, TransientError, UserError, redacted

ConfigFile = Annotated[
    str | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="YAML config file; the sandbox if none is given. Paths in it start at the current directory.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[SECTION.KEY=VALUE]...", help="Settings over those of the file, such as generate.beta=1.5"
    ),
]

NewRun = Annotated[
    bool,
    typer.Option("--new-run", help="If the run exists, start another one, <run id>-2, -3 ..., with any settings."),
]


def main(run: Callable[[Any], Any], *, writes: bool = True) -> None:
    """The command line of `python -m pipelines.<job>`, with the options of `rgtg <job>`."""

    def job(config: ConfigFile = None, overrides: Overrides = None, new_run: NewRun = False) -> None:
        from rgtg.config_file import load

        given = load(config, overrides or [])
        run_alone(run, given, new_run) if writes else run(given)

    job.__doc__ = sys.modules[run.__module__].__doc__
    guarded(lambda: typer.run(job))


def guarded(command: Callable[[], Any]) -> None:
    """Run a command. The exit code is 2 for a user's mistake, 3 for data that are there and not good, 1 for a failure,
    130 for an interrupt.

    A mistake and a failure that a retry may fix are one sentence; anything else is a bug and prints its traceback.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    hangup = [] if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else [signal.SIGHUP]  # ignored under nohup
    for number in (signal.SIGINT, signal.SIGTERM, *hangup):
        signal.signal(number, _stop)
    sys.unraisablehook = _unraisable
    try:
        command()
    except _Stopped:
        print("interrupted; rerun the same command to resume", file=sys.stderr)
        sys.exit(130)
    except QualityError as error:
        print(f"not good: {error}", file=sys.stderr)
        sys.exit(3)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (TransientError, OSError) as error:  # an untranslated OSError is most often a full disk
        if error.__cause__:
            _print_trace(error.__cause__)
        print(redacted(f"failed: {error}"), file=sys.stderr)
        sys.exit(1)
    except Exception as error:  # a bug
        _print_trace(error)
        sys.exit(1)


def _print_trace(error: BaseException) -> None:
    """Print a traceback without credentials: messages of libraries may quote headers, URLs and the environment."""
    print(redacted("".join(traceback.format_exception(error))), file=sys.stderr, end="")


class _Stopped(BaseException):
    """Raised by a signal from a person or a scheduler, so that everything is closed on the way out."""


def _stop(*_: object) -> None:
    raise _Stopped


def _unraisable(lost: "sys.UnraisableHookArgs") -> None:
    """Handle an exception that nothing can catch, as in a __del__: a signal that it swallowed is sent again."""
    if isinstance(lost.exc_value, _Stopped):
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    else:
        sys.__unraisablehook__(lost)


def run_alone(job: Callable[[Any], Any], settings: Any, new_run: bool) -> None:
    """Run a job while it holds the lease on its run directory. Raises UserError where another job holds it."""
    from pipelines.runtime.resolved_config import slow_settings
    from rgtg import lease, storage

    root = storage.absolute(settings.run.root, must_exist=False)
    run_id = settings.run.id
    # Without leases nothing says whether last night's job is still running.
    if not new_run and "id" not in settings.run.model_fields_set and lease.is_possible(root):
        from pipelines.runtime.default_run import default_run_id

        run_id = default_run_id(root, settings)
    if new_run:
        names = (f"{run_id}-{n}" if n > 1 else run_id for n in itertools.count(1))
        run_id = next(name for name in names if not storage.exists(storage.join(root, name)))
    settings = settings.model_copy(update={"run": settings.run.model_copy(update={"id": run_id})})

    def lost(message: str) -> None:
        print(f"failed: {message}", file=sys.stderr, flush=True)
        os._exit(1)

    with lease.held(storage.join(root, run_id), lost):
        for warning in slow_settings(settings):
            print(f"warning: {warning}", file=sys.stderr, flush=True)
        job(settings)
