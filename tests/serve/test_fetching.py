"""Images by URL: from hosts that are allowed alone, and from no address of this machine or network."""

import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from serving import files_of, refused

from wordsight.data.images import Unreadable
from wordsight.serve.fetching import Fetch, is_public
from wordsight.serve.refused import Refused


class Handler(BaseHTTPRequestHandler):
    """Answers by its path."""

    def do_GET(self):
        self.server.asked.append((self.path, self.headers["Host"]))
        kind = self.path.split("?")[0].strip("/")
        if kind == "moved":
            self.send_response(302)
            self.send_header("Location", "/image")
            self.end_headers()
        elif kind == "image":
            self.answer(self.server.image)
        elif kind == "large":
            self.answer(b"x" * 5000)
        elif kind == "endless":
            self.send_response(200)
            self.end_headers()
            while self.write(b"x" * 100):
                pass
        elif kind == "slow":
            self.send_response(200)
            self.end_headers()
            while self.write(b"x") and not self.server.ended.wait(0.05):
                pass

    def answer(self, content):
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.write(content)

    def write(self, content):
        try:
            self.wfile.write(content)
        except OSError:
            return False
        return True

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site(digit_files):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.ended, server.image = [], threading.Event(), digit_files[0].read_bytes()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    server.host = f"127.0.0.1:{server.server_port}"
    yield server
    server.ended.set()
    server.shutdown()
    server.server_close()
    thread.join()


def test_what_lies_there_is_read_within_its_limits(site):
    fetch = Fetch([site.host], private=True, most=4000, seconds=0.3)
    assert fetch(f"http://{site.host}/image?a=b") == site.image
    assert site.asked[-1] == ("/image?a=b", site.host)
    for path, why in {
        "moved": "status 302, a redirect",
        "large": "larger than",
        "endless": "larger than",
        "slow": "not in time",
    }.items():
        with pytest.raises(Unreadable, match=why):
            fetch(f"http://{site.host}/{path}")


def test_no_other_host_is_asked(site):
    fetch = Fetch([site.host, "images.example"], private=True, most=4000)
    port = site.server_port
    for url in (
        f"http://localhost:{port}/image",
        f"http://127.0.0.1:{port + 1}/image",
        "http://127.0.0.1/image",
        "http://images.example:22/",
        f"http://{site.host}@evil.example/",
        f"http://images.example@{site.host}/image",
        f"http://{site.host}\r\nX: y/image",
        f"http://{site.host}/a b",
        "file:///etc/passwd",
        "ftp://images.example/a",
        "http://[::1/",
        "http://images.example:99999/",
        "//images.example/a",
        "images.example",
        "",
    ):
        with pytest.raises(Refused, match=r"urls: "):
            fetch.check(url)
    assert fetch.check("HTTPS://Images.Example/a?b#c").path == "/a?b"


def test_a_name_of_a_private_address_is_refused_and_a_public_one_stays_what_it_was(site, monkeypatch):
    port = site.server_port
    before = len(site.asked)
    with pytest.raises(Unreadable, match="private network"):
        Fetch([site.host], private=False, most=4000)(f"http://{site.host}/image")
    asked = []

    def changing(host, wanted, **_):
        """A name that points to a public address once, and to this machine from then on."""
        asked.append(host)
        address = "203.0.114.7" if len(asked) == 1 else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, wanted))]

    reached = []

    def connect(address, timeout):
        reached.append(address)
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", changing)
    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(Unreadable, match="cannot be read"):
        Fetch([f"images.example:{port}"], private=False, most=4000)(f"http://images.example:{port}/image")
    assert asked == ["images.example"] and reached == [("203.0.114.7", port)]
    assert len(site.asked) == before


PRIVATE = """127.0.0.1 10.1.2.3 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 0.0.0.0 224.0.0.1
255.255.255.255 ::1 :: fe80::1 fe80::1%eth0 fc00::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 64:ff9b::a00:1
2002:7f00:1:: ff02::1"""


@pytest.mark.parametrize("address", PRIVATE.split())
def test_these_are_no_addresses_of_the_internet(address):
    assert not is_public(address)


def test_these_are():
    assert all(map(is_public, ["93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946", "::ffff:8.8.8.8"]))


def test_a_server_reads_images_by_url_beside_those_that_are_sent(served, digits_run, digit_files, site):
    client = served(digits_run, allow_urls=(site.host,), allow_private=True)
    urls = [f"http://{site.host}/image", f"http://{site.host}/moved"]
    answer = client.post("/v1/classify", files=files_of(digit_files[:1]), data={"urls": urls}).json()
    sent, linked, moved = answer["results"]
    assert sent["classes"] == linked["classes"] and linked["image"] == "image"
    assert "redirect" in moved["error"] and "127.0.0.1" not in moved["error"]
    assert "is not allowed" in refused(client, 400, data={"urls": ["http://evil.example/"]})


@pytest.mark.parametrize("host", ["::1", "[::1]", "[::1]:8080", "Images.example.org"])
def test_hosts_are_named_as_urls_write_them(host):
    fetch = Fetch([host], private=True, most=1)
    named = "[::1]:8080" if host.endswith("8080") else "[::1]" if ":" in host else host.lower()
    assert fetch.check(f"http://{named}/x").path == "/x"
    with pytest.raises(Refused, match="is not allowed"):
        fetch.check("http://[::1]:8081/x")
