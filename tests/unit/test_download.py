import hashlib
import io
import re
import tarfile
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from reducr.data.io.download import fetch, unpack

CONTENT = bytes(range(256)) * 12_000
SHA256, MD5 = hashlib.sha256(CONTENT).hexdigest(), hashlib.md5(CONTENT).hexdigest()


class Handler(SimpleHTTPRequestHandler):
    """Serves files; /cut, /cut_chunk and /no_length answer with ten bytes in ways of their own."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        headers = {
            "/cut": {"Content-Length": "25"},
            "/cut_chunk": {"Transfer-Encoding": "chunked"},
            "/no_length": {"Connection": "close"},
        }
        if self.path not in headers:
            super().do_GET()
            return
        self.send_response(200)
        for name, value in headers[self.path].items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"19\r\n0123456789" if self.path == "/cut_chunk" else b"0123456789")
        self.close_connection = True

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    served = tmp_path / "served"
    served.mkdir()
    (served / "pixels.bin").write_bytes(CONTENT)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(served))) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def closed_port():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        port = server.server_port
    return f"http://127.0.0.1:{port}"


def left_in(folder):
    return [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []


@pytest.mark.parametrize("checksum", [{}, {"sha256": SHA256}, {"md5": MD5}, {"sha256": SHA256, "md5": MD5}])
def test_the_file_is_complete_and_no_other_file_is_left(server, tmp_path, checksum):
    path = tmp_path / "new" / "folder" / "pixels.bin"
    fetch(f"{server}/pixels.bin", path, **checksum)
    assert path.read_bytes() == CONTENT
    assert left_in(tmp_path / "new") == [path]


def test_progress_is_shown_on_stderr(server, tmp_path, capsys):
    fetch(f"{server}/pixels.bin", tmp_path / "out" / "mine.bin")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "mine.bin: 100%" in captured.err
    assert "3.07M/3.07M" in captured.err


def test_the_server_need_not_send_the_length(server, tmp_path):
    fetch(f"{server}/no_length", tmp_path / "out" / "text")
    assert (tmp_path / "out" / "text").read_bytes() == b"0123456789"


@pytest.mark.parametrize("name", ["sha256", "md5"])
def test_a_wrong_checksum_is_an_error_with_both_values(server, tmp_path, name):
    expected, actual = "0" * 32, {"sha256": SHA256, "md5": MD5}[name]
    path = tmp_path / "out" / "pixels.bin"
    with pytest.raises(ValueError, match=f"its {name} is {actual}; expected {expected}") as caught:
        fetch(f"{server}/pixels.bin", path, **{name: expected})
    assert f"{server}/pixels.bin returned an unexpected file" in str(caught.value)
    assert f"save the right file as {path}" in str(caught.value)
    assert left_in(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing.bin", r"HTTP Error 404: File not found"),
        ("cut", r"the connection closed after 10 of 25 bytes"),
        ("cut_chunk", r"IncompleteRead"),
    ],
)
def test_a_failed_download_is_an_error_and_leaves_no_file(server, tmp_path, name, reason):
    path = tmp_path / "out" / "pixels.bin"
    with pytest.raises(OSError, match=reason) as caught:
        fetch(f"{server}/{name}", path)
    assert str(caught.value).startswith(f"Could not download {server}/{name} (")
    assert str(caught.value).endswith(f"Try again, or download it yourself and save it as {path}.")
    assert left_in(tmp_path / "out") == []


def test_an_unreachable_server_is_an_error(closed_port, tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(OSError, match=rf"Could not download {closed_port}/pixels\.bin \(.*refused"):
        fetch(f"{closed_port}/pixels.bin", tmp_path / "pixels.bin")
    assert left_in(tmp_path) == []


def test_an_existing_file_is_not_downloaded_again(closed_port, tmp_path):
    path = tmp_path / "pixels.bin"
    path.write_bytes(CONTENT)
    fetch(f"{closed_port}/pixels.bin", path)
    fetch(f"{closed_port}/pixels.bin", path, sha256=SHA256, md5=MD5)
    assert path.read_bytes() == CONTENT


def test_an_existing_file_with_a_wrong_checksum_is_an_error_and_kept(server, tmp_path):
    path = tmp_path / "pixels.bin"
    path.write_bytes(b"half of it")
    actual = hashlib.md5(b"half of it").hexdigest()
    message = (
        f"{path} is not the expected content of {server}/pixels.bin. Remove it to download it again: its md5 is "
        f"{actual}"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        fetch(f"{server}/pixels.bin", path, md5=MD5)
    assert path.read_bytes() == b"half of it"


# unpack


def write_tar(path, *members):
    with tarfile.open(path, "w:gz") as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def write_zip(path, *members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members:
            file.writestr(name, content)
    return path


ARCHIVES = pytest.mark.parametrize(
    ("write", "name"), [(write_tar, "a.tar.gz"), (write_tar, "a.tgz"), (write_zip, "a.zip")]
)


@ARCHIVES
def test_files_are_unpacked_into_the_folder_and_replace_old_ones(tmp_path, write, name):
    archive = write(tmp_path / name, ("set/train", CONTENT), ("set/deep/test", b"test"), ("top", b""))
    folder = tmp_path / "data"
    (folder / "set").mkdir(parents=True)
    (folder / "set" / "train").write_bytes(b"old")
    (folder / "set" / "other").write_bytes(b"kept")
    unpack(archive, folder)
    contents = {str(path.relative_to(folder)): path.read_bytes() for path in left_in(folder)}
    assert contents == {"set/train": CONTENT, "set/deep/test": b"test", "set/other": b"kept", "top": b""}
    assert sorted(path.name for path in folder.iterdir()) == ["set", "top"]
    assert archive.exists()


@ARCHIVES
def test_a_member_outside_the_folder_is_an_error(tmp_path, write, name):
    archive = write(tmp_path / name, ("fine", b"fine"), ("../../evil", b"evil"))
    with pytest.raises(ValueError, match=re.escape(f"{archive} is truncated or damaged (")) as caught:
        unpack(archive, tmp_path / "one" / "data")
    assert "evil" in str(caught.value)
    assert left_in(tmp_path) == [archive]


def test_a_link_out_of_the_folder_is_an_error(tmp_path):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as file:
        info = tarfile.TarInfo("link")
        info.type, info.linkname = tarfile.SYMTYPE, "../../secret"
        file.addfile(info)
    with pytest.raises(ValueError, match=r"a\.tar\.gz is truncated or damaged \('link' would link to"):
        unpack(tmp_path / "a.tar.gz", tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


@ARCHIVES
@pytest.mark.parametrize("damage", ["cut", "altered", "html"])
def test_a_damaged_archive_is_an_error_and_leaves_no_file(tmp_path, write, name, damage):
    archive = write(tmp_path / name, ("set/train", CONTENT), ("set/test", CONTENT[::-1]))
    content = bytearray(archive.read_bytes())
    middle = len(content) // 2
    content[middle] ^= 1
    archive.write_bytes({"cut": content[:middle], "altered": content, "html": b"<html>not found</html>"}[damage])
    message = re.escape(f"{archive} is truncated or damaged (") + r".*\)\. Get the file again\."
    with pytest.raises(ValueError, match=message):
        unpack(archive, tmp_path / "data")
    assert left_in(tmp_path / "data") == []


def test_other_kinds_of_files_are_errors(tmp_path):
    with pytest.raises(ValueError, match=r"Only \.tar\.gz, \.tgz and \.zip files can be unpacked; got .*a\.rar"):
        unpack(tmp_path / "a.rar", tmp_path)
