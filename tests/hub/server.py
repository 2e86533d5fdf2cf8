"""A model hub on loopback: huggingface_hub 2.4's routes and headers, and faults to inject.

It implements what the library uses to resolve, list and download:

    GET  /api/{models,datasets}/ID[/revision/REV]            the commit of a branch
    GET  /api/{models,datasets}/ID/tree/COMMIT?recursive=..  names, sizes, hashes
    HEAD /[datasets/]ID/resolve/REV/PATH                     ETag, size, X-Repo-Commit; large files redirect
    GET  the same                                            bytes, with ranges; large files from a second host

Large files (`LARGE`) are on a second server of another origin, as on the real hub; tokens must not reach it.
`point_at` makes the library use this hub, in this process (its constants are read at import) and, through the
environment, in child processes.
"""

import contextlib
import hashlib
import json
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

LARGE = (".safetensors", ".parquet", ".npz")
READER = "test-token-of-an-account-with-access"
STRANGER = "test-token-of-an-account-without-access"
BLOCK = 16 << 10
PAGE = 50  # entries of a listing at a time


@dataclass
class Trouble:
    """What goes wrong with a file: cut off after so many bytes, `times` times; nothing more sent after so many before
    `LoopbackHub.stalled` is set; sent slowly; shorter or longer than listed; its first byte changed; ranges ignored;
    another status."""

    cut_after: int | None = None
    stall_after: int | None = None
    times: int = 10**9
    pause_s: float = 0.0
    short_by: int = 0
    longer_by: int = 0
    spoil: bool = False
    ignore_ranges: bool = False
    status: int | None = None


@dataclass(frozen=True)
class Asked:
    """One received request."""

    method: str
    path: str
    token: str | None
    range: str | None
    host: str


@dataclass
class Repo:
    """Commits (path -> content), branches, and access rights."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False

    def commit_of(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.branches.get(revision)


class LoopbackHub:
    """Repositories behind two servers; `asked` records every request, `troubles` the injected faults by file name.
    Requests with `mute` in their path are not answered before `stalled` is set.
    """

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.asked: list[Asked] = []
        self.troubles: dict[str, Trouble] = {}
        self.api_status: int | None = None
        self.connections: set[socket.socket] = set()
        self.stalled = threading.Event()
        self.mute: str | None = None
        self._hosts = [self._serve("hub"), self._serve("store")]
        self.endpoint, self.store = (f"http://127.0.0.1:{server.server_port}" for server in self._hosts)

    def add(
        self,
        repo_id: str,
        files: Mapping[str, bytes | str | Path],
        *,
        repo_type: str = "model",
        branch: str = "main",
        gated: bool = False,
        private: bool = False,
    ) -> str:
        """Commit `files` to `branch` of `repo_id` (replacing its tree), and return the commit."""
        tree = {
            name: content.read_bytes()
            if isinstance(content, Path)
            else content.encode()
            if isinstance(content, str)
            else content
            for name, content in files.items()
        }
        repo = self.repos.setdefault((repo_type, repo_id), Repo())
        repo.gated, repo.private = gated, private
        digest = hashlib.sha1(repo_id.encode())
        for name in sorted(tree):
            digest.update(f"{name}\0".encode() + hashlib.sha256(tree[name]).digest())
        commit = digest.hexdigest()
        repo.commits[commit] = tree
        repo.branches[branch] = commit
        return commit

    def add_folder(self, repo_id: str, folder: Path, **fields: Any) -> str:
        """Commit every file below `folder`; see `add`."""
        files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        return self.add(repo_id, files, **fields)

    def sent(self, name: str) -> list[Asked]:
        """Return the GET requests for files called `name` at the host that served their bytes."""
        host = "store" if name.endswith(LARGE) else "hub"
        return [ask for ask in self.asked if ask.method == "GET" and ask.host == host and f"/{name}" in ask.path]

    def stop(self) -> None:
        """Close both servers and all open connections; later requests fail to connect."""
        self.stalled.set()
        while self._hosts:
            server = self._hosts.pop()
            server.shutdown()
            server.server_close()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _serve(self, host: str) -> ThreadingHTTPServer:
        handler = type("Handler", (_Handler,), {"hub": self, "host": host})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        server.handle_error = lambda *_: None  # a client that was killed is part of the tests
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return server


class _Handler(BaseHTTPRequestHandler):
    """One request to the hub, or to the store of large files."""

    hub: LoopbackHub
    host: str
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.hub.connections.add(self.connection)

    def finish(self) -> None:
        self.hub.connections.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        bearer = self.headers.get("authorization")
        self.token = bearer.removeprefix("Bearer ") if bearer else None
        self.hub.asked.append(Asked(self.command, self.path, self.token, self.headers.get("range"), self.host))
        address = urlsplit(self.path)
        if self.hub.mute is not None and self.hub.mute in address.path:
            self.hub.stalled.wait()
        parts = [unquote(part) for part in address.path.strip("/").split("/")]
        if self.host == "store":
            repo_type, repo_id, commit, name = parts[0], "/".join(parts[1:3]), parts[3], "/".join(parts[4:])
            self._send_file(self.hub.repos[repo_type, repo_id].commits[commit][name], name, {})
        elif parts[0] == "api":
            self._answer_api(parts[1:], parse_qs(address.query))
        else:
            self._answer_resolve(parts)

    def _repo(self, repo_type: str, repo_id: str, revision: str) -> tuple[Repo, str] | None:
        """Return the repository and commit, or send the error response for this caller."""
        if self.token not in (None, READER, STRANGER):
            self._refuse(401, message="Invalid credentials in Authorization header")
        elif self.hub.api_status is not None:
            self._refuse(self.hub.api_status)
        elif (repo := self.hub.repos.get((repo_type, repo_id))) is None or (repo.private and self.token != READER):
            if self.token is None:
                self._refuse(401, message="Invalid username or password.")
            else:
                self._refuse(404, "RepoNotFound", "Repository not found")
        elif (commit := repo.commit_of(revision)) is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return repo, commit
        return None

    def _answer_api(self, parts: list[str], query: dict[str, list[str]]) -> None:
        repo_type, repo_id, rest = parts[0].removesuffix("s"), "/".join(parts[1:3]), parts[3:]
        found = self._repo(repo_type, repo_id, rest[1] if len(rest) > 1 else "main")
        if found is None:
            return
        repo, commit = found
        tree = repo.commits[commit]
        if not rest or rest[0] == "revision":
            siblings = [{"rfilename": name} for name in sorted(tree)]
            self._send_json({"id": repo_id, "sha": commit, "siblings": siblings, "gated": repo.gated})
            return
        assert rest[0] == "tree", self.path
        names, start = sorted(tree), int(query.get("cursor", ["0"])[0])
        headers = {}
        if start + PAGE < len(names):
            following = f"{self.hub.endpoint}{urlsplit(self.path).path}?recursive=true&cursor={start + PAGE}"
            headers["Link"] = f'<{following}>; rel="next"'
        self._send_json([_entry(name, tree[name]) for name in names[start : start + PAGE]], headers)

    def _answer_resolve(self, parts: list[str]) -> None:
        repo_type = parts.pop(0).removesuffix("s") if parts[0] == "datasets" else "model"
        repo_id, revision, name = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        found = self._repo(repo_type, repo_id, revision)
        if found is None:
            return
        repo, commit = found
        if repo.gated and self.token != READER:
            self._refuse(403 if self.token else 401, "GatedRepo", f"Access to model {repo_id} is restricted.")
            return
        content = repo.commits[commit].get(name)
        headers = {"X-Repo-Commit": commit}
        if content is None:
            self._refuse(404, "EntryNotFound", "Entry not found", headers)
        elif name.endswith(LARGE):
            headers |= {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{_etag(name, content)}"'}
            place = f"{self.hub.store}/{repo_type}/{repo_id}/{commit}/{name}?signature=of-this-address"
            self._send(302, b"", headers | {"Location": place})
        else:
            self._send_file(content, name, headers | {"ETag": f'"{_etag(name, content)}"'})

    def _send_file(self, content: bytes, name: str, headers: dict[str, str]) -> None:
        trouble = self.hub.troubles.get(name, Trouble())
        if trouble.status is not None and self.command == "GET":
            self._refuse(trouble.status)
            return
        if self.command == "GET":
            content = content[: len(content) - trouble.short_by] + bytes(trouble.longer_by)
            content = bytes([content[0] ^ 1]) + content[1:] if trouble.spoil else content
        start, status = 0, 200
        wanted = self.headers.get("range")
        if wanted and not trouble.ignore_ranges:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, status = int(first), 206
            whole, content = len(content), content[: int(last) + 1] if last else content
            if start >= len(content):
                self._refuse(416, headers={"Content-Range": f"bytes */{whole}"})
                return
            headers = headers | {"Content-Range": f"bytes {start}-{len(content) - 1}/{whole}"}
        self._send(status, content[start:], headers | {"Accept-Ranges": "bytes"}, trouble)

    def _send(self, status: int, body: bytes, headers: dict[str, str], trouble: Trouble | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        trouble = trouble or Trouble()
        if trouble.cut_after is not None and trouble.times > 0:
            trouble.times -= 1
            body, self.close_connection = body[: trouble.cut_after], True
        try:
            if trouble.stall_after is not None:
                self.wfile.write(body[: trouble.stall_after])
                self.wfile.flush()
                body = body[trouble.stall_after :]
                self.hub.stalled.wait()
            for at in range(0, len(body), BLOCK):
                self.wfile.write(body[at : at + BLOCK])
                self.wfile.flush()
                time.sleep(trouble.pause_s)
        except OSError:
            self.close_connection = True

    def _send_json(self, body: object, headers: dict[str, str] | None = None) -> None:
        self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"} | (headers or {}))

    def _refuse(
        self, status: int, code: str | None = None, message: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        extra = {name: value for name, value in (("X-Error-Code", code), ("X-Error-Message", message)) if value}
        self._send(status, json.dumps({"error": message or code or ""}).encode(), extra | (headers or {}))


def _etag(name: str, content: bytes) -> str:
    """Return the hub's ETag of this content: SHA-256 for large files, git's object id for others."""
    if name.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(name: str, content: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": name, "size": len(content), "oid": _etag("", content)}
    if name.endswith(LARGE):
        entry["lfs"] = {"oid": _etag(name, content), "size": len(content), "pointerSize": 134}
    return entry


def hub_environment(endpoint: str, home: Path, *, token: str | None = None, offline: bool = False) -> dict[str, str]:
    """Return the environment that makes a child process use the hub at `endpoint` with its cache in `home`."""
    wanted = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1" if offline else "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "5",
    }
    return wanted | ({"HF_TOKEN": token} if token else {})


def point_at(
    monkeypatch: pytest.MonkeyPatch, endpoint: str, home: Path, *, token: str | None = None, offline: bool = False
) -> None:
    """Make huggingface_hub use the hub at `endpoint`, with its cache and login in `home`, in this process and children.

    The library reads these constants from the environment at its import, and all of them through the module, so that
    setting them there is enough; `HF_TOKEN` it reads at each request.
    """
    close_session()
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in hub_environment(endpoint, home, token=token, offline=offline).items():
        monkeypatch.setenv(name, value)
    for name, value in {
        "ENDPOINT": endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
        "HF_HUB_OFFLINE": offline,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DOWNLOAD_TIMEOUT": 5,
    }.items():
        monkeypatch.setattr(constants, name, value)
