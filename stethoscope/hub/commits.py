"""Which commit a branch means. A process stays with the one that it met first, so that all its numbers are of one."""

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HFValidationError, RevisionResolutionError

_met: dict[tuple[str, str, str, str, str | None], str] = {}


def commit_of(repo_id: str, revision: str | None = None, repo_type: str = "model") -> str:
    """Return the commit that `revision` (None: main) means, from the hub or, where that does not answer, the cache.

    Raises:
        what huggingface_hub raises; `hub.fetch` turns it into a `HubError`.
    """
    key = _key(repo_id, revision, repo_type)
    if key not in _met:
        _met[key] = HfApi().resolve_revision(repo_id, revision=revision, repo_type=repo_type).resolved
    return _met[key]


def known_commit(repo_id: str, revision: str | None = None, repo_type: str = "model") -> str | None:
    """Return the commit that this process, or else the cache, takes `revision` for; the hub is not asked."""
    if (met := _met.get(_key(repo_id, revision, repo_type))) is not None:
        return met
    try:
        return HfApi().resolve_revision(repo_id, revision=revision, repo_type=repo_type, local_files_only=True).resolved
    except (RevisionResolutionError, HFValidationError):
        return None


def forget_commits() -> None:
    """Ask the hub anew what branches mean."""
    _met.clear()


def _key(repo_id: str, revision: str | None, repo_type: str) -> tuple[str, str, str, str, str | None]:
    return constants.ENDPOINT, constants.HF_HUB_CACHE, repo_type, repo_id, revision
