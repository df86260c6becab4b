"""Tokens of nodes: the home's at host:port, a drawn one for one machine, and two that differ."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from rallypoint import errors, tokens
from rallypoint.client.connector import Connector
from rallypoint.client.credentials import Credentials
from rallypoint.client.hosting import EmbeddedCoordinator
from rallypoint.client.node import Node
from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.server import CoordinatorServer
from rallypoint.net import bind
from rallypoint.security import tls
from rallypoint.security.authority import new_host_token
from rallypoint.security.token_form import credential, parse
from tests import loops
from tests.loops import BOOTSTRAP, run_clean, served, until
from tests.ports import free_port

pytestmark = pytest.mark.sockets


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [each for each in os.environ if each.startswith("RALLYPOINT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def hosted(of: Node) -> EmbeddedCoordinator:
    assert of.hosted is not None
    return of.hosted


def node(endpoint: str, **own: Any) -> Node:
    """A node with the home's token, unless another is given."""
    return loops.node(endpoint, **{"insecure": False} | own)


def opened(endpoint: str, **own: Any) -> contextlib.AbstractAsyncContextManager[Node]:
    return loops.opened(endpoint, **{"insecure": False} | own)


async def status_of(port: int, token: str = "", of: str = "") -> tuple[int, dict[str, str]]:
    """The answer to a request with this token. `of`: the coordinator's own, if it has TLS."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    url, client = f"http://127.0.0.1:{port}/api/v1/runs", None
    if (parts := parse(of)) is not None and parts.identity is not None:
        url, client = url.replace("http:", "https:"), tls.client(parts.identity.ca)
    async with (
        aiohttp.ClientSession() as http,
        http.get(
            url,
            headers=headers,
            ssl=True if client is None else client.context,
            server_hostname=None if client is None else client.server_name,
        ) as answer,
    ):
        return answer.status, await answer.json()


def test_a_slow_home_takes_no_time_of_the_coordinator(monkeypatch: pytest.MonkeyPatch) -> None:
    """`connect_timeout` begins once the token is known."""
    real, connect = Credentials.find, Connector._connect
    known_s: list[float] = []
    ends: list[float] = []

    async def slowly(self: Credentials) -> None:
        await asyncio.sleep(0.3)
        await real(self)
        known_s.append(asyncio.get_running_loop().time())

    async def connected(self: Connector, ends_s: float) -> None:
        ends.append(ends_s)
        await connect(self, ends_s)

    monkeypatch.setattr(Credentials, "find", slowly)
    monkeypatch.setattr(Connector, "_connect", connected)

    async def main() -> None:
        async with opened(f"127.0.0.1:{free_port()}", connect_timeout_s=20.0):
            assert ends[0] >= known_s[0] + 20.0

    run_clean(main)


def test_a_log_of_everything_shows_no_token(caplog: pytest.LogCaptureFixture) -> None:
    """A program may turn DEBUG on for all loggers; websockets then logs headers and frames."""
    token = tokens.draw()
    caplog.set_level(logging.DEBUG)

    async def main() -> None:
        async with opened(f"127.0.0.1:{free_port()}", token=token) as one:
            assert hosted(one).token == token
            assert one.is_connected

    run_clean(main)
    said = [each.getMessage() for each in caplog.records]
    assert said, "the log was not on"
    assert not [line for line in said if token in line]
    assert not [each for each in caplog.records if each.name.startswith("websockets")]


def test_nodes_of_one_home_meet_and_others_are_refused(home: Path):
    async def main() -> None:
        endpoint = f"127.0.0.1:{free_port()}"
        async with opened(endpoint) as a, opened(endpoint) as b:
            token = (home / ".rallypoint" / "token").read_text().strip()
            assert hosted(a).token == token
            assert b.hosted is None
            port = hosted(a).address.port
            status, body = await status_of(port, of=token)
            assert (status, body["fingerprint"]) == (401, tokens.fingerprint(token))
            assert body["origin"] == tokens.Origin.HOME
            assert credential(token) not in json.dumps(body)
            assert (await status_of(port, tokens.draw(), of=token))[0] == 401
            assert (await status_of(port, credential(token), of=token))[0] == 200

    run_clean(main)


def test_on_one_machine_requests_without_the_token_are_refused(home: Path):
    async def main() -> None:
        async with opened("") as a, opened("") as b:
            drawn = {hosted(each).token for each in (a, b)}
            assert len(drawn) == 2
            for each in (a, b):
                port = hosted(each).address.port
                assert (await status_of(port))[0] == 401
                assert (await status_of(port, hosted(each).token))[0] == 200
            assert await a.next_round(BOOTSTRAP) is not None
            assert not [t for t in drawn if any(t in text for text in os.environ.values())]
        assert not any(home.iterdir())

    run_clean(main)


def test_beyond_loopback_there_is_no_coordinator_without_a_token():
    async def main() -> None:
        port = free_port()
        with pytest.raises(errors.UsageError, match="other machines can reach port"):
            await EmbeddedCoordinator.start("run", "", "node0", port)
        open_one = await EmbeddedCoordinator.start("run", "", "node0", port, insecure=True)
        assert (await status_of(port))[0] == 200
        await open_one.aclose()

    run_clean(main)


def test_insecure_uses_no_token_and_creates_none(home: Path, caplog):
    async def main() -> None:
        endpoint = f"127.0.0.1:{free_port()}"
        async with opened(endpoint, insecure=True) as a, opened(endpoint, insecure=True):
            assert hosted(a).token == ""
            assert (await status_of(hosted(a).address.port))[0] == 200
        assert not any(home.iterdir())

    run_clean(main)


def test_a_missing_home_is_reported_before_anything_listens(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("HOME")

    async def main() -> None:
        port = free_port()
        with pytest.raises(errors.UsageError) as caught:
            await node(f"127.0.0.1:{port}").open()
        assert "export RALLYPOINT_TOKEN_FILE=" in caught.value.hint
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        async with opened(f"127.0.0.1:{port}", token="given"):
            pass

    run_clean(main)


# -- two that differ -------------------------------------------------------------------------------


def test_homes_that_are_not_shared_are_reported(home: Path, monkeypatch: pytest.MonkeyPatch):
    async def main() -> None:
        endpoint = f"127.0.0.1:{free_port()}"
        async with opened(endpoint) as a:
            monkeypatch.setenv("HOME", str(home / "other"))
            (home / "other").mkdir()
            with pytest.raises(errors.UntrustedCoordinatorError) as caught:
                await node(endpoint).open()
            own = (home / "other" / ".rallypoint" / "token").read_text().strip()
            for token in (own, hosted(a).token):
                parts = parse(token)
                assert parts is not None
                assert parts.ca[:16] in caught.value.message
                assert parts.secret not in str(caught.value)
            assert str(home / "other") in caught.value.message
            assert caught.value.hint.startswith("copy one ~/.rallypoint/token to the home of every")
            assert "export RALLYPOINT_TOKEN_FILE=" in caught.value.hint

    run_clean(main)


def test_a_node_without_a_token_gets_that_reason():
    async def main() -> None:
        endpoint = f"127.0.0.1:{free_port()}"
        async with opened(endpoint) as a:
            with pytest.raises(errors.UntrustedCoordinatorError, match="uses TLS") as caught:
                await node(endpoint, insecure=True).open()
            assert "no token here" in caught.value.message
            assert hosted(a).token not in str(caught.value)

    run_clean(main)


def test_a_coordinator_without_a_token_is_reported(caplog):
    own = {"token": "given", "token_place": "environment RALLYPOINT_TOKEN"}

    async def main() -> None:
        endpoint = f"127.0.0.1:{free_port()}"
        async with opened(endpoint, insecure=True), opened(endpoint, **own):
            pass

    with caplog.at_level(logging.WARNING):
        run_clean(main)
    [told] = [each for each in caplog.messages if "asks for no token" in each]
    assert "environment RALLYPOINT_TOKEN" in told


def test_the_homes_token_is_not_sent_to_a_coordinator_in_clear() -> None:
    """Anybody of this machine may listen at that port before the run's host does."""

    async def main() -> None:
        endpoint = f"127.0.0.1:{free_port()}"
        async with opened(endpoint, insecure=True):
            with pytest.raises(errors.NotACoordinatorError, match=r"does not speak TLS 1\.3"):
                await node(endpoint).open()

    run_clean(main)


@pytest.mark.parametrize("other", ["another", ""])
def test_elected_nodes_report_tokens_that_differ(home: Path, other: str):
    """A refusal there is not final, as another program may have the port by now."""
    ledger = f"file://{home}/ledger"
    token = new_host_token()
    parts = parse(token)
    assert parts is not None
    given: dict[str, Any] = {"token": new_host_token() if other else ""}

    async def main() -> None:
        local: dict[str, Any] = {"local_addr": "127.0.0.1", "connect_timeout_s": 20.0}
        async with opened(ledger, token=token, **local):
            late = local | {"host_coordinator": "no", "connect_timeout_s": 1.0}
            with pytest.raises(errors.UnreachableError) as caught:
                await node(ledger, node_name="b", **given, **late).open()
            if other:
                assert f"a certificate of authority {parts.ca[:16]}" in caught.value.message
                assert given["token"][5:21] in caught.value.message
            else:
                assert "uses TLS, and there is no token here" in caught.value.message

    run_clean(main)


# -- http:// ---------------------------------------------------------------------------------------


def test_a_coordinator_with_the_homes_token_admits_its_nodes(home: Path):
    async def main() -> None:
        token = tokens.of_home(make=True).token
        async with (
            served(CoordinatorConfig(token=token)) as (_, port),
            opened(f"http://127.0.0.1:{port}") as a,
        ):
            assert a.is_connected
        other = CoordinatorConfig(token=tokens.draw(), token_origin="given")
        async with served(other) as (_, port):
            with pytest.raises(errors.TokenError, match="you sent none"):
                await node(f"http://127.0.0.1:{port}").open()
        other = CoordinatorConfig(token=new_host_token())
        async with served(other) as (_, port):
            with pytest.raises(errors.UntrustedCoordinatorError, match="it is from"):
                await node(f"http://127.0.0.1:{port}").open()

    run_clean(main)


def of_an_earlier_release() -> str:
    """The home's token, which names no authority."""
    file = tokens.home_file()
    file.parent.mkdir(mode=0o700)
    file.write_text(tokens.draw() + "\n")
    file.chmod(0o600)
    return file.read_text().strip()


def test_a_token_of_an_earlier_release_stays_on_its_machine() -> None:
    of_an_earlier_release()

    async def main() -> None:
        async with opened(f"127.0.0.1:{free_port()}") as a:
            assert hosted(a).token
        with pytest.raises(errors.UsageError, match="of an earlier release") as caught:
            await node("node0:29400").open()
        assert "remove the file" in caught.value.hint

    run_clean(main)


@contextlib.asynccontextmanager
async def pretender(fingerprint: str) -> AsyncIterator[tuple[int, list[bytes]]]:
    """Answers everybody with 401 and this fingerprint; what it was sent."""
    heard: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        body = json.dumps({"error": "who is it?", "fingerprint": fingerprint}).encode()
        writer.write(
            b"HTTP/1.1 401 Unauthorized\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], heard


@pytest.mark.parametrize("fingerprint", ["", "0123456789ab", "\x1b[2J"])
def test_the_homes_token_is_sent_only_if_its_fingerprint_is_named(fingerprint: str):
    async def main() -> None:
        token = of_an_earlier_release()
        async with pretender(fingerprint) as (port, heard):
            with pytest.raises(errors.TokenError, match=r"who is it\?"):
                await node(f"http://127.0.0.1:{port}").open()
            assert len(heard) == 1
            assert token.encode() not in b"".join(heard)
            assert b"Authorization" not in b"".join(heard)

    run_clean(main)


def test_a_refusal_of_the_right_token_is_final():
    async def main() -> None:
        token = of_an_earlier_release()
        async with pretender(tokens.fingerprint(token)) as (port, heard):
            with pytest.raises(errors.TokenError, match="you sent a token"):
                await node(f"http://127.0.0.1:{port}").open()
            assert [token.encode() in each for each in heard] == [False, True]

    run_clean(main)


def test_the_homes_token_is_used_when_the_coordinator_returns_with_it():
    async def main() -> None:
        token = tokens.of_home(make=True).token
        port = free_port()  # nobody else is given it between the two coordinators
        where = f"http://127.0.0.1:{port}"
        async with CoordinatorServer() as first:
            await first.start([bind("127.0.0.1", port)])
            async with opened(where, coordinator_lost_after_s=60.0) as a:
                assert await a.next_round(BOOTSTRAP) is not None
                await first.aclose()
                await until(lambda: not a.is_connected, "still connected")
                again = await EmbeddedCoordinator.start("run", token, "127.0.0.1", port)
                # It is another one, which has not this run: what it says of that, the node hears.
                await until(lambda: a.gone is not None, "it was not let in to be told")
                assert isinstance(a.gone, errors.RunLostError)
                await again.aclose()

    run_clean(main)
