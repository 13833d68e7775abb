"""All uses of Kedro's private attributes from outside its classes.

Kedro offers no public way to ask a dataset for its place, to change the version that it loads, or
to save it somewhere else. `tests/runtime/test_kedro_private.py` checks everything that this module
relies on and names what a new Kedro changed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

from kedro.io import AbstractDataset, DataCatalog
from kedro.io.core import AbstractVersionedDataset, Version


def place_of(dataset: AbstractDataset[Any, Any] | None) -> PurePosixPath | None:
    """Return the path of a dataset, without version or protocol; None if it has none."""
    place: PurePosixPath | None = getattr(dataset, "_filepath", None)
    return place


def is_local(dataset: AbstractDataset[Any, Any]) -> bool:
    """Return whether a dataset with a path lies on a disk of this machine."""
    return bool(getattr(dataset, "_protocol", "file") == "file")


def is_versioned(
    dataset: AbstractDataset[Any, Any] | None,
) -> TypeGuard[AbstractVersionedDataset[Any, Any]]:
    """Return whether the catalog keeps versions of a dataset."""
    return isinstance(dataset, AbstractVersionedDataset) and dataset._version is not None


def load_path(dataset: AbstractDataset[Any, Any]) -> PurePosixPath | None:
    """Return the path that a dataset loads now: of its pinned or latest version, if it has any."""
    return dataset._get_load_path() if is_versioned(dataset) else place_of(dataset)


def save_path(dataset: AbstractVersionedDataset[Any, Any]) -> PurePosixPath:
    """Return the path at which a dataset saves its version.

    Raises:
        DatasetError: the version exists.
    """
    return dataset._get_save_path()


def pinned_version(dataset: AbstractDataset[Any, Any] | None) -> str | None:
    """Return the version that a dataset was told to load; None: the latest."""
    version: str | None = dataset._version.load if is_versioned(dataset) else None
    return version


def pin(dataset: AbstractVersionedDataset[Any, Any], load: str | None, save: str | None) -> None:
    """Make a dataset load and save these versions from now on."""
    dataset.release()
    dataset._version = Version(load, save)


def save_version(dataset: AbstractVersionedDataset[Any, Any]) -> str | None:
    """Return the version under which a dataset saves."""
    version: str | None = dataset._version.save
    return version


@contextmanager
def saved_in(catalog: DataCatalog, name: str, folder: Path) -> Iterator[None]:
    """Let the catalog save a dataset in another folder, without a version, inside the block."""
    dataset: Any = catalog[name]
    inside = type(dataset._filepath)(folder / dataset._filepath.name)
    catalog._datasets[name] = dataset._copy(_filepath=inside, _version=None)
    try:
        yield
    finally:
        catalog._datasets[name] = dataset
