"""A hub on this machine, as far as a push asks it: repositories, large files, commits and tags."""

import base64
import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

TOKEN = "hf_" + "s3cretpushtoken" * 2
LARGE = (".parquet", ".safetensors")

# The number of a request (from 1), its method and path: what is answered in place of the hub; None lets it through.
Plan = Callable[[int, str, str], tuple[int, str] | None]


@dataclass
class Repository:
    url: str
    private: bool
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{".gitattributes": b""}])  # files by path
    tags: dict[str, int] = field(default_factory=dict)

    def at(self, revision: str) -> dict[str, bytes]:
        if revision == "main":
            return self.commits[-1]
        return self.commits[self.tags[revision] if revision in self.tags else int(revision, 16) - 1]

    @property
    def sha(self) -> str:
        return oid(len(self.commits) - 1)


def oid(commit: int) -> str:
    return f"{commit + 1:040x}"


def entry(path: str, content: bytes) -> dict:
    of_git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    found = {"type": "file", "path": path, "size": len(content), "oid": of_git}
    if path.endswith(LARGE):
        digest = hashlib.sha256(content).hexdigest()
        found |= {"oid": "f" * 40, "lfs": {"oid": digest, "size": len(content), "pointerSize": 130}}
    return found


class FakeHub:
    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}  # by datasets/ORG/NAME, models/ORG/NAME
        self.objects: dict[str, bytes] = {}  # large files by SHA-256
        self.requests: list[tuple[str, str]] = []
        self.plan: Plan = lambda number, method, path: None
        hub, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize, disable_nagle_algorithm = 1 << 16, True  # else every answer waits 40 ms for an acknowledgement

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                path = unquote(urlsplit(self.path).path)
                if path == "/api/agent-harnesses":  # the client asks once a process
                    status, answer = 404, {}
                else:
                    with lock:
                        status, answer = self.of_hub(path, body)
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def of_hub(self, path: str, body: bytes) -> tuple[int, object]:
                hub.requests.append((self.command, path))
                if planned := hub.plan(len(hub.requests), self.command, path):
                    return planned[0], {"error": planned[1]}
                if self.headers.get("Authorization") != f"Bearer {TOKEN}" and not path.startswith("/lfs/"):
                    return 401, {"error": "Invalid username or password."}
                return hub.answer(self.command, path, body)

            do_GET = do_POST = do_PUT = answer

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, object]:
        parts = path.strip("/").split("/")
        if parts[0] == "lfs":
            assert hashlib.sha256(body).hexdigest() == parts[1]
            self.objects[parts[1]] = body
            return 200, {}
        if path.endswith(".git/info/lfs/objects/batch"):
            asked = json.loads(body)["objects"]
            return 200, {"transfer": "basic", "objects": [self._action(of) for of in asked]}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        kind, org, name, *asked = parts[1:]
        repository = self.repositories.get(f"{kind}/{org}/{name}")
        if repository is None:
            return 404, {"error": "Repository not found"}
        if not asked or asked == ["revision", "main"]:
            return 200, {"id": f"{org}/{name}", "sha": repository.sha, "private": repository.private, "siblings": []}
        what, *rest = asked
        return getattr(self, f"_{what}")(repository, *rest, *([body] if method == "POST" else []))

    def _create(self, asked: dict) -> tuple[int, object]:
        name = f"{asked.get('type', 'model')}s/{asked['organization']}/{asked['name']}"
        answer = {"url": f"{self.url}/{name.removeprefix('models/')}"}
        if name in self.repositories:
            return 409, answer | {"error": "You already created this repository"}
        self.repositories[name] = Repository(answer["url"], asked.get("visibility") == "private")
        return 200, answer

    def _action(self, asked: dict) -> dict:
        action = {"upload": {"href": f"{self.url}/lfs/{asked['oid']}"}}
        return asked if asked["oid"] in self.objects else asked | {"actions": action}

    def _refs(self, repository: Repository) -> tuple[int, object]:
        tags = [
            {"name": name, "ref": f"refs/tags/{name}", "targetCommit": oid(commit)}
            for name, commit in repository.tags.items()
        ]
        main = {"name": "main", "ref": "refs/heads/main", "targetCommit": repository.sha}
        return 200, {"branches": [main], "converts": [], "tags": tags}

    def _tree(self, repository: Repository, revision: str) -> tuple[int, object]:
        return 200, [entry(path, content) for path, content in repository.at(revision).items()]

    def _preupload(self, repository: Repository, revision: str, body: bytes) -> tuple[int, object]:
        there = {path: entry(path, content) for path, content in repository.at(revision).items()}
        files = []
        for file in json.loads(body)["files"]:
            path = file["path"]
            known = there.get(path, {})
            files.append(
                {
                    "path": path,
                    "uploadMode": "lfs" if path.endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                    "oid": known.get("lfs", known).get("oid"),
                }
            )
        return 200, {"files": files}

    def _commit(self, repository: Repository, revision: str, body: bytes) -> tuple[int, object]:
        files = dict(repository.at(revision))
        for line in map(json.loads, body.splitlines()):
            key, value = line["key"], line["value"]
            if key == "header" and value["parentCommit"] != repository.sha:
                return 412, {"error": "A commit has happened since. Please refresh and try again."}
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        repository.commits.append(files)
        return 200, {"commitUrl": f"{repository.url}/commit/{repository.sha}", "commitOid": repository.sha}

    def _tag(self, repository: Repository, revision: str, body: bytes) -> tuple[int, object]:
        tag = json.loads(body)["tag"]
        if tag in repository.tags:
            return 409, {"error": "Tag reference exists already"}
        repository.tags[tag] = int(revision, 16) - 1
        return 200, {}

    def download(self, name: str, revision: str, target: Path) -> Path:
        """The files of a repository, as a folder."""
        for path, content in self.repositories[name].at(revision).items():
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            (target / path).write_bytes(content)
        return target
