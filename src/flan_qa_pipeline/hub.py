"""Files on the Hugging Face hub, fetched once into the hub's cache and read from there."""

import json
import logging
import os
import re
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from json import JSONDecodeError
from pathlib import Path
from typing import ClassVar, TypeVar, cast

import httpx
from huggingface_hub import (
    DatasetInfo,
    HfApi,
    ModelInfo,
    constants,
    get_cached_repo_tree,
    get_session,
    parse_hf_uri,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HfUriError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)
from huggingface_hub.utils import filter_repo_objects, validate_repo_id
from tqdm.auto import tqdm

from flan_qa_pipeline.errors import InputError

logger = logging.getLogger(__name__)

T = TypeVar("T")

PROTOCOL = "hf://"
CONFIG = "config.json"
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZERS = ("tokenizer.json", "spiece.model")
MODEL_FILES = (
    CONFIG,
    "generation_config.json",
    WEIGHTS,
    "model-*-of-*.safetensors",
    WEIGHTS_INDEX,
    *TOKENIZERS,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
RETRIED = (429, 500, 502, 503, 504)
WAITS = (1, 2, 4)  # seconds before each further try
UPLOAD_PATIENCE = 6  # times the limit of other requests
XET_LIMITS = {  # hf_xet waits minutes by default
    "HF_XET_CLIENT_CONNECT_TIMEOUT": "10s",
    "HF_XET_CLIENT_READ_TIMEOUT": "10s",
    "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "1",
}


@dataclass(frozen=True)
class HubFiles(ABC):
    """Files of one repository at a revision: a commit, or a tag or branch, which may move.

    Attributes:
        repo_id: such as `google/flan-t5-base`.
        revision: a commit, a tag or a branch.
        path: the path of the files in the repository; "": anywhere in it.
        repo_type: `model` or `dataset`.
    """

    repo_id: str
    revision: str
    path: str = ""
    repo_type: ClassVar[str]

    @property
    @abstractmethod
    def patterns(self) -> Sequence[str]:
        """The patterns of the names of the files to fetch."""

    @abstractmethod
    def require(self, held: Sequence[str]) -> None:
        """Check that a repository has the needed files, given the names of all its files.

        Raises:
            InputError: names the file that is missing.
        """

    @abstractmethod
    def is_whole(self, folder: Path) -> bool:
        """Return whether a snapshot in the cache has the needed files."""

    @property
    @abstractmethod
    def pinned(self) -> str:
        """The option or URL by which a user pins these files."""

    @property
    def page(self) -> str:
        prefix = constants.REPO_TYPES_URL_PREFIXES.get(self.repo_type, "")
        return f"{constants.ENDPOINT}/{prefix}{self.repo_id}"

    @property
    def is_commit(self) -> bool:
        return bool(re.fullmatch("[0-9a-f]{40}", self.revision))

    def cached(self) -> Path | None:
        """Return the snapshot's folder in the cache if it is whole, without asking the hub."""
        try:
            folder = Path(self._snapshot(local_files_only=True))
        except LocalEntryNotFoundError:
            return None
        return folder if self.is_whole(folder) else None

    def _snapshot(self, *, local_files_only: bool = False) -> str:
        return snapshot_download(
            self.repo_id,
            repo_type=self.repo_type,
            revision=self.revision,
            allow_patterns=list(self.patterns),
            tqdm_class=tqdm,
            local_files_only=local_files_only,
        )

    def find(self) -> "HubFiles":
        """Ask the hub for the repository; return its files at the commit that the revision means.

        Raises:
            InputError: the repository lacks what is needed, or the disk has no room for it.
        """
        revision = HfApi().resolve_revision(
            self.repo_id, repo_type=self.repo_type, revision=self.revision
        )
        info = HfApi().repo_info(
            self.repo_id,
            repo_type=self.repo_type,
            revision=revision.resolved,
            files_metadata=True,
            timeout=constants.HF_HUB_ETAG_TIMEOUT,
        )
        siblings = cast(ModelInfo | DatasetInfo, info).siblings or []
        sizes = {file.rfilename: file.size or 0 for file in siblings}
        self.require(list(sizes))
        found = replace(self, revision=revision.resolved)
        names = found.to_fetch(list(sizes))
        size = sum(sizes[name] for name in names)
        found._require_room(size)
        if names:
            where = constants.HF_HUB_CACHE
            logger.info("Fetch %s: %d files, %s, to %s.", found, len(names), _bytes(size), where)
        return found

    def needed(self, held: Sequence[str]) -> list[str]:
        """Select the files to fetch from the names of all files of the repository."""
        return list(filter_repo_objects(held, allow_patterns=list(self.patterns)))

    def to_fetch(self, held: Sequence[str]) -> list[str]:
        """Select the needed files that the cache lacks."""
        return [
            name
            for name in self.needed(held)
            if not isinstance(
                try_to_load_from_cache(
                    self.repo_id, name, revision=self.revision, repo_type=self.repo_type
                ),
                str,
            )
        ]

    def _require_room(self, size: int) -> None:
        cache = Path(constants.HF_HUB_CACHE)
        exists = next(folder for folder in (cache, *cache.parents) if folder.exists())
        free = shutil.disk_usage(exists).free
        if size > free:
            raise InputError(
                f"{self} needs {_bytes(size)} in {cache}, where {_bytes(free)} are free; make room "
                "there, or set HF_HOME to a folder on another disk."
            )

    def download(self) -> Path:
        """Fetch what the cache lacks, compare all files with the hub's hashes, return the folder.

        Raises:
            InputError: a file differs from the hub's; it is removed from the cache.
        """
        os.environ.update(XET_LIMITS | os.environ)
        folder = Path(self._snapshot())
        checked = HfApi().verify_repo_checksums(
            self.repo_id, repo_type=self.repo_type, revision=self.revision
        )
        for mismatch in checked.mismatches:
            broken = folder / mismatch["path"]
            broken.resolve().unlink()
            broken.unlink(missing_ok=True)
            raise InputError(
                f"{mismatch['path']} of {self} arrived with other bytes than the hub has (SHA-256 "
                "or Git hash); it was removed from the cache: run again, and if it happens again "
                "look for a proxy that changes downloads."
            )
        return folder


@dataclass(frozen=True)
class ModelFiles(HubFiles):
    """A base model and its tokenizer, as safetensors and JSON, without pickles or code."""

    repo_type = "model"
    patterns = MODEL_FILES

    def __post_init__(self) -> None:
        try:
            validate_repo_id(self.repo_id)
        except HFValidationError as error:
            raise InputError(
                f"model.name: {self.repo_id!r} is neither a folder here nor a hub id; give one "
                "such as google/flan-t5-base, or the folder of a saved model."
            ) from error

    def __str__(self) -> str:
        return f"{self.repo_id} at {self.revision}"

    @property
    def pinned(self) -> str:
        return f"--params=model.revision={self.revision}"

    def require(self, held: Sequence[str]) -> None:
        if not any(name in (WEIGHTS, WEIGHTS_INDEX) for name in held):
            raise InputError(
                f"model.revision: {self.repo_id} has no safetensors at {self.revision}, and no "
                "other weights are loaded; pin a revision that has them."
            )
        for needed in ((CONFIG,), TOKENIZERS):
            if not any(name in needed for name in held):
                raise InputError(
                    f"model.name: {self.repo_id} has no {' or '.join(needed)} at {self.revision}; "
                    "give a model that was saved with its tokenizer."
                )

    def is_whole(self, folder: Path) -> bool:
        return missing_model_file(folder) is None


@dataclass(frozen=True)
class DataFiles(HubFiles):
    """A file in a dataset repository, a folder of Parquet files, or a pattern of names."""

    repo_type = "dataset"

    @classmethod
    def of(cls, url: str) -> "DataFiles":
        """Parse an `hf://` URL.

        Raises:
            InputError: the text is no such URL, or names no dataset repository.
        """
        try:
            uri = parse_hf_uri(url)
        except HfUriError as error:
            raise InputError(
                f"{url} is not the URL of a file on the hub; write it as "
                "hf://datasets/OWNER/NAME@COMMIT/path/in/it.parquet."
            ) from error
        if uri.type != "dataset":
            raise InputError(
                f"{url} lies in a {uri.type} repository; give files of a dataset repository, "
                "hf://datasets/OWNER/NAME@COMMIT/path/in/it.parquet."
            )
        return cls(uri.id, uri.revision or constants.DEFAULT_REVISION, uri.path_in_repo)

    def __str__(self) -> str:
        return self.pinned

    @property
    def pinned(self) -> str:
        path = f"/{self.path}" if self.path else ""
        return f"{PROTOCOL}datasets/{self.repo_id}@{self.revision.replace('/', '%2F')}{path}"

    @property
    def patterns(self) -> Sequence[str]:
        return [self.path, f"{self.path}/*.parquet"] if self.path else ["*.parquet"]

    def require(self, held: Sequence[str]) -> None:
        if not self.needed(held):
            inside = [name for name in held if name.startswith(f"{self.path}/")]
            lacks = f"Parquet file in {self.path}" if inside else self.path or "Parquet file"
            shown = sorted(name for name in inside or held if not name.startswith("."))
            raise InputError(
                f"{self.repo_id} has no {lacks} at {self.revision}; it has "
                f"{', '.join(shown[:5]) or 'no files'}."
            )

    def is_whole(self, folder: Path) -> bool:
        """Return whether the cache knows the repository's files and has all that are needed.

        A folder does not show whether another program left files out.
        """
        try:
            tree = get_cached_repo_tree(
                self.repo_id, repo_type=self.repo_type, revision=self.revision
            )
        except CachedRepoTreeNotFoundError:
            return (folder / self.path).is_file()
        held = [entry.path for entry in tree]
        return bool(self.needed(held)) and not self.to_fetch(held)


@dataclass(frozen=True)
class Fetched:
    """Fetched files at their commit, and the folder of the snapshot that holds them."""

    files: HubFiles
    folder: Path

    @property
    def path(self) -> Path:
        return self.folder / self.files.path


def fetch(*wanted: HubFiles) -> list[Fetched]:
    """Fetch files into the hub's cache, once all of them have been found; keep what the cache has.

    A commit that the cache holds whole needs no request. `fetch` looks a branch or tag up and logs
    its commit; if the hub does not answer, the last known commit stands in, with a warning.

    Raises:
        InputError: names all files that cannot be fetched, the reasons and the remedies.
    """
    found: list[HubFiles] = []
    failures: dict[str, str] = {}
    for files in wanted:
        try:
            found.append(_at_commit(files))
        except FAILURES as error:
            failures[str(files)] = reason(error, files.page)
    if failures:
        raise _cannot_fetch(failures)
    fetched = []
    for files in found:
        try:
            folder = files.cached() or retried(files.download)
        except FAILURES as error:
            raise _cannot_fetch({str(files): reason(error, files.page)}) from error
        fetched.append(Fetched(files, folder))
    return fetched


def missing_model_file(folder: Path) -> str | None:
    """Return the first file that a folder lacks of a model with its tokenizer; None if whole.

    Raises:
        InputError: the index of the weights is damaged.
    """
    shards: set[str] = set()
    if not (folder / WEIGHTS).is_file() and (folder / WEIGHTS_INDEX).is_file():
        try:
            index = json.loads((folder / WEIGHTS_INDEX).read_text(encoding="utf-8"))
            shards = set(index["weight_map"].values())
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise InputError(
                f"{folder / WEIGHTS_INDEX} is no index of safetensors; fetch it again."
            ) from error
    for needed in ([CONFIG], *([name] for name in sorted(shards or {WEIGHTS})), TOKENIZERS):
        if not any((folder / name).is_file() for name in needed):
            return " or ".join(needed)
    return None


FAILURES = (httpx.HTTPError, OSError, RuntimeError, JSONDecodeError, RevisionResolutionError)


def _at_commit(files: HubFiles) -> HubFiles:
    if files.is_commit and files.cached():
        return files
    try:
        found = retried(files.find)
    except FAILURES as error:
        answers = _status(error) not in (None, *RETRIED)
        folder = None if answers else files.cached()
        if folder is None:
            raise
        found = replace(files, revision=folder.name)
        logger.warning(
            "The hub does not say which commit %s is now (%s); this run takes the last known one.",
            files,
            reason(error, files.page),
        )
    if not files.is_commit:
        logger.warning(
            "%s names no commit and may move to other files, so a later run may read others. This "
            "run reads commit %s; to pin it: %s",
            files,
            found.revision,
            found.pinned,
        )
    return found


def retried(call: Callable[[], T]) -> T:
    """Call, and call again some seconds later, while the hub is overloaded or fails."""
    for wait in WAITS:
        _limit_waiting()
        try:
            return call()
        except HfHubHTTPError as error:
            if _status(error) not in RETRIED:
                raise
            logger.warning("The hub answers %d; try again in %d s.", _status(error), wait)
            time.sleep(wait)
    _limit_waiting()
    return call()


def _limit_waiting() -> None:
    """Give every request of the hub's client a time-out; the client leaves some without."""
    session = get_session()
    hooks = session.event_hooks
    if _set_time_out not in hooks["request"]:
        session.event_hooks = hooks | {"request": [*hooks["request"], _set_time_out]}


def _set_time_out(request: httpx.Request) -> None:
    limit: float = max(constants.HF_HUB_ETAG_TIMEOUT, constants.HF_HUB_DOWNLOAD_TIMEOUT)
    if request.method == "PUT" or "/commit/" in request.url.path:  # takes files in
        limit *= UPLOAD_PATIENCE
    given = request.extensions["timeout"]
    request.extensions["timeout"] = {
        phase: min(seconds or limit, limit) for phase, seconds in given.items()
    }


def _status(error: BaseException) -> int | None:
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def reason(error: BaseException, page: str) -> str:
    """Return a clause with the reason of a failure and the remedy.

    Args:
        error: one of `FAILURES`.
        page: the address of the repository.
    """
    while isinstance(error, LocalEntryNotFoundError | RevisionResolutionError) and error.__cause__:
        error = error.__cause__
    status = _status(error)
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set: unset it to fetch"
    if isinstance(error, RevisionNotFoundError):
        return f"revision not found; choose one of {page}/commits/main"
    if isinstance(error, GatedRepoError):
        return f"gated: accept the terms on {page}, then log in with `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return "not found, or private: correct the name, or log in with `hf auth login`"
    if status in (401, 403):
        return f"access refused ({status}): log in with `hf auth login`"
    if status == 429:
        return "rate limit reached (429): run again in some minutes, or log in with `hf auth login`"
    if status is not None:
        return f"the hub answers {status}: run again later"
    if isinstance(error, httpx.TimeoutException):
        seconds = max(constants.HF_HUB_ETAG_TIMEOUT, constants.HF_HUB_DOWNLOAD_TIMEOUT)
        return f"no answer within {seconds} s: run again later, or set HF_HUB_DOWNLOAD_TIMEOUT"
    if isinstance(error, FileMetadataError | JSONDecodeError):
        return (
            f"{constants.ENDPOINT} does not answer as the hub does; look for a proxy's or a "
            "network's sign-in page, and at HTTPS_PROXY and HF_ENDPOINT"
        )
    if isinstance(error, RuntimeError):
        return (
            f"the Xet store of the hub cannot be read ({_first_line(error)}); set "
            "HF_HUB_DISABLE_XET=1 to fetch without it"
        )
    if isinstance(error, httpx.RemoteProtocolError) or "Consistency check" in str(error):
        return "the connection was lost: run again, which fetches only what is missing"
    if isinstance(error, OSError) and error.errno and error.filename is None:
        return (
            f"{constants.HF_HUB_CACHE} cannot be written ({error.strerror}): make room there, or "
            "set HF_HOME to a folder on another disk"
        )
    return _first_line(error)


def _cannot_fetch(failures: dict[str, str]) -> InputError:
    return InputError(
        f"Cannot fetch from the Hugging Face hub: {', '.join(failures)} "
        f"({'; '.join(dict.fromkeys(failures.values()))}); name a local snapshot with "
        "--params=model.name=/path/to/snapshot,data.train_file=/path/to/train.parquet,"
        "data.validation_file=/path/to/validation.parquet, or run the embedded default, which "
        "needs no network: kedro run."
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")


def _bytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
