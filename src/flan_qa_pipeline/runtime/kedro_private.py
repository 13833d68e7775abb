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

_Dataset = AbstractDataset[Any, Any]
_Versioned = AbstractVersionedDataset[Any, Any]


def place_of(dataset: _Dataset | None) -> PurePosixPath | None:
    """Return the path of a dataset, without version or protocol; None if it has none."""
    place = getattr(dataset, "_filepath", None) or getattr(dataset, "_path", None)
    return None if place is None else PurePosixPath(place)


def is_local(dataset: _Dataset) -> bool:
    """Return whether a dataset with a path lies on a disk of this machine."""
    return bool(getattr(dataset, "_protocol", "file") == "file")


def is_versioned(
    dataset: _Dataset | None,
) -> TypeGuard[_Versioned]:
    """Return whether the catalog keeps versions of a dataset."""
    return isinstance(dataset, AbstractVersionedDataset) and dataset._version is not None


def load_path(dataset: _Dataset) -> PurePosixPath | None:
    """Return the path that a dataset loads now: of its pinned or latest version, if it has any."""
    return dataset._get_load_path() if is_versioned(dataset) else place_of(dataset)


def save_path(dataset: _Versioned) -> PurePosixPath:
    """Return the path at which a dataset saves its version.

    Raises:
        DatasetError: the version exists.
    """
    return dataset._get_save_path()


def pinned_version(dataset: _Dataset | None) -> str | None:
    """Return the version that a dataset was told to load; None: the latest."""
    version = dataset._version if is_versioned(dataset) else None
    return version.load if version else None


def pin(dataset: _Versioned, load: str | None, save: str | None) -> None:
    """Make a dataset load and save these versions from now on."""
    dataset.release()
    dataset._version = Version(load, save)


def replace(catalog: DataCatalog, name: str, dataset: _Dataset) -> None:
    """Let a name of the catalog stand for another dataset; Kedro's own way warns."""
    catalog._datasets[name] = dataset


def save_version(dataset: _Versioned) -> str | None:
    """Return the version under which a dataset saves."""
    version = dataset._version
    return version.save if version else None


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
