"""A stub of Hugging Face's Hub: a real HTTP server on 127.0.0.1 with the requests of
`huggingface_hub` that fetching and uploading make. It keeps everything in memory.

    GET   /api/models/OWNER/NAME[/revision/REV]     commit and listing
    GET   /api/models/OWNER/NAME/refs               branches
    HEAD  /OWNER/NAME/resolve/REV/FILE              size, digest, commit;  GET: the bytes
    POST  /api/repos/create                         a new repository
    POST  /api/validate-yaml                        of a card
    POST  /api/models/OWNER/NAME/branch/REV         a new branch
    POST  /api/models/OWNER/NAME/preupload/REV      which files are large
    POST  /OWNER/NAME.git/info/lfs/objects/batch    where large files are put;  PUT: the bytes
    POST  /api/models/OWNER/NAME/commit/REV         a commit

Of data sets "datasets" stands in the place of "models", and before OWNER.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml

LARGE = (".keras", ".safetensors", ".onnx", ".png", ".parquet", ".tar", ".bin", ".jpg")
TOKEN = "hf_of_a_test"


@dataclass
class Repository:
    """Commits with their files, branches, and who may read."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files, ref="main"):
        """Files beside those of the branch, as its new commit."""
        known = {**self.commits.get(self.refs.get(ref, ""), {}), **files}
        text = json.dumps([ref, len(self.commits), sorted(known)]).encode()
        self.refs[ref] = hashlib.sha1(text + b"".join(known.values())).hexdigest()
        self.commits[self.refs[ref]] = known
        return self.refs[ref]

    def find(self, revision):
        """Commit of a branch or a commit; None for neither."""
        commit = self.refs.get(revision, revision)
        return commit if commit in self.commits else None


class Hub:
    """The server; `repositories` by (kind, "OWNER/NAME"), `requests` as they came in."""

    def __init__(self):
        self.repositories, self.large = {}, {}
        self.requests, self.damaged, self.status, self.full = [], set(), None, False
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("H", (Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def add(self, name, files, kind="models", ref="main", **rights):
        """A repository with files: bytes, text, or a folder. Returns its commit."""
        if isinstance(files, Path):
            found = [path for path in files.rglob("*") if path.is_file()]
            files = {path.relative_to(files).as_posix(): path.read_bytes() for path in found}
        files = {k: v if isinstance(v, bytes) else v.encode() for k, v in files.items()}
        repository = self.repositories.setdefault((kind, name), Repository())
        repository.__dict__.update(rights)
        return repository.commit(files, ref)

    def fetched(self):
        """Names of the files whose bytes were asked for."""
        found = (re.search(r"/resolve/[^/]+/(.*)", p) for m, p in self.requests if m == "GET")
        return [unquote(match[1]) for match in found if match]


@contextlib.contextmanager
def running():
    """A `Hub` that answers until the block ends."""
    hub = Hub()
    thread = threading.Thread(target=hub.server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()
        thread.join()


def use(monkeypatch, hub, cache, token=None):
    """Let `huggingface_hub` in this process ask `hub`; `conftest` keeps it offline otherwise."""
    from huggingface_hub import constants

    url = hub if isinstance(hub, str) else hub.url
    for name, value in {
        "ENDPOINT": url,
        "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_DISABLE_XET": True,
        "HF_TOKEN_PATH": str(Path(cache) / "token"),
        "HF_STORED_TOKENS_PATH": str(Path(cache) / "tokens"),
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_ENDPOINT", url)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)


def environment(hub, cache, token=None):
    """Variables by which another process asks `hub`."""
    found = {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "0"}
    found |= {"HF_HUB_DISABLE_XET": "1", "HF_HOME": str(cache)}
    return found | ({"HF_TOKEN": token} if token else {})


class Handler(BaseHTTPRequestHandler):
    """Answers of the Hub."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        """Nothing on stderr."""

    def answer(self, status, body=b"", **headers):
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        self.send_response(status)
        headers.setdefault("Content_Length", len(body))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status, code="", message="no"):
        self.answer(status, {"error": message}, X_Error_Code=code, X_Error_Message=message)

    def handle_any(self):
        path = urlsplit(self.path).path
        self.hub.requests.append((self.command, path))
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = self.chunks()
        if self.hub.status:
            return self.refuse(self.hub.status)
        for pattern, function in ROUTES:
            if match := re.fullmatch(pattern, path):
                return function(
                    self, **{k: unquote(v or "") for k, v in match.groupdict().items()}
                )
        return self.refuse(404)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def chunks(self):
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    # --- Reading ---------------------------------------------------------------------------

    @property
    def logged_in(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def repository(self, kind, repo, writes=False):
        """The repository, or None after a refusal."""
        found = self.hub.repositories.get((kind or "models", repo))
        if self.headers.get("Authorization") and not self.logged_in:
            self.refuse(401, message="Invalid credentials in Authorization header")
        elif found is None or (found.private and not self.logged_in):
            self.refuse(404 if self.logged_in else 401, "RepoNotFound", "Repository not found")
        elif writes and not self.logged_in:
            self.refuse(401)
        elif writes and not repo.startswith("me/"):
            self.refuse(403, message="you may not write here")
        elif found.gated and not self.logged_in:
            self.refuse(401, "GatedRepo", "Access to it is restricted")
        else:
            return found
        return None

    def info(self, kind, repo, revision=""):
        if (found := self.repository(kind, repo)) is None:
            return
        commit = found.find(revision or "main")
        if commit is None:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        siblings = [self.entry(name, data) for name, data in found.commits[commit].items()]
        facts = {"id": repo, "sha": commit, "siblings": siblings, "private": found.private}
        self.answer(200, facts)

    def entry(self, name, data):
        sha1 = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        entry = {"rfilename": name, "size": len(data), "blobId": sha1}
        if name.endswith(LARGE):
            digest = hashlib.sha256(data).hexdigest()
            entry["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 130}
        return entry

    def refs(self, kind, repo):
        if (found := self.repository(kind, repo)) is None:
            return
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit}
            for name, commit in found.refs.items()
        ]
        self.answer(200, {"branches": branches, "tags": [], "converts": []})

    def resolve(self, kind, repo, revision, name):
        if (found := self.repository(kind, repo)) is None:
            return
        commit = found.find(revision)
        if commit is None:
            self.refuse(404, "RevisionNotFound")
            return
        data = found.commits[commit].get(name)
        if data is None:
            self.refuse(404, "EntryNotFound")
            return
        entry = self.entry(name, data)
        etag = entry["lfs"]["sha256"] if "lfs" in entry else entry["blobId"]
        headers = {"X_Repo_Commit": commit, "ETag": f'"{etag}"', "Content_Length": len(data)}
        if name in self.hub.damaged:
            data = data[:-1] + bytes([data[-1] ^ 1])
        self.answer(200, data, **headers)

    # --- Writing ---------------------------------------------------------------------------

    def create(self):
        asked = json.loads(self.body)
        if not self.logged_in:
            self.refuse(401)
            return
        repo = f"{asked['organization']}/{asked['name']}"
        kind = f"{asked.get('type', 'model')}s"
        if asked["organization"] != "me":
            self.refuse(403, message="you may not create here")
        elif (kind, repo) in self.hub.repositories:
            self.answer(409, {"error": "You already created it", "url": f"{self.hub.url}/{repo}"})
        else:
            private = asked.get("visibility") == "private" or asked.get("private", False)
            self.hub.add(repo, {".gitattributes": ""}, kind, private=private)
            self.answer(200, {"url": f"{self.hub.url}/{repo}"})

    def validate(self):
        content = json.loads(self.body)["content"]
        match = re.match(r"---\n(.*?)---\n", content, re.DOTALL)
        errors = [] if match and yaml.safe_load(match[1]) else [{"message": "no metadata"}]
        self.answer(400 if errors else 200, {"errors": errors, "warnings": []})

    def branch(self, kind, repo, revision):
        if (found := self.repository(kind, repo, writes=True)) is None:
            return
        if revision in found.refs:
            self.refuse(409, message="Reference already exists")
            return
        found.refs[revision] = found.refs["main"]
        self.answer(200, {})

    def preupload(self, kind, repo, revision):
        if (found := self.repository(kind, repo, writes=True)) is None:
            return
        if found.find(revision) is None:
            self.refuse(404, "RevisionNotFound")
            return
        files = [
            {
                "path": one["path"],
                "uploadMode": "lfs" if one["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
            }
            for one in json.loads(self.body)["files"]
        ]
        self.answer(200, {"files": files})

    def batch(self, kind, repo):
        if self.repository(kind, repo, writes=True) is None:
            return
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.hub.url}/large/{one['oid']}"}}}
            for one in json.loads(self.body)["objects"]
        ]
        self.answer(200, {"transfer": "basic", "objects": objects})

    def put(self, oid):
        if self.hub.full:
            self.refuse(507)
        elif hashlib.sha256(self.body).hexdigest() != oid:
            self.refuse(400, message="another digest")
        else:
            self.hub.large[oid] = self.body
            self.answer(200)

    def commit(self, kind, repo, revision):
        if (found := self.repository(kind, repo, writes=True)) is None:
            return
        files = {}
        for line in self.body.decode().splitlines():
            value = json.loads(line)["value"]
            if json.loads(line)["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif json.loads(line)["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
        commit = found.commit(files, revision)
        url = f"{self.hub.url}/{repo}/commit/{commit}"
        self.answer(200, {"commitUrl": url, "commitOid": commit})


REPO = r"(?P<repo>[^/]+/[^/]+)"
OF = rf"/(?:(?P<kind>datasets)/)?{REPO}"
API = rf"/api/(?P<kind>models|datasets)/{REPO}"
ROUTES = (
    (rf"{API}(?:/revision/(?P<revision>.+))?", Handler.info),
    (rf"{API}/refs", Handler.refs),
    (
        rf"/(?:(?P<kind>datasets)/)?{REPO}/resolve/(?P<revision>[^/]+)/(?P<name>.+)",
        Handler.resolve,
    ),
    (r"/api/repos/create", Handler.create),
    (r"/api/validate-yaml", Handler.validate),
    (rf"{API}/branch/(?P<revision>.+)", Handler.branch),
    (rf"{API}/preupload/(?P<revision>.+)", Handler.preupload),
    (rf"{OF}\.git/info/lfs/objects/batch", Handler.batch),
    (r"/large/(?P<oid>\w+)", Handler.put),
    (rf"{API}/commit/(?P<revision>.+)", Handler.commit),
)
