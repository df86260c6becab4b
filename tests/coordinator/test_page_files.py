"""The files of the web page, and the headers that protect the browser of its reader."""

from __future__ import annotations

import asyncio
import re
from importlib import resources
from typing import Any

import aiohttp
import pytest

from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.page_files import page_file
from rallypoint.coordinator.response_headers import HEADERS
from rallypoint.core.values import NodeId
from rallypoint.ledger.memory import MemoryLedger
from rallypoint.wire import messages as wire
from tests.coordinator.peers import TOKEN, UPGRADE, get, raw
from tests.coordinator.replica import replica
from tests.loops import run_clean, served

PAGE = resources.files("rallypoint.coordinator").joinpath("page")
FILES = sorted(each.name for each in PAGE.iterdir())
SCRIPTS = [name for name in FILES if name.endswith(".js")]
sockets = pytest.mark.sockets


def text_of(name: str) -> str:
    return page_file(name).body.decode()


@sockets
@pytest.mark.parametrize("token", ["", TOKEN])
def test_the_page_needs_no_token(token: str) -> None:
    async def main() -> None:
        async with served(CoordinatorConfig(token=token)) as (_, port):
            code, body, headers = await get(port, "/")
            assert (code, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
            assert body == text_of("index.html")
            for name in FILES:
                code, body, headers = await get(port, f"/page/{name}")
                assert (code, body) == (200, text_of(name))
                assert headers["Content-Type"] == f"{page_file(name).content_type}; charset=utf-8"
                assert headers["Cache-Control"] == "no-cache"

    run_clean(main)


@sockets
@pytest.mark.parametrize(
    "path",
    [
        "/page/",
        "/page/none.js",
        "/page/..%2fguard.py",
        "/page/%2e%2e/guard.py",
        "/page/a/b",
        "/page/page_files.py",
        "/page/.",
        "/page/..",
        "/page//etc/passwd",
        "/page/index.html%00",
    ],
)
@pytest.mark.parametrize("token", ["", TOKEN])
def test_no_path_leads_to_another_file(path: str, token: str) -> None:
    async def main() -> None:
        async with served(CoordinatorConfig(token=token)) as (_, port):
            request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            answer = await raw(port, request.encode())
            head, _, body = answer.partition(b"\r\n\r\n")
            code = int(head.split()[1])
            if code == 200:  # /page/ is the page itself
                assert body.decode() == text_of("index.html")
            else:
                assert code in (400, 401, 404)
                assert b"Content-Security-Policy: " in head

    run_clean(main)


@sockets
def test_head_and_unchanged_files() -> None:
    async def main() -> None:
        async with (
            served(CoordinatorConfig(token=TOKEN)) as (_, port),
            aiohttp.ClientSession() as http,
        ):
            url = f"http://127.0.0.1:{port}/page/main.js"
            async with http.head(url) as answer:
                assert (answer.status, await answer.read()) == (200, b"")
                assert int(answer.headers["Content-Length"]) == len(page_file("main.js").body)
                etag = answer.headers["ETag"]
            for known, code in ((etag, 304), (f'"x", {etag}', 304), ('"other"', 200)):
                async with http.get(url, headers={"If-None-Match": known}) as answer:
                    assert (answer.status, answer.headers["ETag"]) == (code, etag)
            async with http.post(f"http://127.0.0.1:{port}/") as answer:
                assert answer.status == 401

    run_clean(main)


@sockets
def test_every_answer_has_the_headers() -> None:
    async def main() -> None:
        async with served(CoordinatorConfig(token=TOKEN)) as (_, port):
            shown = {"Authorization": f"Bearer {TOKEN}"}
            paths = ["/", "/page/main.js", "/page/none", "/nothing", "/healthz", "/readyz"]
            paths += [
                "/metrics",
                "/api/v1/me",
                "/api/v1/runs",
                "/api/v1/runs/none",
                wire.ATTACH_PATH,
            ]
            for path in paths:
                for headers in ({}, shown):
                    _, _, found = await get(port, path, **headers)
                    assert {name: found[name] for name in HEADERS} == dict(HEADERS), path
                    is_page = path in ("/", "/page/main.js")
                    assert found["Cache-Control"] == ("no-cache" if is_page else "no-store")
            # an answer that aiohttp makes by itself
            answer = await raw(port, b"GET / HTTP/9.9\r\n\r\n")
            assert b"Content-Security-Policy: default-src 'none'" in answer
            assert b"Strict-Transport-Security" not in answer

    run_clean(main)


@sockets
def test_a_node_gets_none_of_them() -> None:
    """They would be bytes for nothing at each of ten thousand handshakes."""

    async def main() -> None:
        async with served() as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(UPGRADE)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 101 ")
            assert b"Content-Security-Policy" not in head
            writer.close()

    run_clean(main)


@sockets
@pytest.mark.parametrize("token", ["", TOKEN])
@pytest.mark.parametrize(
    ("path", "method", "headers", "may"),
    [
        ("/api/v1/runs", "GET", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}, False),
        ("/api/v1/runs", "GET", {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"}, False),
        ("/api/v1/runs", "GET", {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}, True),
        ("/api/v1/runs", "GET", {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"}, True),
        ("/", "GET", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, True),
        ("/page/main.js", "GET", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}, False),
        (
            "/api/v1/runs/x/close",
            "POST",
            {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
            False,
        ),
    ],
)
def test_code_of_another_site_is_refused_even_with_the_token(
    token: str, path: str, method: str, headers: dict[str, str], may: bool
) -> None:
    async def main() -> None:
        async with (
            served(CoordinatorConfig(token=token)) as (_, port),
            aiohttp.ClientSession() as http,
        ):
            shown = {"Authorization": f"Bearer {token}"} if token else {}
            url = f"http://127.0.0.1:{port}{path}"
            async with http.request(method, url, headers=shown | headers) as answer:
                assert (answer.status != 403) == may, await answer.text()
                if not may:
                    assert "another site" in (await answer.json())["error"]

    run_clean(main)


@sockets
def test_me_says_what_the_token_may() -> None:
    async def main() -> None:
        async with served(CoordinatorConfig(token=TOKEN)) as (_, port):
            assert (await get(port, "/api/v1/me"))[0] == 401
            code, me, _ = await get(port, "/api/v1/me", Authorization=f"Bearer {TOKEN}")
            assert code == 200
            assert {"node", "viewer", "operator", "host"} == set(me["roles"])
            assert {"read", "act"} <= set(me["rights"])
            limits = {"Rallypoint-Limits": "viewer;team-*"}
            _, me, _ = await get(port, "/api/v1/me", Authorization=f"Bearer {TOKEN}", **limits)
            assert (me["roles"], me["runs"]) == (["viewer"], ["team-*"])
            assert "act" not in me["rights"]

    run_clean(main)


@sockets
def test_the_leases_of_a_ledger_and_their_ages() -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        async with replica(ledger) as a, replica(ledger) as b:
            code, found = await a.ask("/api/v1/coordinators")
            assert (code, found["problem"]) == (200, None)
            own, other = found["coordinators"]
            assert (own["is_own"], other["is_own"]) == (True, False)
            assert own["addresses"] == [f"127.0.0.1:{a.port}"]
            assert other["addresses"] == [f"127.0.0.1:{b.port}"]
            assert 0 <= other["unchanged_s"] < 60
            assert other["ttl_s"] == 60.0
        async with replica(ledger, only_run="one", own_node=NodeId("n", 1)) as c:
            _, found = await c.ask("/api/v1/coordinators")
            assert [each["only_run"] for each in found["coordinators"]] == ["one"]
            limits: dict[str, Any] = {"Rallypoint-Limits": "viewer;team-*"}
            assert (await c.ask("/api/v1/coordinators", **limits))[1]["coordinators"] == []
            whole, limited = [await c.ask("/api/v1/runs", **each) for each in ({}, limits)]
            assert [each[1]["coordinator"]["node"] for each in (whole, limited)] == ["n", None]
        async with replica(ledger, own_node=NodeId("n", 1)) as d:
            _, whole = await d.ask("/api/v1/coordinators")
            _, limited = await d.ask("/api/v1/coordinators", **limits)
            assert [each["node"] for each in whole["coordinators"]] == ["n"]
            assert [each["node"] for each in limited["coordinators"]] == [None]

    run_clean(main)


@sockets
def test_without_a_ledger_there_are_no_leases() -> None:
    async def main() -> None:
        async with served() as (_, port):
            code, found, _ = await get(port, "/api/v1/coordinators")
            assert (code, found["coordinators"], found["problem"]) == (200, [], None)

    run_clean(main)


# -- the files themselves --------------------------------------------------------------------------


def test_the_page_names_all_its_files_and_nothing_from_elsewhere() -> None:
    index = text_of("index.html")
    named = set(re.findall(r'(?:href|src)="page/([^"]+)"', index))
    assert named == set(FILES) - {"index.html"}
    for name in FILES:
        text = text_of(name).replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://[a-z]", text), name


@pytest.mark.parametrize("name", SCRIPTS)
def test_modules_import_only_each_other_and_make_no_markup(name: str) -> None:
    text = text_of(name)
    for imported in re.findall(r'from "([^"]+)"', text):
        assert imported.removeprefix("./") in SCRIPTS
    code = re.sub(r"//.*", "", text)
    for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert forbidden not in code
    assert 'setAttribute("style"' not in code
    assert "localStorage" not in code
    assert "document.cookie" not in code


def test_the_html_has_no_inline_code() -> None:
    index = text_of("index.html")
    assert not re.search(r"<script(?![^>]*src=)", index)
    assert not re.search(r"<style|style=|\son[a-z]+=", index)
