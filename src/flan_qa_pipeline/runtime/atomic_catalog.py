"""Versions and folders that are whole or absent, whatever interrupts their writing."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from accelerate import PartialState
from kedro.io import DataCatalog, DatasetError, MemoryDataset
from kedro.io.core import AbstractVersionedDataset, Version

from flan_qa_pipeline.files import written_aside


class VersionNotSavedError(DatasetError):
    """A version could not be written; nothing of it is left, and earlier ones are as they were."""


class AtomicCatalog(DataCatalog):
    """Saves each version aside and renames it into place; a run reads the versions it saved.

    Kedro takes for the latest version whatever lies under a newer time stamp, whether its file is
    complete or not, and whichever run saved it. Here a version on a local disk appears whole or
    not at all, and once saved it is the one that this catalog loads, though other runs save newer
    ones meanwhile. Object stores write whole objects by themselves. A dataset that says it `grows`
    is written in place: it keeps what an interrupted run saved so far. Of several processes only
    the first one writes; the others keep nothing but what lies in memory.
    """

    def versions(self, names: Iterable[str]) -> dict[str, str | None]:
        """Map the versioned ones of these datasets to the versions that would be loaded."""
        return {
            name: dataset.resolve_load_version()
            for name in names
            if isinstance(dataset := self[name], AbstractVersionedDataset) and dataset._version
        }

    def pin(self, name: str, version: str | None) -> None:
        """Load this version of a dataset from now on."""
        dataset: Any = self[name]
        dataset.release()
        dataset._version = Version(version, dataset._version.save)

    def save(self, ds_name: str, data: Any) -> None:
        dataset = self[ds_name]
        if not (isinstance(dataset, MemoryDataset) or PartialState().is_main_process):
            return
        if not (isinstance(dataset, AbstractVersionedDataset) and dataset._version):
            super().save(ds_name, data)
            return
        version = dataset.resolve_save_version()
        if getattr(dataset, "grows", False) or getattr(dataset, "_protocol", "file") != "file":
            dataset._version = Version(version, version)
            super().save(ds_name, data)
            return
        folder = Path(dataset._get_save_path()).parent
        filepath = Path(dataset._filepath)
        try:
            with written_aside(folder, beside=filepath) as aside:
                inside = type(dataset._filepath)(aside / filepath.name)
                self._datasets[ds_name] = dataset._copy(_filepath=inside, _version=None)
                super().save(ds_name, data)
        except (OSError, DatasetError) as error:
            raise VersionNotSavedError(
                f"{ds_name}: version {version} was not saved in {filepath}: {_cause(error)}"
            ) from error
        finally:
            self._datasets[ds_name] = dataset
        dataset.release()
        dataset._version = Version(version, version)


def _cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
