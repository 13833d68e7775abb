"""Places of files: this machine's disk, or any filesystem that fsspec knows."""

from typing import Any

import fsspec

from flan_qa_pipeline.errors import InputError


def filesystem_of(url: str, **options: Any) -> tuple[fsspec.AbstractFileSystem, str]:
    """Split a path or URL into its filesystem, made with the options, and the path there.

    Raises:
        InputError: no filesystem is known for the URL, or its package is not installed.
    """
    try:
        return fsspec.url_to_fs(url, **options)
    except ImportError as error:
        raise InputError(
            f"{url}: a package is missing ({str(error).rstrip('.')}); install it with pip, or name "
            "a file on this machine."
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(
            f"{url}: {' '.join(str(error).split()).rstrip('.')}; correct the URL or name a file on "
            "this machine."
        ) from error
