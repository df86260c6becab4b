"""Requests over HTTP, with and without the token: heads, bodies, pipelines, halves."""

from __future__ import annotations

import asyncio
import re
from random import Random
from typing import Final

from tests.fuzz.making import bent
from tests.fuzz.watching import Watch, must
from tests.fuzz.world import HONEST_RUN, TOKEN, Connecting, World, turns

REQUESTS: Final = 150

_METHODS: Final = (*("GET",) * 6, *("POST",) * 4, "HEAD", "PUT", "OPTIONS", "DELETE", "TRACE")
_ODD_METHODS: Final = ("", "get", "CONNECT", "PRI", "X" * 300, "G\0T", "\x16\x03\x01", "GE T", "é")
_PATHS: Final = (
    *("/", "/healthz", "/api/v1/runs", "/api/v1/runs/r", "/api/v1/runs/r/close", "/v1/attach"),
    *("/api/v1/runs/r?members=3", "/api/v1/runs/a%2Fb", "/api/v1/runs/a%2Fb/close", "/metrics"),
    *("/page/main.js", "/api/v1/me", "/api/v1/coordinators", "/page/..%2fguard.py", "/page/"),
)
_ODD_PATHS: Final = (
    *("*", "", "//", "///healthz", "/api/v1/runs/", "/api/v1/runs/%", "/api/v1/runs/%ff/close"),
    *("/api/v1/runs/..%2f", "/api/v1/runs/\0", "/api/v1/runs/r?members=", "/api/v1/runs/é"),
    *("/api/v1/runs/r?members=-1", "/api/v1/runs/r?members=" + "9" * 5_000, "/" + "a" * 9_000),
    *("/api/v1/runs/r?members=1e9", "/api/v1/runs/r?members=%00", "/api/v1/runs/r?members=\u0663"),
    *("http://x/healthz", "http://[::1", "http://[", "x:y@z", "//[/healthz", "/healthz#a", "?"),
    *("/api/v1/runs/r;x=1", "/healthz/../api", "/%2e%2e/%2e%2e", "http://a:b@c:99999/"),
)
_ODD_VERSIONS: Final = ("HTTP/0.9", "HTTP/2.0", "HTTP/1.1x", "", "HTTP/", "HTTP/1.\u0661")
_HEADERS: Final = (
    *("Host: 127.0.0.1", "Host: 127.0.0.1", "Host: evil.example", "Host: ", "Host: [", "Host: a b"),
    *(
        "Origin: http://evil.example",
        "Origin: null",
        "Origin: ://",
        "Origin: \udca0x",
        "Connection: close",
    ),
    *("Connection: keep-alive", "Connection: Upgrade", "Upgrade: websocket", "Upgrade: h2c"),
    *("Sec-WebSocket-Version: 13", "Sec-WebSocket-Version: x", "Sec-WebSocket-Key: x"),
    *("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Key: é" + "=" * 20),
    *("Sec-WebSocket-Protocol: a, b", "Sec-WebSocket-Extensions: permessage-deflate; x=,"),
    *("Content-Encoding: deflate", "Content-Encoding: gzip", "Content-Encoding: br, x"),
    *("Content-Type: application/json", "Content-Type: multipart/form-data; boundary=x"),
    *("Content-Type: text/plain; charset=rot13", "Content-Length: 5", "Content-Length: -1"),
    *("Content-Length: 1e3", "Content-Length: 99999999999999999999", "Content-Length: 0, 0"),
    *("Transfer-Encoding: chunked", "Transfer-Encoding: gzip, chunked", "Transfer-Encoding: x"),
    *(
        "Expect: 100-continue",
        "Expect: x",
        "Expect: \udca0",
        "Host: \udcff",
        "Range: bytes=a-",
        "Accept: text/html",
    ),
    *("Cookie: a=b; c", "Cookie: " + ";" * 2_000, "X" * 9_000 + ": a", "X: " + "a" * 9_000),
    *("X-Rallypoint-Client: node", "No colon", ": empty", " folded", "\tfolded", "A\0: b", "A: \0"),
    *("Sec-Fetch-Site: cross-site", "Sec-Fetch-Site: \udcff", "Sec-Fetch-Mode: navigate"),
    *(
        'If-None-Match: "x", W/"\udcff"',
        "If-None-Match: *",
        'If-None-Match: "',
        "Rallypoint-Limits: ;",
    ),
    *("A: \x1b[31m", "é: é", "A : b", "Keep-Alive: timeout=x", "Via: 1.1 x"),
    *("Authorization: Basic eDp5", "Authorization: Bearer", "Authorization: Bearer \udcff"),
    *(f"Authorization: {scheme}{TOKEN}" for scheme in ("bearer ", "Bearer  ", "Basic ", "")),
)
_BODIES: Final = (
    *(b"", b"{}", b'{"reason":"x"}', b'{"reason":1}', b'{"reason":null}', b"[]", b"nul", b"\xff"),
    *(b'{"reason":"\xff"}', b'{"reason":"\\ud800"}', b'{"reason":"\\u0000\\u001b[2J"}', b'{"x":'),
    *(b"[" * 5_000, b'{"reason":' * 3_000, b'{"reason":"' + b"x" * 60_000 + b'"}', b" " * 70_000),
    *(b'{"reason":1e999}', b'{"reason":"a","reason":"b"}', b"\xef\xbb\xbf{}", b"NaN", b"-", b"\0"),
)
_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([0-9]{3}) [^\r\n]*\r\n(.*?)\r\n\r\n", re.DOTALL)
_FINE: Final = frozenset(
    {100, 101, 200, 206, 304, 400, 401, 403, 404, 405, 408, 413, 414, 417, 421, 426, 431, 501, 503}
)


def request(rng: Random) -> bytes:
    """One request, more or less."""
    method = rng.choice(_METHODS) if rng.random() < 0.97 else rng.choice(_ODD_METHODS)
    path = rng.choice(_PATHS) if rng.random() < 0.75 else rng.choice(_ODD_PATHS)
    version = "HTTP/1.1" if rng.random() < 0.9 else rng.choice(("HTTP/1.0", *_ODD_VERSIONS))
    headers = ["Host: 127.0.0.1"] if rng.random() < 0.9 else []
    if rng.random() < 0.6:
        headers.append(f"Authorization: Bearer {TOKEN}")
    headers += [rng.choice(_HEADERS) for _ in range(rng.choice((0, 0, 1, 2, 5)))]
    if path == "/v1/attach" and rng.random() < 0.5:
        headers += ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"]
    body = b""
    if method == "POST" or rng.random() < 0.1:
        body = rng.choice(_BODIES)
        if rng.random() < 0.15:
            body = _chunked(body, rng)
            headers.append("Transfer-Encoding: chunked")
        elif rng.random() < 0.9:
            headers.append(f"Content-Length: {len(body) + rng.choice((0,) * 9 + (-1, 1, 7))}")
    end = "\r\n" if rng.random() < 0.98 else rng.choice(("\n", "\r", "", "\r\r\n"))
    lines = [f"{method} {path} {version}", *headers, "", ""]
    return end.join(lines).encode("utf-8", "surrogateescape") + body


def _chunked(body: bytes, rng: Random) -> bytes:
    right = f"{len(body):x}"
    size = rng.choice((right, right, right + ";x=y", "0", "-1", "g", "f" * 20, "0x5", ""))
    end = rng.choice((b"\r\n", b"\r\n", b"", b"A: b\r\n\r\n"))
    return size.encode() + b"\r\n" + body + b"\r\n0\r\n" + end


async def exchange(world: Connecting, rng: Random) -> int:
    """A connection with some requests on it. How many they were."""
    count = rng.choice((1, 1, 1, 2, 5))
    data = b"".join(request(rng) for _ in range(count))
    if rng.random() < 0.15:
        data = bent(data, rng)
    if rng.random() < 0.03:
        data = rng.randbytes(rng.randrange(200))
    transport = world.connect()
    if rng.random() < 0.2 and data:
        cut = rng.randrange(len(data))
        transport.bring(data[:cut])
        await turns(rng.randrange(4))
        transport.bring(data[cut:])
    else:
        transport.bring(data)
    await turns(6 + 3 * count if rng.random() < 0.9 else rng.randrange(6))
    if rng.random() < 0.02:
        await asyncio.sleep(rng.choice((1.0, 4.0, 20.0)))
    check_answers(transport.take(), data)
    if rng.random() < 0.5:
        transport.end()
    else:
        transport.end(ConnectionResetError(104, "reset"))
    return count


def check_answers(answers: bytes, asked: bytes) -> None:
    """None says that it failed, or which software in which release answers."""
    for status, head in _STATUS.findall(answers):
        told = f"{status.decode()} for {asked[:300]!r}"
        must(int(status) in _FINE, told)
        if status != b"100":
            must(b"server: rallypoint\r\n" in head.lower() + b"\r\n", f"no name of ours: {told}")
    must(b"Traceback" not in answers, f"a traceback for {asked[:300]!r}")
    must(b"aiohttp" not in answers.lower(), f"the software was named for {asked[:300]!r}")
    must(b"Python/" not in answers, f"the interpreter was named for {asked[:300]!r}")


async def _episode(rng: Random, watch: Watch) -> int:
    asyncio.get_running_loop().set_exception_handler(watch.on_loop)
    inputs = 0
    async with World(is_open=rng.random() < 0.3) as world:
        while inputs < REQUESTS:
            inputs += await exchange(world, rng)
            if rng.random() < 0.1:
                await world.honest.check()
                watch.check()
        must(HONEST_RUN in world.coordinator.runs, "the honest run is gone")
        await world.check_empty()
        await world.honest.check()
    return inputs


def episode(rng: Random, watch: Watch) -> int:
    """Some hundred requests at one coordinator. How many it were."""
    from tests.loops import run_virtual

    return run_virtual(_episode(rng, watch))
