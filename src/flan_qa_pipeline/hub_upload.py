"""Files uploaded to a model repository on the Hugging Face hub, in one commit."""

from collections.abc import Mapping
from pathlib import Path

import httpx
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    get_token,
)
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from flan_qa_pipeline.errors import InputError, in_one_line
from flan_qa_pipeline.files import DIGESTS, saved_digests
from flan_qa_pipeline.hub import FAILURES, RETRIED, reason, retried

EXPLAINED = (401, 404, *RETRIED)  # statuses for which `reason` has a remedy


def open_repository(name: str, *, private: bool) -> str:
    """Make a model repository if there is none, and return its id with its owner.

    Args:
        name: an id such as `ada/reader`, or a name without an owner: that of the token.
        private: the repository must be private; a new one becomes so. False: the hub's default.

    Raises:
        InputError: there is no token, the hub refuses, or an existing repository is public.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise InputError(f"--repo: {name!r} is no hub id; give one such as ada/reader.") from error
    if not get_token():
        raise InputError(
            "The hub takes uploads with a token only: set HF_TOKEN, or log in with `hf auth login`."
        )
    try:
        url = retried(lambda: HfApi().create_repo(name, private=private or None, exist_ok=True))
        repo_id: str = url.repo_id
        is_private = not private or retried(lambda: HfApi().model_info(repo_id)).private
    except FAILURES as error:
        raise _refused(name, error) from error
    if not is_private:
        raise InputError(
            f"{repo_id} is public and nothing was uploaded; make it private in "
            f"{_page(repo_id)}/settings, name another repository, or leave out --private."
        )
    return repo_id


def commit_files(repo_id: str, files: Mapping[str, Path | bytes], message: str) -> str:
    """Upload files, and remove those of an earlier upload that the new ones replace, in one commit.

    Args:
        repo_id: the repository, which exists.
        files: the files or their contents, by their names in the repository.
        message: of the commit.

    Returns:
        The address of the repository.

    Raises:
        InputError: the hub refuses, or does not answer; the repository is unchanged.
    """

    def commit() -> None:
        stale = _uploaded_before(repo_id) - files.keys()
        HfApi().create_commit(
            repo_id,
            [
                *(CommitOperationAdd(name, file) for name, file in files.items()),
                *(CommitOperationDelete(name) for name in sorted(stale)),
            ],
            commit_message=message,
        )

    try:
        retried(commit)
    except InputError:
        raise
    except (*FAILURES, ValueError) as error:  # ValueError: the card's metadata, or Git LFS
        raise _refused(repo_id, error) from error
    return _page(repo_id)


def _uploaded_before(repo_id: str) -> set[str]:
    """List the files of an earlier upload that a repository still has."""
    held = HfApi().list_repo_files(repo_id)
    if DIGESTS not in held:
        return set()
    folder = Path(HfApi().hf_hub_download(repo_id, DIGESTS)).parent
    return saved_digests(folder).keys() & set(held)


def _page(repo_id: str) -> str:
    return f"{constants.ENDPOINT}/{repo_id}"


def _refused(repo_id: str, error: Exception) -> InputError:
    cause: BaseException = error
    while isinstance(cause, RuntimeError) and cause.__cause__:  # of a thread that uploads
        cause = cause.__cause__
    status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
    if status == 403:
        why = "access refused (403): use a token that may write to this repository"
    elif isinstance(cause, HfHubHTTPError) and status not in EXPLAINED:
        why = f"the hub answers {status} ({in_one_line(cause.server_message or cause)})"
    elif isinstance(cause, httpx.TimeoutException | httpx.RemoteProtocolError):
        why = "the connection was lost or the hub stayed silent: run again"
    elif isinstance(cause, RuntimeError):
        why = (
            f"the Xet store of the hub does not take the files ({in_one_line(cause)}); set "
            "HF_HUB_DISABLE_XET=1 to upload without it"
        )
    elif isinstance(cause, FAILURES):
        why = reason(cause, _page(repo_id))
    else:
        why = in_one_line(str(cause))
    return InputError(f"Not uploaded to {repo_id}: {why}.")
