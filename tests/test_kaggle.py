"""Every way a download from Kaggle fails: the real kagglehub against a server on this machine."""

import base64
import errno
import hashlib
import http.server
import io
import json
import sys
import threading
import zipfile
from pathlib import Path

import pytest

import utils

kaggle_env = pytest.importorskip("kagglesdk.kaggle_env", reason="kagglehub before 1.0")
MARK = "t0ken-mark"  # no message may hold it
CALL = "/v1/datasets.DatasetApiService/DownloadDataset"


def packed(folder, also=()):
    """Kaggle's archive of a set: nested twice, with a Mac's leftovers, uncompressed."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            name = file.relative_to(folder).as_posix()
            for place in ("chest_xray/", "chest_xray/chest_xray/"):
                archive.write(file, place + name)
            archive.writestr(f"chest_xray/__MACOSX/{name}", b"leftover")
        for name, data in also:
            archive.writestr(name, data)
        archive.writestr("chest_xray/__MACOSX/padding", b"x" * 3_000_000)
    return content.getvalue()


class Server(http.server.ThreadingHTTPServer):
    """Answers as Kaggle does: the call leads on to a signed link of its storage."""

    status, cut, wrong_sum = 200, None, False

    def __init__(self, archive):
        super().__init__(("127.0.0.1", 0), Handler)
        self.archive, self.asked, self.tokens = archive, [], []
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def answer(self, status, headers, content=b""):
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(content)
        self.close_connection = True

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        server = self.server
        server.asked.append(self.path)
        server.tokens.append(self.headers.get("Authorization", ""))
        if "/kagglehub/" in self.path:  # Colab's own store of data sets
            slug = json.dumps({"slug": server.slug}).encode()
            self.answer(200, {"Content-Type": "application/json"}, slug)
        elif server.status != 200:
            said = {"code": server.status, "message": "as Kaggle puts it"}
            kind = {"Content-Type": "application/json"}
            self.answer(server.status, kind, json.dumps(said).encode())
        else:
            self.answer(302, {"Location": f"/storage/archive.zip?X-Goog-Signature={MARK}"})

    def do_GET(self):
        server = self.server
        self.server.asked.append(self.headers.get("Range", "whole"))
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        whole = server.archive
        digest = hashlib.md5(whole + b"x" * server.wrong_sum).digest()
        headers = {
            "Accept-Ranges": "bytes",
            "Content-Length": len(whole) - start,
            "x-goog-hash": f"crc32c=AAAAAA==,md5={base64.b64encode(digest).decode()}",
        }
        if server.storage_status != 200:
            return self.answer(server.storage_status, {})
        self.answer(206 if start else 200, headers, whole[start : server.cut])

    storage_status = property(lambda self: self.server.storage_status)


Server.storage_status, Server.slug = 200, ""


@pytest.fixture
def kaggle(tmp_path, tiny_set, monkeypatch):
    """A server with the tiny set; kagglehub talks to it and keeps its files in `tmp_path`."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name in ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY", "CXR_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # where tokens are looked for
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path / "home" / ".kaggle"))
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(utils, "KAGGLE_INPUT", tmp_path / "kaggle" / "input")
    monkeypatch.setattr(utils, "LOCAL_SET", tmp_path / "data" / "chest_xray")
    server = Server(packed(tiny_set(tmp_path / "original")))
    at = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.PROD, at)
    server.cache = tmp_path / "hub"
    yield server
    server.shutdown()
    server.server_close()


def refused(run, capfd):
    """The message of the one error, checked for what every message has and none may have."""
    with pytest.raises(utils.CxrError) as error:
        utils.open_images(run)
    message = str(error.value)
    printed = "".join(capfd.readouterr())
    assert "download with kagglehub: " in message and "Ways out" in message
    assert MARK not in message + printed
    assert error.value.__cause__ is error.value.__context__ is None  # nothing else is shown
    return message


def test_a_good_download_is_found_in_kaggles_nesting(kaggle, make_run):
    images = utils.open_images(make_run(""))
    assert len(images.index) == 24 and images.source == "kaggle"
    assert kaggle.asked == [CALL, "whole"]
    assert kaggle.tokens == [""]  # no login is needed
    assert not list(kaggle.cache.rglob("*.archive"))


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "refuses the token .* remove it .*kaggle.json"),
        (403, "accept its terms"),
        (404, "by hand .data/README.md"),
        (429, "too many requests .*wait a quarter of an hour"),
        (500, "fault of its own: wait"),
        (503, "fault of its own: wait"),
    ],
)
@pytest.mark.parametrize("where", ["status", "storage_status"])
def test_a_refusal_is_said_in_words(kaggle, make_run, capfd, where, status, said):
    setattr(kaggle, where, status)
    message = refused(make_run(""), capfd)
    assert utils.re.search(said, message), message
    setattr(kaggle, where, 200)
    assert len(utils.open_images(make_run("")).index) == 24


@pytest.mark.parametrize("where", ["http://127.0.0.1:9", "http://kaggle.invalid"])
def test_no_network(kaggle, make_run, capfd, monkeypatch, where):
    monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.PROD, where)
    assert "check the network" in refused(make_run(""), capfd)


def test_a_cut_download_is_resumed_by_a_second_call(kaggle, make_run, capfd):
    kaggle.cut = 2_200_000
    message = refused(make_run(""), capfd)
    assert "broke off" in message and "what has arrived is kept" in message
    [kept] = [p for p in kaggle.cache.rglob("*") if p.is_file()]
    size = kept.stat().st_size
    assert size > 1_000_000
    kaggle.cut = None
    assert len(utils.open_images(make_run("")).index) == 24
    assert kaggle.asked[-1] == f"bytes={size}-"


def test_a_wrong_checksum_is_never_used(kaggle, make_run, capfd):
    kaggle.wrong_sum = True
    message = refused(make_run(""), capfd)
    assert "does not match its checksum and was deleted: run this cell again" in message
    assert not [p for p in kaggle.cache.rglob("*") if p.is_file()]
    kaggle.wrong_sum = False
    assert len(utils.open_images(make_run("")).index) == 24


def test_an_archive_damaged_on_the_disk_says_what_to_delete(kaggle, make_run, capfd):
    """kagglehub takes an archive of full length for complete, without its checksum."""
    kaggle.cut = 2_200_000
    refused(make_run(""), capfd)
    [kept] = [p for p in kaggle.cache.rglob("*") if p.is_file()]
    content = bytearray(kaggle.archive)
    content[60] ^= 1  # in the first picture
    kept.write_bytes(content)
    assert "the downloaded archive is damaged: delete it in" in refused(make_run(""), capfd)


def test_a_full_disk_while_downloading(kaggle, make_run, capfd, monkeypatch):
    import kagglehub.clients

    class Full(io.BytesIO):
        def write(self, content):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(kagglehub.clients, "open", lambda *_: Full(), raising=False)
    message = refused(make_run(""), capfd)
    assert "the disk is full" in message and "KAGGLEHUB_CACHE" in message


TOKENS = {
    "new": {"KAGGLE_API_TOKEN": MARK},
    "old": {"KAGGLE_USERNAME": "me", "KAGGLE_KEY": MARK},
    "with a line end": {"KAGGLE_API_TOKEN": f"{MARK}\n"},  # http.client quotes it when it fails
    "with two lines": {"KAGGLE_API_TOKEN": f"ab\n {MARK}\n"},
    "with odd letters": {"KAGGLE_API_TOKEN": f"{MARK}—"},
}


@pytest.mark.parametrize("kind", TOKENS)
def test_a_stale_token_is_never_shown(kaggle, make_run, capfd, monkeypatch, kind):
    for name, value in TOKENS[kind].items():
        monkeypatch.setenv(name, value)
    kaggle.status = 401
    message = refused(make_run(""), capfd)
    if kind in ("new", "old"):
        assert "refuses the token" in message and kaggle.tokens[-1]
    assert base64.b64encode(f"me:{MARK}".encode()).decode() not in message


@pytest.mark.parametrize("content", [f"{{{MARK}", f'{{"key": "{MARK}"}}'])
def test_a_damaged_token_file_is_named_and_not_shown(kaggle, make_run, capfd, tmp_path, content):
    path = tmp_path / "home" / ".kaggle" / "kaggle.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    message = refused(make_run(""), capfd)
    assert str(path) in message and "put a new one in its place" in message


def test_a_proxys_password_is_not_shown():
    error = ValueError(f"check proxy URL http://me:{MARK}@proxy:80/x, and key?token={MARK} too")
    assert MARK not in utils._download_fault(error) and "proxy:80" in utils._download_fault(error)


def test_kagglehub_that_is_not_installed(kaggle, make_run, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    assert "install what requirements.txt lists" in refused(make_run(""), capfd)


@pytest.fixture
def colab_store(kaggle, monkeypatch, tmp_path):
    """kagglehub in Colab: the set comes mounted, and from where is Colab's own choice."""
    host, port = kaggle.server_address
    monkeypatch.setenv("TBE_RUNTIME_ADDR", f"{host}:{port}")
    monkeypatch.setenv("COLAB_CACHE_MOUNT_FOLDER", str(tmp_path / "mounted"))
    monkeypatch.delenv("DISABLE_COLAB_CACHE", raising=False)
    kaggle.slug = "some-slug"
    return tmp_path / "mounted" / kaggle.slug


@pytest.mark.parametrize("nested", ["", "chest_xray"])
def test_a_set_that_colab_mounts_elsewhere(kaggle, colab_store, tiny_set, make_run, nested):
    root = tiny_set(colab_store / nested)
    images = utils.open_images(make_run(""))
    assert (images.source, images.root) == ("kaggle", root)
    assert all("/kagglehub/datasets/" in path for path in kaggle.asked)


def test_a_mount_without_images_says_how_to_go_round_it(
    kaggle, colab_store, make_run, monkeypatch, tmp_path
):
    (colab_store / "archive").mkdir(parents=True)
    with pytest.raises(utils.CxrError) as error:
        utils.open_images(make_run(""))
    assert f"kagglehub's download in {colab_store}: holds no train" in str(error.value)
    assert "DISABLE_COLAB_CACHE=1" in str(error.value)
    monkeypatch.setenv("DISABLE_COLAB_CACHE", "1")
    assert len(utils.open_images(make_run("")).index) == 24


def test_a_cache_that_lost_its_images_is_named(kaggle, make_run, tmp_path):
    import shutil

    utils.open_images(make_run(""))
    for folder in kaggle.cache.rglob("chest_xray"):
        shutil.rmtree(folder, ignore_errors=True)
    with pytest.raises(utils.CxrError, match="(?s)holds no train.*delete that folder"):
        utils.open_images(make_run("", out=tmp_path / "other"))


def test_archives_cannot_reach_outside_their_folder(kaggle, make_run, tiny_set, tmp_path):
    """Python's zipfile, which kagglehub extracts with, drops .. and writes no links."""
    link = zipfile.ZipInfo("chest_xray/out")
    link.external_attr = 0o120777 << 16
    outside = tmp_path / "evil"
    also = [
        ("../../../../../../evil", b"x"), (f"{outside}", b"x"), ("..\\..\\evil", b"x"),
        (link, str(tmp_path)), ("chest_xray/out/evil", b"x"),
    ]  # fmt: skip
    kaggle.archive = packed(tiny_set(tmp_path / "original"), also[:4])
    utils.open_images(make_run(""))
    found = [p for p in tmp_path.rglob("*evil*") if not p.is_relative_to(kaggle.cache)]
    assert not found and not [p for p in kaggle.cache.rglob("*") if p.is_symlink()]
    [written] = kaggle.cache.rglob("chest_xray/out")
    assert written.is_file() and Path(written).read_text() == str(tmp_path)
