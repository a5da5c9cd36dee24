"""The demo's page and server: escaped, told what went wrong, closed to and from the outside."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass, field

import pytest
import torch

import slimdiff
from slimdiff import SlimdiffError
from slimdiff.demo.controls import Slider
from slimdiff.demo.studio import Drawing

pytest.importorskip("gradio")

from slimdiff.demo import page as pages
from slimdiff.demo.server import application, is_loopback, listening

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)> \"'& {{ 7 * 7 }} ${7 * 7}"
ESCAPED = "&lt;script&gt;alert(1)&lt;/script&gt;&lt;img src=x onerror=alert(2)&gt; &#34;&#39;&amp;"


@dataclass
class Plan:
    params_kept: float = 0.77
    parameters: int = 1000
    removed: int = 230
    denoiser: str = "UNet2DConditionModel"


@dataclass
class Pretence:
    """A studio that draws nothing but flat pictures, and fails as it is told to."""

    size: int = 8
    slider: Slider | None = field(default_factory=lambda: Slider(0.3, 0.6))
    fault: Exception | None = None
    known: bool = False
    plan: Plan = field(default_factory=Plan)
    sampling: slimdiff.Sampling = field(default_factory=slimdiff.Sampling)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    takes_classes: bool = False

    def titles(self, share):
        return ["Dense", "Slim, 60 % of the pool"] + ([f"{share}"] if share else [])

    def knows(self, prompt, seed):
        return self.known

    def drawings(self, prompt, seed, share):
        for i, _ in enumerate(self.titles(share)):
            if i == 2 and self.fault:
                raise self.fault
            picture = torch.full((3, self.size, self.size), 0.1 * (i + 1))
            scores = {"psnr_db": 33.33, "ssim": 0.987} if i else {}
            yield Drawing(picture, 2.0 - i / 2, 1000 - i, 1.5e-4 if i else None, scores)


def figures(html):
    """Of every card whether it holds a picture, a promise of one, or neither."""
    cards = html.split("<figure")[1:]
    return ["img" if "<img" in c else "busy" if "sd-busy" in c else "" for c in cards]


def test_pictures_come_one_by_one():
    seen = [figures(html) for html in pages._progress(Pretence(), "x", 0, 0.4)]
    assert seen == [
        ["busy", "", ""],
        ["img", "busy", ""],
        ["img", "img", "busy"],
        ["img", "img", "img"],
        ["img", "img", "img"],
    ]
    seen = [figures(html) for html in pages._progress(Pretence(known=True), "x", 0, None)]
    assert seen == [["img", "busy"], ["img", "img"], ["img", "img"]]


def test_a_card_tells_time_size_and_likeness():
    html = list(pages._progress(Pretence(), "x", 0, 0.4))[-1]
    text = " ".join(re.sub("<[^>]+>", " ", html).split())
    assert "2.00 s parameters 1,000 Slim" in text
    assert "1.50 s 75 % of the dense time parameters 999" in text
    assert "PSNR to dense 33.3 dB SSIM to dense 0.987 predicted error 1.5e-04" in text
    assert html.count("data:image/png;base64,") == 3
    assert "sd-pixels" in html
    large = list(pages._progress(Pretence(size=200), "x", 0, None))[-1]
    assert large.count("data:image/webp;base64,") == 2
    assert "sd-pixels" not in large


def test_room_for_a_third_is_shown_only_with_a_slider():
    assert "Move the slider" in pages.cards(Pretence(), None, ())
    assert "Move the slider" not in pages.cards(Pretence(), 0.4, ())
    assert "Move the slider" not in pages.cards(Pretence(slider=None), None, ())


@pytest.mark.parametrize(
    ("fault", "text", "logged"),
    [
        (SlimdiffError("Mend it."), "Mend it.", False),
        (MemoryError("17 GiB"), "Out of memory (17 GiB)", False),
        (torch.OutOfMemoryError("CUDA\nlong tale"), "Out of memory (CUDA)", False),
        (ZeroDivisionError("one by nought"), "Unexpected ZeroDivisionError: one by", True),
    ],
)
def test_what_goes_wrong_stands_beside_what_was_drawn(fault, text, logged, caplog):
    html = list(pages._progress(Pretence(fault=fault), "x", 0, 0.4))[-1]
    assert figures(html) == ["img", "img", ""]
    assert re.search(r'role="alert">' + re.escape(text), html)
    assert bool(caplog.records) == logged


def test_text_of_others_is_escaped():
    html = pages.cards(Pretence(), EVIL, (), trouble=f"'{EVIL}' is no class")
    assert html.count(ESCAPED) == 2
    assert not re.search(r"<script|<img", html)
    built = pages.build(Pretence(slider=None), (EVIL, EVIL), no_slider=EVIL)
    values = [b.value for b in built.blocks.values() if b.get_block_name() == "html"]
    assert sum(value.count(ESCAPED) for value in values) == 3
    assert not re.search(r"<script|<img", "".join(values))


def test_the_page_says_why_there_is_no_slider():
    for slider in (None, Slider(0.3, 0.6)):
        built = pages.build(Pretence(slider=slider), ("a", "b"), no_slider="No statistics.")
        names = [block.get_block_name() for block in built.blocks.values()]
        told = any("No statistics." in str(getattr(b, "value", "")) for b in built.blocks.values())
        assert ("slider" in names) == (slider is not None)
        assert told == (slider is None)


def test_one_picture_is_drawn_at_a_time_and_the_page_is_not_held_up():
    built = pages.build(Pretence(), ("a", "b"))
    drawing = [fn for fn in built.fns.values() if fn.concurrency_id == "pictures"]
    assert {fn.concurrency_limit for fn in drawing} == {1}
    assert len(drawing) == 2
    assert all(fn.queue is not False for fn in drawing)
    assert not built.analytics_enabled


@pytest.fixture
def client():
    from starlette.testclient import TestClient

    app = application(pages.build(Pretence(), ("a", "b")), "127.0.0.1")
    with TestClient(app, base_url="http://127.0.0.1:7860") as client:
        yield client


def test_the_browser_may_load_nothing_from_elsewhere(client):
    answer = client.get("/")
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert not re.search(r"https?:|\*", policy)
    assert answer.headers["referrer-policy"] == "no-referrer"
    for place in ("/config", "/theme.css"):
        found = set(re.findall(r"https?://[\w.]+", client.get(place).text))
        assert found <= {"http://127.0.0.1", "http://www.w3.org"}, place


def test_on_loopback_other_names_are_not_answered(client):
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400
    assert client.get("/", headers={"host": "localhost:7860"}).status_code == 200
    origin = {"origin": "https://evil.example"}
    allowed = client.get("/config", headers=origin).headers.get("access-control-allow-origin")
    assert allowed is None


def test_nothing_is_looked_up_outside(monkeypatch, client):
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *args, **more: asked.append(host))
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: asked.append(address))
    app = application(pages.build(Pretence(), ("a", "b")), "127.0.0.1")
    assert app.routes
    assert client.get("/").status_code == 200
    assert asked == []


def test_loopback_is_told_from_the_rest():
    for host, own in (
        *(("127.0.0.1", True), ("localhost", True), ("::1", True), ("127.9.9.9", True)),
        *(("0.0.0.0", False), ("::", False), ("192.168.1.5", False), ("example.org", False)),
    ):
        assert is_loopback(host) == own, host


def test_a_port_that_is_taken_is_refused():
    with listening("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        assert first.getsockname()[0] == "127.0.0.1"
        text = f"cannot listen at 127.0.0.1, port {port} .*in use.*another --port"
        with pytest.raises(SlimdiffError, match=text), listening("127.0.0.1", port):
            pass
    with listening("127.0.0.1", port):
        pass  # free again
