"""A Hugging Face hub on this machine that answers as the real one does, and a cache of its own."""

import hashlib
import io
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import constants

from common.runs.files import to_json, to_safetensors

NAME = "org/name"
CONFIG = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 7}


def weights(seed, dtype=np.float32):
    """Tensors of a model; the second one is longer than its samples."""
    numbers = np.random.default_rng(seed)
    shapes = {"embedding": (20, 30), "layer": (100, 200), "bias": (5,)}
    return {name: numbers.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def checkpoint(seed, **config):
    """The files of a checkpoint."""
    return {"config.json": to_json(CONFIG | config), "model.safetensors": to_safetensors(weights(seed))}


class Hub:
    """Models by name; a model has revisions by name, which are files by path, or the code of the error for it."""

    def __init__(self):
        self.models = {NAME: {}}
        self.errors = {}
        """Status and code by the beginning of a path."""
        self.parameters = None
        """Their number by dtype, if the hub knows it."""
        self.requests = []

    def commit(self, name, revision):
        """The commit of a revision, or of a commit itself."""
        files = self.models[name]
        commits = {ref: hashlib.sha1(f"{name}{ref}".encode()).hexdigest() for ref in files}
        return commits.get(revision, revision), {commits[ref]: content for ref, content in files.items()}

    def files(self, name, revision):
        commit, known = self.commit(name, revision)
        return commit, known.get(commit)


def digests(content):
    return hashlib.sha1(content).hexdigest(), hashlib.sha256(content).hexdigest()


def is_large(path):
    return path.endswith((".safetensors", ".bin"))


def description(path, content):
    """As in an answer about a revision and, with other names, in a listing of its files."""
    oid, sha256 = digests(content)
    entry = {"type": "file", "path": path, "rfilename": path, "size": len(content), "oid": oid, "blobId": oid}
    lfs = {"oid": sha256, "sha256": sha256, "size": len(content), "pointerSize": 100}
    return entry | ({"lfs": lfs} if is_large(path) else {})


def answer(hub, path):
    """Status, headers and body."""
    for beginning, (status, code) in hub.errors.items():
        if path.startswith(beginning):
            return status, {"X-Error-Code": code} if code else {}, b"{}"
    parts = path.strip("/").split("/")
    is_api = parts[:2] == ["api", "models"]
    name = "/".join(parts[2:4] if is_api else parts[:2])
    kind, *rest = (parts[4:] if is_api else parts[2:]) or [""]
    if name not in hub.models:
        return 401, {"X-Error-Message": "Invalid username or password."}, b"{}"
    if kind == "refs":
        refs = [{"name": ref, "ref": ref, "targetCommit": hub.commit(name, ref)[0]} for ref in hub.models[name]]
        return 200, {}, json.dumps({"branches": refs[::2], "tags": refs[1::2], "converts": []}).encode()
    commit, files = hub.files(name, rest[0])
    if files is None:
        return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
    described = [description(path, content) for path, content in files.items()]
    if kind == "revision":
        counts = hub.parameters and {"parameters": hub.parameters, "total": sum(hub.parameters.values())}
        about = {"id": name, "sha": commit, "siblings": described, "safetensors": counts}
        return 200, {}, json.dumps(about).encode()
    if kind == "tree":
        return 200, {}, json.dumps(described).encode()
    file = "/".join(rest[1:])
    if file not in files:
        return 404, {"X-Error-Code": "EntryNotFound"}, b""
    etag = digests(files[file])[is_large(file)]
    return 200, {"X-Repo-Commit": commit, "ETag": f'"{etag}"'}, files[file]


@contextmanager
def serving(hub):
    """The address at which a hub answers meanwhile."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(path)
            status, headers, body = answer(hub, path)
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


NOWHERE = "http://127.0.0.1:9"


def use(monkeypatch, cache, address=NOWHERE):
    """Let huggingface_hub use this cache and the hub at this address, and no other."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")


def cache_by_hand(cache, revision, files, name=NAME, kind="models"):
    """Put a revision of a model, or of one of the `datasets`, into a cache, as a download would."""
    model = cache / f"{kind}--{name.replace('/', '--')}"
    commit = hashlib.sha1(f"{name}{revision}".encode()).hexdigest()
    snapshot = model / "snapshots" / commit
    for folder in (model / "blobs", snapshot, (model / "refs" / revision).parent):
        folder.mkdir(parents=True, exist_ok=True)
    for path, content in files.items():
        blob = model / "blobs" / digests(content)[is_large(path)]
        blob.write_bytes(content)
        (snapshot / path).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / path).symlink_to(blob)
    (model / "refs" / revision).write_text(commit)
    return snapshot


def cache_dataset(cache, name, config, commit, texts):
    """Put the split `train` of a dataset with a column `text` into a cache of `datasets`, as `load_dataset` would."""
    organisation, short = name.split("/")
    folder = cache / f"{organisation}___{short}" / config / "0.0.0" / commit
    folder.mkdir(parents=True)
    table = pa.table({"text": texts})
    with pa.ipc.new_stream(str(folder / f"{short}-train.arrow"), table.schema) as stream:
        stream.write_table(table)
    split = {"name": "train", "num_examples": len(texts), "dataset_name": short}
    features = {"text": {"dtype": "string", "_type": "Value"}}
    info = {"config_name": config, "dataset_name": short, "features": features, "splits": {"train": split}}
    (folder / "dataset_info.json").write_bytes(to_json(info))


def parquet(texts):
    """A file with a column `text`."""
    content = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), content)
    return content.getvalue()
