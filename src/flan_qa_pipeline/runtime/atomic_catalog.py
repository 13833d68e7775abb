"""A catalog whose versions are whole or absent, whatever interrupts their writing."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kedro.io import AbstractDataset, DataCatalog, DatasetError, MemoryDataset
from kedro.io.core import DatasetNotFoundError, Version

from flan_qa_pipeline.errors import InputError, in_one_line
from flan_qa_pipeline.files import written_aside
from flan_qa_pipeline.runtime import kedro_private


class NamedDatasetError(DatasetError):
    """A dataset of the catalog could not be loaded, saved or looked for.

    Attributes:
        dataset: the dataset.
    """

    def __init__(self, message: str, dataset: AbstractDataset[Any, Any]):
        super().__init__(message)
        self.dataset = dataset


class VersionNotSavedError(NamedDatasetError):
    """A version could not be written; nothing of it remains, and earlier ones are untouched."""


class AtomicCatalog(DataCatalog):
    """Saves each version aside and renames it into place; a run reads the versions it saved.

    Kedro loads whatever lies under the newest time stamp, complete or not, whichever run saved it.
    In this catalog, a version on a local disk appears whole or not at all, and the catalog keeps
    loading the version it saved, even if another run saves a newer one. Object stores write whole
    objects anyway. A dataset whose class sets `grows` is written in place, so that it keeps what an
    interrupted run has saved.

    Errors name their dataset: a wrong entry raises InputError, a failed load or save
    `NamedDatasetError`.
    """

    @classmethod
    def from_config(cls, *args: Any, **options: Any) -> DataCatalog:
        """Make the catalog from its configuration; takes the arguments of Kedro's.

        Raises:
            InputError: an entry is malformed, or a version of an unknown dataset is asked for.
        """
        try:
            return super().from_config(*args, **options)
        except DatasetNotFoundError as error:
            raise InputError(f"{in_one_line(error)}; correct --load-versions.") from error
        except Exception as error:  # Kedro's resolver raises many kinds on a malformed entry
            raise InputError(
                f"The catalog cannot be used: {in_one_line(error)}; correct conf/*/catalog*.yml."
            ) from error

    def get(
        self, key: str, fallback_to_runtime_pattern: bool = False, version: Version | None = None
    ) -> AbstractDataset[Any, Any] | None:
        try:
            return super().get(key, fallback_to_runtime_pattern, version)
        except DatasetError as error:
            raise InputError(f"{in_one_line(error)}; correct {key} in the catalog.") from error

    def load(self, ds_name: str, version: str | None = None) -> Any:
        with self._naming(ds_name):
            return super().load(ds_name, version)

    def exists(self, ds_name: str) -> bool:
        with self._naming(ds_name):
            return super().exists(ds_name)

    def versions(self, names: Iterable[str]) -> dict[str, str | None]:
        """Map the versioned ones of these datasets to the versions that they would load."""
        return {
            name: dataset.resolve_load_version()
            for name in names
            if kedro_private.is_versioned(dataset := self[name])
        }

    def pin(self, name: str, version: str | None) -> None:
        """Load this version of a dataset from now on."""
        dataset: Any = self[name]
        kedro_private.pin(dataset, version, kedro_private.save_version(dataset))

    def save(self, ds_name: str, data: Any) -> None:
        """Save data; of a versioned dataset, a whole version or none.

        Raises:
            VersionNotSavedError: the version could not be written.
            DatasetError: the version exists.
        """
        dataset = self[ds_name]
        if not kedro_private.is_versioned(dataset):
            with self._naming(ds_name):
                super().save(ds_name, data)
            return
        version = dataset.resolve_save_version()
        if getattr(dataset, "grows", False) or not kedro_private.is_local(dataset):
            kedro_private.pin(dataset, version, version)
            with self._naming(ds_name):
                super().save(ds_name, data)
            return
        folder = Path(kedro_private.save_path(dataset)).parent
        place = Path(str(kedro_private.place_of(dataset)))
        try:
            with (
                written_aside(folder, beside=place) as aside,
                kedro_private.saved_in(self, ds_name, aside),
            ):
                super().save(ds_name, data)
        except (OSError, DatasetError) as error:
            raise VersionNotSavedError(
                f"{ds_name}: version {version} was not saved in {place}: {_cause(error)}", dataset
            ) from error
        kedro_private.pin(dataset, version, version)

    @contextmanager
    def _naming(self, name: str) -> Iterator[None]:
        try:
            yield
        except DatasetNotFoundError:
            raise
        except DatasetError as error:
            raise NamedDatasetError(str(error), self[name]) from error


class FollowersCatalog:
    """The catalog as nodes see it in all processes of a run but the first.

    Nodes that run in every process return the same in each. The first process writes their outputs
    to disk; here, `save` keeps only what stays in memory.
    """

    def __init__(self, catalog: AtomicCatalog):
        self._catalog = catalog

    def load(self, ds_name: str) -> Any:
        return self._catalog.load(ds_name)

    def save(self, ds_name: str, data: Any) -> None:
        if isinstance(self._catalog[ds_name], MemoryDataset):
            self._catalog.save(ds_name, data)


def _cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
