"""Shared by all jobs: start and exit of a command, config and inputs, run directory, Ray, progress and log."""
