"""Resolve branches to commits. A process always uses the first commit it resolved, so that all its results use the same
files."""

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HFValidationError, RevisionResolutionError

_met: dict[tuple[str, str, str, str, str | None], str] = {}


def commit_of(repo_id: str, revision: str | None = None, repo_type: str = "model") -> str:
    """Return the commit of `revision` (None: main), from the hub or, if it does not respond, from the cache.

    Raises:
        the errors of huggingface_hub; `hub.fetch` converts them to a `HubError`.
    """
    key = _key(repo_id, revision, repo_type)
    if key not in _met:
        _met[key] = HfApi().resolve_revision(repo_id, revision=revision, repo_type=repo_type).resolved
    return _met[key]


def known_commit(repo_id: str, revision: str | None = None, repo_type: str = "model") -> str | None:
    """Return the commit of `revision` known to this process or the cache, without asking the hub."""
    if (met := _met.get(_key(repo_id, revision, repo_type))) is not None:
        return met
    try:
        return HfApi().resolve_revision(repo_id, revision=revision, repo_type=repo_type, local_files_only=True).resolved
    except (RevisionResolutionError, HFValidationError):
        return None


def forget_commits() -> None:
    """Forget resolved commits, so that the hub is asked again."""
    _met.clear()


def _key(repo_id: str, revision: str | None, repo_type: str) -> tuple[str, str, str, str, str | None]:
    return constants.ENDPOINT, constants.HF_HUB_CACHE, repo_type, repo_id, revision
