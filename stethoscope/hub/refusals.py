"""Error messages for all failures of the hub, each with the next step.

The server's messages are not repeated, because they can contain signed URLs. The token is never part of a message.
"""

import errno
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)

from stethoscope.errors import ResourceError, UserError

WRONG_TOKEN = "Invalid credentials"  # start of the hub's X-Error-Message for an unknown token
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


class HubError(UserError):
    """The hub does not have something, denies access to it, or did not send it completely."""


def refusal(error: BaseException, repo: str, revision: str | None) -> UserError:
    """Return the message for `error` during a download from `repo` (a title such as "model NAME")."""
    wrapped = isinstance(error, RevisionResolutionError | LocalEntryNotFoundError)
    cause = error.__cause__ if wrapped else error
    match cause:
        case UserError():
            return cause
        case HFValidationError():
            return HubError(
                f"{repo} is not a valid hub id",
                expected="OWNER/NAME, or a path on this machine (absolute, or starting with a dot)",
                next_step="Check the id or the path.",
            )
        case OfflineModeIsEnabled() | None:
            return offline(repo, revision)
        case HfHubHTTPError():
            return _answered(cause, repo, revision)
        case httpx2.HTTPError():
            return unreachable(cause, repo)
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return no_space(Path(constants.HF_HUB_CACHE), None, None)
        case OSError() | CachedRepoTreeNotFoundError():  # the file list could not be stored
            return _unwritable(cause)
        case _:
            return HubError(
                f"cannot download {repo}",
                got=type(cause).__name__,
                next_step="Try again, or download it with `hf download`.",
            )


def offline(repo: str, revision: str | None, missing: str = "no copy of it") -> HubError:
    """Return the message for something missing in the cache when offline."""
    return HubError(
        f"{repo}{_at(revision)} is neither a path on this machine nor in the hub's cache, and HF_HUB_OFFLINE is set",
        got=missing,
        expected="an existing path, or a repository that was downloaded before",
        next_step="If you meant a path, correct it. Otherwise unset HF_HUB_OFFLINE and run this once with a network.",
    )


def unreachable(error: httpx2.HTTPError, repo: str) -> HubError:
    """Return the message for a hub that cannot be reached."""
    trouble = "no response in time" if isinstance(error, httpx2.TimeoutException) else type(error).__name__
    return HubError(
        f"{repo} is not a path on this machine, and the hub cannot be reached",
        got=f"{trouble} from {urlsplit(constants.ENDPOINT).hostname}",
        expected="an existing path, a network connection, or all files in the cache",
        next_step=(
            "If you meant a path, correct it. Otherwise check the network, proxy and HF_ENDPOINT, then try "
            "again; downloaded files are kept."
        ),
    )


def _answered(error: HfHubHTTPError, repo: str, revision: str | None) -> HubError:
    status = error.response.status_code
    logged_in = get_token() is not None
    if (error.response.headers.get("X-Error-Message") or "").startswith(WRONG_TOKEN):
        return _wrong_token(repo)
    if isinstance(error, GatedRepoError):
        return HubError(
            f"{repo} is gated",
            got="a token of an account without access" if logged_in else "no token",
            expected="an account that has accepted its terms",
            next_step="Accept the terms on the repository's page with the account of your token, then try again."
            if logged_in
            else f"Accept the terms on the repository's page, {LOG_IN} with that account, then try again.",
        )
    if status == 401 and logged_in:
        return _wrong_token(repo)
    if isinstance(error, RepositoryNotFoundError) or status == 401:
        return HubError(
            f"the hub has no {repo}",
            got="not found" if logged_in else "not found, and no token to access private repositories",
            expected="OWNER/NAME of an existing repository, or an existing path on this machine",
            next_step="Check the id or the path."
            if logged_in
            else f"Check the id or the path. If the repository is private, {LOG_IN}.",
        )
    if isinstance(error, RevisionNotFoundError):
        return HubError(
            f"{repo} has no revision {revision or 'main'}",
            expected="a branch, a tag or a full commit hash",
            next_step="Check the revision.",
        )
    if status == 403:
        return HubError(
            f"the hub denied access to {repo}",
            got="403 Forbidden",
            expected="a token with read access",
            next_step="In the token's settings, allow it to read gated repositories, or use another token.",
        )
    if status == 429:
        return HubError(
            f"too many requests to the hub for {repo}",
            got="429 Too Many Requests",
            next_step="Wait a few minutes and try again" + ("." if logged_in else f", or {LOG_IN}."),
        )
    return HubError(
        f"the hub could not serve {repo}",
        got=f"HTTP status {status}",
        expected="200 or 206",
        next_step="Try again later; downloaded files are kept.",
    )


def _wrong_token(repo: str) -> HubError:
    return HubError(
        f"the hub rejected the token for {repo}",
        got="401 Unauthorized",
        expected="a valid access token",
        next_step="Log in again with `hf auth login`, or correct or unset HF_TOKEN.",
    )


def _unwritable(error: BaseException) -> ResourceError:
    return ResourceError(
        "cannot write to the hub's cache folder",
        got=f"{getattr(error, 'strerror', None) or 'nothing written'} at {constants.HF_HUB_CACHE}",
        expected="a writable folder",
        next_step="Fix its permissions, or set HF_HOME to another folder.",
    )


def no_space(folder: Path, needed_bytes: int | None, free_bytes: int | None) -> ResourceError:
    """Return the message for a disk that is too small, with both sizes if known."""
    return ResourceError(
        "not enough disk space for this download",
        got="a full disk" if free_bytes is None else f"{free_bytes / 1e9:.2f} GB free at {folder}",
        expected=None if needed_bytes is None else f"{needed_bytes / 1e9:.2f} GB",
        next_step="Free some disk space, or set HF_HOME to a folder on another disk; downloaded files are kept.",
    )


def _at(revision: str | None) -> str:
    return f" at {revision}" if revision else ""
