"""One file a job; each is `python -m pipelines.<job> --config FILE [key=value ...]`, and a command of `rgtg`."""
