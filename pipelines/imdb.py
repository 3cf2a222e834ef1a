"""The former name of pipelines/experiments/imdb.py, for one release."""

import sys
from runpy import run_module

if __name__ == "__main__":
    print("warning: the command is now python -m pipelines.experiments.imdb", file=sys.stderr, flush=True)
    run_module("pipelines.experiments.imdb", run_name="__main__", alter_sys=True)
