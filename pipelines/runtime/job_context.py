"""The context of a job, shared by its stages: resolved config, open run directory and digests of the inputs."""

from dataclasses import dataclass, replace

from pipelines.runtime.fingerprints import InputDigests
from pipelines.runtime.resolved_config import resolved
from pipelines.runtime.run_directory import RunDirectory
from rgtg.config import Config
from rgtg.config_section import Section


@dataclass(frozen=True)
class JobContext:
    """Opened once by the command and passed to each of its stages."""

    config: Config  # resolved: paths are absolute, hub ids are pinned to a commit
    directory: RunDirectory
    digests: InputDigests

    @classmethod
    def open(cls, config: Config, *, models: bool = True, pairs: bool = False, prompts: bool = False) -> "JobContext":
        """Resolve the config and open its run directory. The flags name what the job reads, as in `resolved`."""
        config = resolved(config, models=models, pairs=pairs, prompts=prompts)
        directory = RunDirectory(config)
        begun = directory.inputs_of("generate")
        config = config.with_strategy(before=bool(begun) and "generate.unguided_samples" not in begun)
        directory.config = config
        return cls(config, directory, InputDigests())

    def with_sections(self, **sections: Section) -> "JobContext":
        """The same job with other sections of the config, for the comparisons within a run.

        The run directory keeps the config that it was opened with.
        """
        return replace(self, config=self.config.model_copy(update=sections))
