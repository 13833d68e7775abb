"""Configuration files: one sentence, with the file, for each that Kedro cannot read."""

from pathlib import Path
from typing import Any

from kedro.config import MissingConfigException, OmegaConfigLoader
from omegaconf import DictConfig, OmegaConf

from flan_qa_pipeline.errors import InputError, in_one_line

LONGEST_REASON = 200  # characters; OmegaConf names every place within a loop


class MissingConfigurationError(InputError, MissingConfigException):
    """An environment or a kind of configuration that has no files.

    Kedro catches MissingConfigException where a project may lack a file.
    """


class ProjectConfigLoader(OmegaConfigLoader):
    """Reads configuration as OmegaConfigLoader does, but once, and says which file is broken."""

    def __getitem__(self, key: str) -> dict[str, Any]:
        """Read one kind of configuration, such as `parameters`, when it is first asked for.

        Raises:
            KeyError: Kedro knows no such kind.
            MissingConfigurationError: no file holds this kind, or the environment has no folder.
            InputError: names the file that cannot be read, and why.
        """
        if key in self or key not in self.config_patterns:
            return super().__getitem__(key)
        try:
            self[key] = super().__getitem__(key)
            return super().__getitem__(key)
        except MissingConfigException as error:
            raise MissingConfigurationError(f"{in_one_line(error)}.") from error
        except Exception as error:  # of YAML, OmegaConf, decoding or recursion
            folder = Path(self.conf_source)
            environments = (self.base_env, self.env or self.default_run_env)
            raise InputError(_explanation(error, folder, environments)) from error


def _explanation(error: Exception, folder: Path, environments: tuple[str, ...]) -> str:
    """Quote the reason, with the file if the reason does not name one."""
    reason = in_one_line(error)
    if ".yml" in reason:
        return f"{reason}."
    if len(reason) > LONGEST_REASON:
        reason = f"{reason[:LONGEST_REASON]}…"
    for path in sorted(path for name in environments for path in (folder / name).rglob("*.yml")):
        if not _is_mapping(path):
            return f"{path} cannot be read: {reason}; it must map names to values, in YAML."
    return f"The configuration in {folder} cannot be read: {reason}; correct it."


def _is_mapping(path: Path) -> bool:
    try:
        return isinstance(OmegaConf.load(path), DictConfig)
    except Exception:  # of YAML, OmegaConf, decoding or recursion
        return False
