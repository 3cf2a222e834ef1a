"""The `rgtg` command: every job, with one config file and section.key=value overrides."""

from importlib import import_module
from importlib.metadata import version
from typing import Annotated

import typer

from pipelines.runtime.launch import ConfigFile, NewRun, Overrides, guarded, run_alone


def _version(asked: bool) -> None:
    if asked:
        print(f"rgtg {version('rgtg')}")
        raise typer.Exit


app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Make preference datasets by reward-guided decoding, in batch jobs on Ray. Start with: rgtg nightly",
)


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None: ...


def _job(module: str, config_file: str | None, overrides: list[str] | None, new_run: bool) -> None:
    """Run a job. It is imported only once the settings are valid, since Ray and torch take seconds to import."""
    from rgtg.config_file import load

    settings = load(config_file, overrides or [])
    run_alone(import_module(f"pipelines.{module}").run, settings, new_run)


@app.command()
def sandbox() -> None:
    """Build the sandbox, the default of every config: a small language model, preference pairs and prompts."""
    from rgtg import sandbox as world

    made = world.ensure()
    print(f"language model  {made.language}\npairs           {made.pairs}\nprompts         {made.prompts}")


@app.command(name="train-reward")
def train_reward(config: ConfigFile = None, overrides: Overrides = None, new_run: NewRun = False) -> None:
    """Train the reward model on partial sequences (Ray Train): train_reward.pairs to <run>/reward_model."""
    _job("train_reward", config, overrides, new_run)


@app.command()
def generate(config: ConfigFile = None, overrides: Overrides = None, new_run: NewRun = False) -> None:
    """Complete the prompts by guided decoding (Ray Data): generate.prompts to <run>/completions."""
    _job("generate", config, overrides, new_run)


@app.command()
def preferences(config: ConfigFile = None, overrides: Overrides = None, new_run: NewRun = False) -> None:
    """Select chosen and rejected completions: <run>/completions to <run>/preferences. Cheap to run again."""
    _job("preferences", config, overrides, new_run)


@app.command()
def nightly(config: ConfigFile = None, overrides: Overrides = None, new_run: NewRun = False) -> None:
    """Run all stages of a run, skip those that are finished, and print a summary."""
    _job("nightly", config, overrides, new_run)


@app.command()
def evaluate(config: ConfigFile = None, overrides: Overrides = None, new_run: NewRun = False) -> None:
    """Compare methods on the same prompts: rewards by the reward model and judges, KL, diversity, calls, time."""
    _job("evaluate", config, overrides, new_run)


@app.command()
def push(
    repo: Annotated[str, typer.Option("--repo", metavar="ORG/NAME", help="The repository on the hub.")],
    config: ConfigFile = None,
    overrides: Overrides = None,
    public: Annotated[
        bool, typer.Option("--public", help="A new repository is public, and one that is public may be written to.")
    ] = False,
    reward_model: Annotated[
        bool, typer.Option("--reward-model", help="Push the run's reward model, to a repository of models.")
    ] = False,
) -> None:
    """Publish a complete run (run.root, run.id) as a dataset on the Hugging Face hub, tagged by its id."""
    from pipelines import push as job
    from rgtg.config_file import load

    job.run(load(config, overrides or []), repo, public=public, reward_model=reward_model)


@app.command()
def report(config: ConfigFile = None, overrides: Overrides = None) -> None:
    """Render the page of any run, finished or not: <run>/report/index.html. Name it by run.root and run.id."""
    from pipelines import report as job
    from rgtg.config_file import load

    job.run(load(config, overrides or []))


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    help="Measure this machine: decoding (next to transformers and the published loops), training, job. See --help",
)
def benchmark(context: typer.Context) -> None:
    from pipelines.benchmarks import decoding, job, training

    command = typer.Typer(add_completion=False, no_args_is_help=True)
    for measured in (decoding, training, job):
        command.command(measured.__name__.rpartition(".")[2])(measured.main)
    command(context.args, prog_name="rgtg benchmark", standalone_mode=False)


@app.command()
def settings() -> None:
    """Print every setting with its default and meaning, as a config file to start from."""
    from rgtg.config_file import as_yaml

    print(as_yaml())


@app.command()
def doctor(config: ConfigFile = None, overrides: Overrides = None) -> None:
    """Show the hardware and versions of this machine, and check that the configured inputs can be reached."""
    from pipelines import doctor as job
    from rgtg.config_file import load

    job.run(load(config, overrides or []))


def entry() -> None:
    """The console script."""
    guarded(app)


if __name__ == "__main__":
    entry()
