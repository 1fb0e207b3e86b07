"""A stand-in for the Hugging Face hub on loopback: repositories that are made, committed to and read back, by
the endpoints that huggingface_hub's client asks."""

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c0ffee" * 6 + "c0ff"


class Hub(BaseHTTPRequestHandler):
    repositories: dict[str, dict[str, bytes]]
    asked: list[tuple[str, str]]
    token: str

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.asked.append(("POST", self.path))
        if self.headers.get("Authorization") != f"Bearer {self.token}":
            return self.say({"error": "Invalid credentials"}, 401)
        if self.path == "/api/repos/create":
            given = json.loads(body)
            name = f"{given['organization']}/{given['name']}" if given.get("organization") else given["name"]
            self.repositories.setdefault(name, {})
            return self.say({"url": f"{self.root}/{name}", "name": name, "id": "1"})
        if self.path == "/api/validate-yaml":
            return self.say({"errors": [], "warnings": []})
        name, _, action = self.path.removeprefix("/api/models/").rpartition("/main")[0].rpartition("/")
        if action == "preupload":
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                for one in json.loads(body)["files"]
            ]
            return self.say({"files": files})
        if action == "commit":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.repositories[name][line["value"]["path"]] = content
            url = f"{self.root}/{name}/commit/{COMMIT}"
            return self.say({"success": True, "commitOid": COMMIT, "commitUrl": url})
        self.say({"error": "no such endpoint"}, 404)

    def do_GET(self) -> None:
        self.asked.append((self.command, self.path))
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/"):
            name, _, rest = path.removeprefix("/api/models/").partition("/revision/")
            name, _, tree = name.partition("/tree/")
            files = self.repositories.get(name)
            if files is None:
                return self.say({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            listed = [
                {"type": "file", "path": one, "size": len(files[one]), "oid": oid(files[one])}
                for one in files
            ]
            return self.say(
                listed
                if tree
                else {"id": name, "sha": COMMIT, "siblings": [{"rfilename": one} for one in files]}
            )
        name, _, rest = path.strip("/").partition("/resolve/")
        content = self.repositories.get(name, {}).get(rest.partition("/")[2])
        if content is None:
            return self.say({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        about = {"ETag": f'"{oid(content)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        self.send(content, 200, about)

    do_HEAD = do_GET

    @property
    def root(self) -> str:
        host, port = self.server.server_address[:2]
        return f"http://{host}:{port}"

    def say(self, answer: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send(
            json.dumps(answer).encode(), status, {"Content-Type": "application/json", **(headers or {})}
        )

    def send(self, content: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextlib.contextmanager
def hub(token: str = "secret") -> Iterator[tuple[str, type[Hub]]]:
    """Its address, and what it holds and was asked."""
    kind = type("OwnHub", (Hub,), {"repositories": {}, "asked": [], "token": token})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", kind
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
