"""The former name of pipelines/experiments/dpo.py, for one release."""

import sys
from runpy import run_module

if __name__ == "__main__":
    print("warning: the command is now python -m pipelines.experiments.dpo", file=sys.stderr, flush=True)
    run_module("pipelines.experiments.dpo", run_name="__main__", alter_sys=True)
