"""What the stages of one job share: the resolved config, the open run directory and the digests of the inputs."""

from dataclasses import dataclass, replace

from pipelines.runtime.fingerprints import InputDigests
from pipelines.runtime.resolved_config import resolved
from pipelines.runtime.run_directory import RunDirectory
from rgtg.config import Config
from rgtg.config_section import Section


@dataclass(frozen=True)
class JobContext:
    """Opened once, by the command, and handed to each of its stages."""

    config: Config  # paths are absolute, and ids of hubs have their commit
    directory: RunDirectory
    digests: InputDigests

    @classmethod
    def open(cls, config: Config, *, models: bool = True, pairs: bool = False, prompts: bool = False) -> "JobContext":
        """Resolve the config and open its run directory. The flags say what the job reads, as for `resolved`."""
        config = resolved(config, models=models, pairs=pairs, prompts=prompts)
        return cls(config, RunDirectory(config), InputDigests())

    def with_sections(self, **sections: Section) -> "JobContext":
        """The same job with other sections of the config, for what a run compares itself with.

        The run directory keeps the config that it was opened with.
        """
        return replace(self, config=self.config.model_copy(update=sections))
