"""The filesystem of a path or URL: this machine's disk, or any that fsspec knows."""

from typing import Any

import fsspec

from flan_qa_pipeline.errors import InputError

ADDED_BY = {"abfss": "adlfs"}  # protocols that fsspec lists but that come with another package


def filesystem_of(url: str, **options: Any) -> tuple[fsspec.AbstractFileSystem, str]:
    """Find the filesystem of a path or URL, and the path on it.

    Args:
        url: a path, or a URL such as s3://bucket/key.
        **options: passed to the filesystem, such as credentials.

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
