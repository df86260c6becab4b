"""The audit log: each action on a run and each refusal, with who and from where; never a token."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import re
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from rallypoint import errors
from rallypoint.coordinator.audit import Audit, Record
from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.server import CoordinatorServer
from rallypoint.core.values import Address
from rallypoint.ledger.memory import MemoryLedger
from rallypoint.net import bind
from rallypoint.security import token_form as form
from rallypoint.security.access import Certificates
from rallypoint.security.authority import Authority, new_secret
from rallypoint.security.roles import Denial, Principal, Role
from rallypoint.security.sums import AT_ONCE, KEYS_MAX
from rallypoint.tokens import fingerprint
from tests.coordinator.replica import TOKEN, Replica
from tests.coordinator.test_guard import CONFIG, NODE, OPERATOR, VIEWER
from tests.loops import node, run_clean, until
from tests.security.pki import Issuer

pytestmark = pytest.mark.sockets


class Lines(list[bytes]):
    """What was written."""

    def records(self) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self]
        for each in found:
            when = each.pop("time")
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", when), when
        return found


@contextlib.asynccontextmanager
async def audited(
    lines: Lines, config: CoordinatorConfig = CONFIG, ledger: MemoryLedger | None = None
) -> AsyncIterator[Replica]:
    sock = bind("127.0.0.1", 0)
    async with CoordinatorServer(config, ledger=ledger, audit=Audit(lines.append)) as server:
        await server.start([sock], (Address("127.0.0.1", sock.getsockname()[1]),))
        yield Replica(server, server.port)


CLOSE = "/api/v1/runs/team-1/close"


def test_an_action_is_recorded_with_its_outcome() -> None:
    lines = Lines()

    async def main() -> None:
        async with audited(lines) as a:
            await a.has("team-1")
            assert (await a.ask(CLOSE, token=OPERATOR, post=b"["))[0] == 400
            assert (await a.ask(CLOSE, token=OPERATOR, post=b"{}"))[0] == 200
            other = {"Rallypoint-Asked-By": "192.0.2.7"}
            assert (await a.ask("/api/v1/runs/team-9/close", post=b"{}", **other))[0] == 404

    run_clean(main)
    operator = {"token": "id-operator", "roles": "operator", "address": "127.0.0.1"}
    of_file = {
        "token": fingerprint(TOKEN) or "token",
        "roles": "node,viewer,operator,host",
        "address": "127.0.0.1",
        "asked_by": "192.0.2.7",
    }
    no_json = "the body of the request does not fit: Expected `object`, got `array`"
    no_run = "no run 'team-9' here"
    assert lines.records() == [
        {"action": "close", "outcome": "failed", "status": 400, "run": "team-1"}
        | {"detail": no_json}
        | operator,
        {"action": "close", "outcome": "done", "status": 200, "run": "team-1"} | operator,
        {"action": "close", "outcome": "failed", "status": 404, "run": "team-9"}
        | {"detail": no_run}
        | of_file,
    ]


def test_an_order_is_recorded_with_its_reason_and_the_sizes() -> None:
    """Also by the coordinator that passed it on: each has its own log."""
    one, other = Lines(), Lines()

    async def main() -> None:
        ledger = MemoryLedger()
        async with audited(one, ledger=ledger) as a, audited(other, ledger=ledger) as b:
            await a.has("team-1")
            run = "/api/v1/runs/team-1"
            scale = b'{"min_nodes": 1, "max_nodes": 6, "reason": "more is free"}'
            evict = b'{"node": "a", "reason": "ECC errors"}'
            unknown = b'{"node": "zz", "reason": "a typo"}'
            assert (await b.ask(f"{run}/scale", token=OPERATOR, post=scale))[0] == 200
            assert (await b.ask(f"{run}/drain", token=OPERATOR, post=unknown))[0] == 404
            assert (await b.ask(f"{run}/evict", token=OPERATOR, post=evict))[0] == 200

    run_clean(main)
    for lines in (one, other):
        scaled, failed, evicted = lines.records()
        assert (scaled["size_before"], scaled["size"]) == ("2:2", "1:6")
        assert scaled["reason"] == "more is free"
        assert (failed["outcome"], failed["reason"]) == ("failed", "a typo")
        assert failed["detail"] == "run 'team-1' has no node 'zz'"
        assert (evicted["node"], evicted["reason"]) == ("a", "ECC errors")
        assert "detail" not in evicted
        assert "size" not in evicted


def test_a_claim_is_recorded_with_its_name() -> None:
    lines = Lines()
    authority = Authority.new()
    token = form.written(authority.ca, new_secret(), authority.identity())
    claim, text = authority.claim((Role.OPERATOR,), "*", dt.timedelta(days=1), name="ann's laptop")
    config = CoordinatorConfig(token=token)

    async def main() -> None:
        async with audited(lines, config) as a:
            assert (await a.ask(CLOSE, token=text, post=b"{}"))[0] == 404

    run_clean(main)
    (record,) = lines.records()
    assert (record["token"], record["name"]) == (claim.id, "ann's laptop")


def test_refusals_are_recorded_and_reading_is_not() -> None:
    lines = Lines()

    async def main() -> None:
        async with audited(lines) as a:
            await a.has("team-1")
            assert (await a.ask("/api/v1/runs/team-1", token=VIEWER))[0] == 200
            assert (await a.ask(CLOSE, token=VIEWER, post=b"{}"))[0] == 403
            assert (await a.ask("/api/v1/runs/job-1", token=VIEWER))[0] == 403
            with pytest.raises(errors.TokenError):
                await node(f"http://127.0.0.1:{a.port}", run_id="job-1", token=NODE).open()
            assert (await a.ask("/api/v1/runs", token="no-such-secret"))[0] == 401

    run_clean(main)
    viewer = {"token": "id-viewer", "roles": "viewer", "address": "127.0.0.1", "status": 403}
    outside = "this token is for runs that match 'team-*', and 'job-1' does not"
    assert lines.records() == [
        viewer
        | {"action": "close", "outcome": "refused", "run": "team-1"}
        | {"detail": "this token (viewer) may not change a run"},
        viewer | {"action": "read", "outcome": "refused", "run": "job-1", "detail": outside},
        {"action": "attach", "outcome": "refused", "token": "id-node", "roles": "node"}
        | {"address": "127.0.0.1", "run": "job-1", "detail": outside},
        {"action": "login", "outcome": "refused", "status": 401, "address": "127.0.0.1"}
        | {"detail": "the token is wrong"},
    ]
    assert b"no-such-secret" not in b"".join(lines)


def test_a_flood_of_refused_logins_makes_few_records_which_count_all() -> None:
    lines, count = Lines(), 40

    async def main() -> None:
        async with audited(lines) as a:
            asking = (a.ask("/api/v1/runs", token=f"no{number}") for number in range(count))
            answers = await asyncio.gather(*asking)
            assert not {code for code, _ in answers} - {401, 429}

    run_clean(main)
    records = lines.records()
    assert len(records) == AT_ONCE + 1
    assert sum(each.get("count", 1) for each in records) == count


def test_a_refused_login_is_recorded_with_the_status_of_its_answer() -> None:
    lines = Lines()

    async def main() -> list[int]:
        async with audited(lines) as a:
            first, _ = await a.ask("/api/v1/runs", token="no")
            now_s = asyncio.get_running_loop().time()
            while not a.server._logins.failed("127.0.0.1", now_s):
                pass
            then, _ = await a.ask("/api/v1/runs", token="no")
            return [first, then]

    assert run_clean(main) == [401, 429]
    assert [each["status"] for each in lines.records()] == [401, 429]


def test_strangers_at_many_addresses_do_not_hide_who_has_a_token() -> None:
    lines, holder = Lines(), Principal("dash", roles=(Role.VIEWER,))
    denial = Denial("not for this run", "", "run")

    async def main() -> None:
        audit = Audit(lines.append)
        for number in range(2 * KEYS_MAX):
            audit.login_refused(f"10.0.{number // 256}.{number % 256}", "the token is wrong", 401)
        flood = len(lines)
        for number in range(2 * KEYS_MAX):
            audit.attach_denied(f"10.1.{number // 256}.{number % 256}", holder, "job-1", denial)
        audit.attach_denied("10.2.0.1", Principal("other", roles=(Role.NODE,)), "job-1", denial)
        assert flood <= KEYS_MAX + AT_ONCE
        audit.close()

    run_clean(main)
    records = lines.records()
    of_dash = [each for each in records if each.get("token") == "dash"]
    assert len(of_dash) <= KEYS_MAX + AT_ONCE + 1
    assert sum(each.get("count", 1) for each in of_dash) == 2 * KEYS_MAX
    assert any(each.get("token") == "other" for each in records)
    others = {each["action"]: each["count"] for each in records if each["address"] == "others"}
    assert others == {"login": KEYS_MAX - AT_ONCE, "attach": KEYS_MAX - AT_ONCE}


def test_a_certificate_that_is_not_accepted_is_recorded(tmp_path: Path) -> None:
    lines, own, other = Lines(), Issuer(tmp_path / "own"), Issuer(tmp_path / "other", "Other CA")
    cert, key = own.issue("server", "127.0.0.1")
    config = CoordinatorConfig(
        certificates=Certificates(cert=str(cert), key=str(key)), client_ca=str(own.file)
    )
    uris = ("spiffe://rallypoint/operator",)
    shown = (other.issue("a", uris=uris), own.issue("b", uris=uris, ends=-dt.timedelta(hours=1)))

    async def show(files: tuple[Path, Path], port: int) -> None:
        before = len(lines)
        context = ssl.create_default_context(cafile=str(own.file))
        context.load_cert_chain(*map(str, files))
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
            writer.close()
        await until(lambda: len(lines) > before, "it is not recorded")

    async def main() -> None:
        async with CoordinatorServer(config, audit=Audit(lines.append)) as server:
            await server.start([bind("127.0.0.1", 0)])
            for files in shown:
                await show(files, server.port)

    run_clean(main)
    records = lines.records()
    assert {each["action"] for each in records} == {"login"}
    assert {each["outcome"] for each in records} == {"refused"}
    assert {each["address"] for each in records} == {"127.0.0.1"}
    first, second = (each["detail"] for each in records)
    assert "its certificate is not accepted: " in first
    assert "expired" in second


@pytest.mark.parametrize("config", [CONFIG, CoordinatorConfig()], ids=["token", "no token"])
def test_the_refusal_of_a_foreign_page_is_recorded(config: CoordinatorConfig) -> None:
    lines = Lines()
    page = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}

    async def main() -> None:
        async with audited(lines, config) as a:
            await a.has("team-1")
            assert (await a.ask(CLOSE, post=b"{}", **page))[0] == 403

    run_clean(main)
    [record] = lines.records()
    assert record == {
        "action": "close",
        "outcome": "refused",
        "status": 403,
        "address": "127.0.0.1",
        "run": "team-1",
        "detail": "requests from a web page of https://evil.example are refused",
    }


def test_a_request_under_the_name_of_another_host_is_recorded() -> None:
    lines = Lines()

    async def main() -> None:
        async with audited(lines, CoordinatorConfig()) as a:
            await a.has("team-1")
            assert (await a.ask(CLOSE, token="", post=b"{}", Host="evil.example"))[0] == 421

    run_clean(main)
    [record] = lines.records()
    assert (record["action"], record["outcome"], record["status"]) == ("close", "refused", 421)
    assert "evil.example" in record["detail"]


def test_an_action_whose_body_is_too_large_has_its_status() -> None:
    lines = Lines()

    async def main() -> None:
        async with audited(lines) as a, aiohttp.ClientSession() as http:
            shown = {"Authorization": f"Bearer {OPERATOR}"}
            url = f"http://127.0.0.1:{a.port}{CLOSE}"
            async with http.post(url, data=b"x" * 70_000, headers=shown) as answer:
                assert answer.status == 413

    run_clean(main)
    [record] = lines.records()
    assert (record["outcome"], record["status"]) == ("failed", 413)
    assert record["detail"] == "the body of the request is too long"


def test_the_addresses_of_an_ipv6_network_count_as_one() -> None:
    lines, count = Lines(), 40

    async def main() -> None:
        audit = Audit(lines.append)
        for number in range(count):
            audit.login_refused(f"2001:db8:0:1::{number:x}", "the token is wrong", 401)
        audit.close()

    run_clean(main)
    *single, summed = lines.records()
    assert [each["address"] for each in single] == [
        f"2001:db8:0:1::{number}" for number in range(AT_ONCE)
    ]
    assert (summed["address"], summed["count"]) == ("2001:db8:0:1::/64", count - AT_ONCE)


def test_the_example_of_the_guide_is_a_record() -> None:
    page = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
    [example] = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    found = msgspec.json.decode(example, type=Record)
    assert (found.action, found.outcome, found.run) == ("close", "done", "job-42")
    assert json.loads(msgspec.json.encode(found)) == json.loads(example)
    fields = {each.encode_name for each in msgspec.structs.fields(Record)}
    table = page.partition("## Audit log")[2].partition("\n## ")[0]
    assert fields == {
        name
        for line in table.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`(\w+)`", line.split("|")[1])
    }
