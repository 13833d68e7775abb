"""Places of files: this machine's disk, or any filesystem that fsspec knows."""

from typing import Any

import fsspec

from flan_qa_pipeline.errors import InputError

ADDED_BY = {"abfss": "adlfs"}  # protocols that fsspec knows only with the package


def filesystem_of(url: str, **options: Any) -> tuple[fsspec.AbstractFileSystem, str]:
    """Split a path or URL into its filesystem, made with the options, and the path there.

    Raises:
        InputError: no filesystem is known for the URL, its package is not installed, or it cannot
            be reached.
    """
    try:
        filesystem, path = fsspec.url_to_fs(url, **options)
    except ImportError as error:
        raise _missing(url, str(error)) from error
    except (OSError, ValueError) as error:
        if package := ADDED_BY.get(url.partition("://")[0]):
            raise _missing(url, f"Install {package}") from error
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(
            f"{url}: {reason}; correct the URL or name a file on this machine."
        ) from error
    return filesystem, path


def _missing(url: str, package: str) -> InputError:
    return InputError(
        f"{url}: a package is missing ({package.rstrip('.')}); install it with pip, or name a file "
        "on this machine."
    )
