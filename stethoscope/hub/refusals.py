"""What can go wrong between here and the hub, each said once and with the next step.

A server's own words are not repeated: they may hold signed addresses. The token is never part of a message.
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

WRONG_TOKEN = "Invalid credentials"  # how the hub's X-Error-Message begins for a token that it does not know
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


class HubError(UserError):
    """Something that the hub does not have, does not give, or did not send whole."""


def refusal(error: BaseException, repo: str, revision: str | None) -> UserError:
    """Return the message for `error`, met while fetching from `repo` (a title such as "model NAME")."""
    wrapped = isinstance(error, RevisionResolutionError | LocalEntryNotFoundError)
    cause = error.__cause__ if wrapped else error
    match cause:
        case UserError():
            return cause
        case HFValidationError():
            return HubError(
                f"{repo} is not in the form of a hub id",
                expected="OWNER/NAME, or a path on this machine (absolute, or beginning with a dot)",
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
        case OSError() | CachedRepoTreeNotFoundError():  # the listing that was just fetched could not be kept
            return _unwritable(cause)
        case _:
            return HubError(
                f"cannot fetch {repo}", got=type(cause).__name__, next_step="Try again, or fetch it with `hf download`."
            )


def offline(repo: str, revision: str | None, missing: str = "no copy of it") -> HubError:
    """Return the message for something that is not in the cache while the hub is switched off."""
    return HubError(
        f"{repo}{_at(revision)} is no path on this machine and not in the hub's cache, and HF_HUB_OFFLINE is set",
        got=missing,
        expected="a path that exists, or every file, fetched before",
        next_step="If it is meant as a path, correct it. Otherwise unset HF_HUB_OFFLINE and run this once with a "
        "network.",
    )


def unreachable(error: httpx2.HTTPError, repo: str) -> HubError:
    """Return the message for a hub that does not answer."""
    trouble = "no answer in time" if isinstance(error, httpx2.TimeoutException) else type(error).__name__
    return HubError(
        f"{repo} is no path on this machine, and the hub cannot be reached",
        got=f"{trouble} from {urlsplit(constants.ENDPOINT).hostname}",
        expected="a path that exists, or a network, or every file in the cache",
        next_step="If it is meant as a path, correct it. Otherwise check the network, proxy and HF_ENDPOINT, then try "
        "again: what was fetched is kept.",
    )


def _answered(error: HfHubHTTPError, repo: str, revision: str | None) -> HubError:
    status = error.response.status_code
    logged_in = get_token() is not None
    if (error.response.headers.get("X-Error-Message") or "").startswith(WRONG_TOKEN):
        return _wrong_token(repo)
    if isinstance(error, GatedRepoError):
        return HubError(
            f"{repo} is gated",
            got="a token whose account has no access" if logged_in else "no token",
            expected="an account that has accepted its terms",
            next_step="Accept the terms on its page on the hub with the account of your token, then try again."
            if logged_in
            else f"Accept the terms on its page on the hub, {LOG_IN} for that account, then try again.",
        )
    if status == 401 and logged_in:
        return _wrong_token(repo)
    if isinstance(error, RepositoryNotFoundError) or status == 401:
        return HubError(
            f"the hub has no {repo}",
            got="not found" if logged_in else "not found, and no token to look for private ones",
            expected="OWNER/NAME of a repository that exists, or a path that exists on this machine",
            next_step="Check the id or the path."
            if logged_in
            else f"Check the id or the path; if it is private, {LOG_IN}.",
        )
    if isinstance(error, RevisionNotFoundError):
        return HubError(
            f"{repo} has no revision {revision or 'main'}",
            expected="a branch, a tag or a whole commit hash",
            next_step="Check the revision.",
        )
    if status == 403:
        return HubError(
            f"the hub forbids reading {repo}",
            got="403 Forbidden",
            expected="a token that may read it",
            next_step="Give the token the right to read gated repositories in its settings, or take another one.",
        )
    if status == 429:
        return HubError(
            f"the hub limits how often it is asked, at {repo}",
            got="429 Too Many Requests",
            next_step="Wait some minutes and try again" + ("." if logged_in else f", or {LOG_IN}."),
        )
    return HubError(
        f"the hub could not serve {repo}",
        got=f"HTTP status {status}",
        expected="200 or 206",
        next_step="Try again later: what was fetched is kept.",
    )


def _wrong_token(repo: str) -> HubError:
    return HubError(
        f"the hub does not accept the token, asked for {repo}",
        got="401 Unauthorized",
        expected="a valid access token",
        next_step="Log in again with `hf auth login`, or mend or unset HF_TOKEN.",
    )


def _unwritable(error: BaseException) -> ResourceError:
    return ResourceError(
        "cannot write to the hub's cache folder",
        got=f"{getattr(error, 'strerror', None) or 'nothing written'} at {constants.HF_HUB_CACHE}",
        expected="a folder that can be written",
        next_step="Mend its permissions, or set HF_HOME to another folder.",
    )


def no_space(folder: Path, needed_bytes: int | None, free_bytes: int | None) -> ResourceError:
    """Return the message for a disk that is too small, with both numbers where they are known."""
    return ResourceError(
        "not enough space on the disk for this download",
        got="a full disk" if free_bytes is None else f"{free_bytes / 1e9:.2f} GB free at {folder}",
        expected=None if needed_bytes is None else f"{needed_bytes / 1e9:.2f} GB",
        next_step="Free some space, or set HF_HOME to a folder on another disk: what was fetched is kept.",
    )


def _at(revision: str | None) -> str:
    return f" at {revision}" if revision else ""
