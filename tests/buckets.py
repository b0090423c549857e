"""A server that speaks as much of Cloud Storage's JSON API as our libraries use, for buckets that lie in memory.

Source: the reference of the API, https://cloud.google.com/storage/docs/json_api/v1. Objects: get, list, insert (media,
multipart, resumable), delete, rewrite, with preconditions on generations. Buckets: get.
"""

import contextlib
import dataclasses
import http.server
import itertools
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from typing import Any


@dataclasses.dataclass(frozen=True)
class _Object:
    data: bytes
    generation: int


class _Refused(Exception):
    """An answer other than success: status, and why."""


class Buckets:
    """Every bucket exists.

    Attributes:
      requests: what was asked for, in order.
      allowed: which methods are answered; others are refused, as without permission.
      url: of the server.
    """

    def __init__(self) -> None:
        self._objects: dict[tuple[str, str], _Object] = {}
        self._uploads: dict[str, tuple[str, str, dict[str, str], bytes]] = {}
        self._lock = threading.Lock()
        self._generations = itertools.count(1001)
        self.requests: list[str] = []
        self.allowed = {"GET", "HEAD", "POST", "PUT", "DELETE"}
        self.url = ""

    def names(self, bucket: str) -> list[str]:
        """Of all objects of a bucket, sorted."""
        with self._lock:
            return sorted(name for place, name in self._objects if place == bucket)

    def read(self, bucket: str, name: str) -> bytes:
        """The content of an object."""
        return self._objects[bucket, name].data

    def write(self, bucket: str, name: str, data: bytes) -> None:
        """Puts an object there."""
        with self._lock:
            self._objects[bucket, name] = _Object(data, next(self._generations))

    # What the requests below come down to; each holds the lock.

    def _get(self, bucket: str, name: str, query: dict[str, str]) -> _Object:
        with self._lock:
            found = self._objects.get((bucket, name))
            if found is None or int(query.get("generation", found.generation)) != found.generation:
                raise _Refused(404, f"no object {bucket}/{name}")
            self._check(found, query)
            return found

    def _put(self, bucket: str, name: str, query: dict[str, str], data: bytes) -> dict[str, Any]:
        with self._lock:
            self._check(self._objects.get((bucket, name)), query)
            new = self._objects[bucket, name] = _Object(data, next(self._generations))
        return _described(bucket, name, new)

    def _delete(self, bucket: str, name: str, query: dict[str, str]) -> None:
        with self._lock:
            found = self._objects.get((bucket, name))
            if found is None:
                raise _Refused(404, f"no object {bucket}/{name}")
            self._check(found, query)
            del self._objects[bucket, name]

    def _check(self, found: _Object | None, query: dict[str, str]) -> None:
        generation = found.generation if found else 0
        if "ifGenerationMatch" in query and int(query["ifGenerationMatch"]) != generation:
            raise _Refused(412, "another generation")
        if "ifGenerationNotMatch" in query and int(query["ifGenerationNotMatch"]) == generation:
            raise _Refused(304, "the same generation")

    def _list(self, bucket: str, query: dict[str, str]) -> dict[str, Any]:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        start, end = query.get("startOffset", ""), query.get("endOffset", "")
        after, most = query.get("pageToken", ""), int(query.get("maxResults", 1000))
        items: dict[str, Any] = {}
        with self._lock:
            for (place, name), one in sorted(self._objects.items()):
                inside = name.startswith(prefix) and name >= start and (not end or name < end)
                if place != bucket or not inside:
                    continue
                cut = name.find(delimiter, len(prefix)) if delimiter else -1
                if cut >= 0:
                    items.setdefault(name[: cut + len(delimiter)], None)
                if cut < 0 or (cut + len(delimiter) == len(name) and query.get("includeTrailingDelimiter") == "true"):
                    items[name] = _described(bucket, name, one)
        names = sorted(name for name in items if name > after)
        page: dict[str, Any] = {"kind": "storage#objects", "prefixes": [], "items": []}
        for name in names[:most]:
            if items[name] is None:
                page["prefixes"].append(name)
            else:
                page["items"].append(items[name])
        if len(names) > most:
            page["nextPageToken"] = names[most - 1]
        return page


def _described(bucket: str, name: str, one: _Object) -> dict[str, Any]:
    time = "2026-01-01T00:00:00.000Z"
    return {
        "kind": "storage#object", "bucket": bucket, "name": name, "size": str(len(one.data)), "metageneration": "1",
        "generation": str(one.generation), "timeCreated": time, "updated": time, "storageClass": "STANDARD",
        "contentType": "application/octet-stream", "id": f"{bucket}/{name}/{one.generation}",
    }  # fmt: skip


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    buckets: Buckets

    def log_message(self, format: str, *arguments: Any) -> None:
        """Says nothing."""

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        data = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _send(self, status: int, content: Any = b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in ({"Content-Type": "application/json"} | named).items():
            self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if status not in (204, 304) and self.command != "HEAD":
            self.wfile.write(body)

    def _answer(self) -> None:
        parsed = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(parsed.query, keep_blank_values=True))
        body = self._body()
        self.buckets.requests.append(f"{self.command} {self.path}")
        try:
            if self.command not in self.buckets.allowed:
                raise _Refused(403, "the caller has no such permission")
            self._route(parsed.path, query, body)
        except _Refused as refused:
            status, why = refused.args
            self._send(status, {"error": {"code": status, "message": why, "errors": [{"message": why}]}})

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _answer

    def _route(self, path: str, query: dict[str, str], body: bytes) -> None:
        place = re.fullmatch(r"(?:/(upload|download))?(?:/resumable)?/storage/v1/b/([^/]+)(?:/o(?:/(.*))?)?", path)
        if place is None:
            raise _Refused(404, f"this stand-in knows no {self.command} {path}")
        bucket, rest = urllib.parse.unquote(place[2]), place[3]
        if place[1] == "upload":
            self._upload(bucket, query, body)
        elif rest is None and not path.endswith("/o"):
            self._send(200, {"kind": "storage#bucket", "id": bucket, "name": bucket, "location": "US"})
        elif rest is None:
            self._send(200, self.buckets._list(bucket, query))
        elif copy := re.fullmatch(r"([^/]+)/rewriteTo/b/([^/]+)/o/([^/]+)", rest):
            source, to, name = map(urllib.parse.unquote, copy.groups())
            data = self.buckets._get(bucket, source, {}).data
            made = self.buckets._put(to, name, query, data)
            self._send(200, {"done": True, "objectSize": made["size"], "resource": made})
        elif self.command == "DELETE":
            self.buckets._delete(bucket, urllib.parse.unquote(rest), query)
            self._send(204)
        else:
            self._object(bucket, urllib.parse.unquote(rest), query)

    def _object(self, bucket: str, name: str, query: dict[str, str]) -> None:
        found = self.buckets._get(bucket, name, query)
        if query.get("alt") != "media":
            self._send(200, _described(bucket, name, found))
            return
        size, headers = len(found.data), {"x_goog_generation": str(found.generation), "x_goog_metageneration": "1"}
        headers |= {"Content_Type": "application/octet-stream", "x_goog_stored_content_length": str(len(found.data))}
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            self._send(200, found.data, **headers)
            return
        first = int(wanted[1]) if wanted[1] else max(0, size - int(wanted[2]))
        last = min(int(wanted[2]), size - 1) if wanted[1] and wanted[2] else size - 1
        if first >= size or last < first:
            raise _Refused(416, "no such range")
        self._send(206, found.data[first : last + 1], **headers, Content_Range=f"bytes {first}-{last}/{size}")

    def _upload(self, bucket: str, query: dict[str, str], body: bytes) -> None:
        kind = query.get("uploadType")
        if kind == "media":
            self._send(200, self.buckets._put(bucket, query["name"], query, body))
        elif kind == "multipart":
            boundary = re.search(r'boundary="?([^";]+)"?', self.headers["Content-Type"])
            assert boundary is not None
            _, about, content, _ = body.split(b"--" + boundary[1].encode(), 3)
            about, content = (re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1] for part in (about, content))
            name = query.get("name") or json.loads(about)["name"]
            self._send(200, self.buckets._put(bucket, name, query, re.sub(rb"\r?\n\Z", b"", content)))
        elif kind == "resumable" and "upload_id" not in query:
            name = query.get("name") or json.loads(body)["name"]
            key = f"upload{next(self.buckets._generations)}"
            self.buckets._uploads[key] = (bucket, name, query, b"")
            where = f"{self.buckets.url}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={key}"
            self._send(200, Location=where)
        else:
            self._continue(query["upload_id"], body)

    def _continue(self, key: str, body: bytes) -> None:
        bucket, name, query, have = self.buckets._uploads[key]
        said = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", self.headers.get("Content-Range", "bytes */*"))
        assert said is not None
        have = have[: int(said[1])] + body if said[1] else have + body
        self.buckets._uploads[key] = (bucket, name, query, have)
        if "Content-Range" not in self.headers or (said[2] != "*" and len(have) == int(said[2])):
            self._send(200, self.buckets._put(bucket, name, query, have))
        elif have:
            self._send(308, Range=f"bytes=0-{len(have) - 1}")
        else:
            self._send(308)


@contextlib.contextmanager
def serve() -> Iterator[Buckets]:
    """Runs the server on a free port; `environment` is what a process needs to use it."""
    buckets = Buckets()
    handler = type("Handler", (_Handler,), {"buckets": buckets})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    buckets.url = f"http://127.0.0.1:{server.server_address[1]}"
    # A reader that has enough hangs up.
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield buckets
    finally:
        server.shutdown()
        server.server_close()


def environment(url: str) -> dict[str, str]:
    """What makes the libraries take the server for Cloud Storage, without asking anybody for credentials."""
    return {
        "STORAGE_EMULATOR_HOST": url,  # gcsfs and google-cloud-storage
        "FSSPEC_GCS_TOKEN": "anon",
        "TENSORSTORE_GCS_HTTP_URL": url,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",  # of TensorStore
        "CLOUD_STORAGE_EMULATOR_ENDPOINT": url,  # array_record, through google-cloud-cpp
        "NO_GCE_CHECK": "true",
    }


def make_ordinary() -> None:
    """Answers the question by gRPC with which gcsfs learns the kind of bucket: no hierarchy, no zone."""
    from gcsfs import extended_gcsfs

    async def kind(self: Any, bucket: str) -> Any:
        return extended_gcsfs.BucketType.NON_HIERARCHICAL

    extended_gcsfs.ExtendedGcsFileSystem._get_bucket_type = kind
