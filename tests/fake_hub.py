"""A model hub on loopback, as far as the hub's client asks one: repositories of files, tokens, gates, cut transfers."""

import contextlib
import hashlib
import http.server
import json
import re
import threading
from dataclasses import dataclass, field


@dataclass
class Hub:
    """What it holds, how it behaves, and what it was asked. Change it while it runs."""

    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """"models/owner/name" → file → content."""
    tokens: tuple[str, ...] = ()
    """Who may come in; empty = everybody."""
    gated: bool = False
    status: int = 0
    """Answer everything with this."""
    cut: dict[str, int] = field(default_factory=dict)
    """file → bytes after which its transfer breaks off, once."""
    damage: set[str] = field(default_factory=set)
    """Files whose first byte is flipped on the way."""
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    """(method, path, Range or "")."""
    authorizations: set[str] = field(default_factory=set)
    url: str = ""

    def commit(self, repo: str) -> str:
        return hashlib.sha1(repo.encode() + b"".join(self.files[repo].values())).hexdigest()

    def downloads(self, name: str) -> list[str]:
        """The ranges of every transfer of a file."""
        return [ranged for method, path, ranged in self.asked if method == "GET" and path.endswith("/" + name)]


@contextlib.contextmanager
def running_hub():
    """A hub in a thread."""
    hub = Hub()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self):
        path = self.path.partition("?")[0]
        self.hub.asked.append((self.command, path, self.headers.get("Range", "")))
        self.hub.authorizations.add(self.headers.get("Authorization", ""))
        refused = self._refusal()
        if refused:
            return self._send(*refused)
        if found := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
            return self._describe(f"{found[1]}/{found[2]}", found[3], found[4])
        if found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._file(f"{(found[1] or 'models/')}{found[2]}", found[3], found[4])
        return self._send(404, {}, b"")

    do_HEAD = do_GET

    def _refusal(self):
        if self.hub.status:
            return self.hub.status, {}, b""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.hub.tokens and token not in self.hub.tokens:
            code = "GatedRepo" if self.hub.gated else "RepoNotFound"
            return (403 if self.hub.gated else 401), {"X-Error-Code": code, "X-Error-Message": "no"}, b""
        return None

    def _describe(self, repo, what, revision):
        if repo not in self.hub.files:
            return self._send(404, {"X-Error-Code": "RepoNotFound"}, b"")
        commit = self.hub.commit(repo)
        if revision not in (None, "main", commit):
            return self._send(404, {"X-Error-Code": "RevisionNotFound"}, b"")
        entries = [(name, len(data), self._etag(data)) for name, data in self.hub.files[repo].items()]
        if what == "tree":
            tree = [{"type": "file", "path": n, "size": s, "oid": e[:40], "lfs": {"oid": e, "size": s, "pointerSize": 130}} for n, s, e in entries]
            return self._send(200, {"Content-Type": "application/json"}, json.dumps(tree).encode())
        siblings = [{"rfilename": n, "size": s, "blobId": e[:40], "lfs": {"sha256": e, "size": s, "pointerSize": 130}} for n, s, e in entries]
        return self._send(200, {"Content-Type": "application/json"}, json.dumps({"_id": "1", "id": repo.split("/", 1)[1], "sha": commit, "siblings": siblings}).encode())

    def _etag(self, data):
        return hashlib.sha256(data).hexdigest()

    def _file(self, repo, revision, name):
        data = self.hub.files.get(repo, {}).get(name)
        if data is None:
            return self._send(404, {"X-Error-Code": "EntryNotFound"}, b"")
        head = {"ETag": f'"{self._etag(data)}"', "X-Repo-Commit": self.hub.commit(repo), "Accept-Ranges": "bytes"}
        start = int(found[1]) if (found := re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))) else 0
        if start:
            head["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if name in self.hub.damage:
            data = bytes([data[0] ^ 1]) + data[1:]
        keep = self.hub.cut.pop(name, None) if self.command == "GET" else None
        return self._send(206 if start else 200, head, data[start:], keep)

    def _send(self, status, headers, body, keep=None):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "Connection": "close", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:keep])
            self.wfile.flush()
        self.close_connection = True

    def log_message(self, *_):
        pass
