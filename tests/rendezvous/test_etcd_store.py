"""The store in etcd: torch's semantics, waiting, and an etcd in trouble."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

from rallypoint.rendezvous.api import RendezvousConnectionError, RendezvousStateError
from rallypoint.rendezvous.etcd_blocking import EtcdConnection
from rallypoint.rendezvous.etcd_store import EtcdStore
from tests.ledger.etcd_processes import EtcdCluster, EtcdProcess
from tests.rendezvous.backends import takes_at_most
from tests.rendezvous.etcd_lines import lossy_line

pytestmark = pytest.mark.processes


@pytest.fixture
def store(etcd_client: EtcdConnection, prefix: str) -> EtcdStore:
    return EtcdStore(etcd_client, prefix, timeout=timedelta(seconds=10))


def test_values_are_bytes_and_text_is_utf8(store: EtcdStore) -> None:
    store.set("text", "größe")
    store.set("bytes", bytes(range(256)))
    store.set("empty", b"")
    assert store.get("text") == "größe".encode()
    assert store.multi_get(["bytes", "empty"]) == [bytes(range(256)), b""]
    store.set("text", "again")
    assert store.get("text") == b"again"


def test_keys_may_have_slashes_and_any_letters(store: EtcdStore) -> None:
    for key in ("a/b/c", "größe", " ", "a" * 500):
        store.set(key, key)
        assert store.get(key) == key.encode()
    assert store.num_keys() == 4


def test_a_value_that_is_none_is_refused(store: EtcdStore) -> None:
    values: list[Any] = [5, None, ["x"]]
    for value in values:
        with pytest.raises(ValueError, match="bytes or a str"):
            store.set("key", value)


def test_a_counter_counts(store: EtcdStore) -> None:
    assert [store.add("count", amount) for amount in (5, 0, -7)] == [5, 5, -2]
    assert store.get("count") == b"-2"
    store.set("word", "x")
    with pytest.raises(ValueError, match="'word'"):
        store.add("word", 1)
    store.set("large", str((1 << 63) - 1))
    with pytest.raises(ValueError, match="64 bits"):
        store.add("large", 1)


def test_a_counter_that_many_add_to_at_once_counts_all(store: EtcdStore) -> None:
    with ThreadPoolExecutor(16) as pool:
        seen = list(pool.map(lambda _: store.add("count", 1), range(64)))
    assert sorted(seen) == list(range(1, 65))


def test_compare_set_replaces_the_expected_value(store: EtcdStore) -> None:
    assert store.compare_set("absent", "expected", "new") == b"expected"
    assert not store.check(["absent"])
    assert store.compare_set("key", "", "first") == b"first"
    assert store.compare_set("key", "", "second") == b"first"
    assert store.compare_set("key", "other", "second") == b"first"
    assert store.compare_set("key", "first", "second") == b"second"
    assert store.get("key") == b"second"


def test_append_extends_a_value(store: EtcdStore) -> None:
    store.append("key", "a")
    store.append("key", b"b")
    assert store.get("key") == b"ab"


def test_keys_are_deleted_and_counted(store: EtcdStore) -> None:
    assert store.num_keys() == 0
    store.set("a", "1")
    store.set("b", "2")
    assert store.num_keys() == 2
    assert store.delete_key("a")
    assert not store.delete_key("a")
    assert store.num_keys() == 1


def test_check_finds_existing_keys(store: EtcdStore) -> None:
    assert store.check([])
    assert not store.check(["a"])
    store.set("a", "1")
    assert store.check(["a"])
    assert store.check(["a", "a"])
    assert not store.check(["a", "b"])


def test_several_at_once_and_more_than_a_transaction_holds(store: EtcdStore) -> None:
    keys = [f"key-{number}" for number in range(300)]
    store.multi_set(keys, [key.upper() for key in keys])
    assert store.multi_get(keys) == [key.upper().encode() for key in keys]
    assert store.check(keys)
    assert store.num_keys() == 300
    with pytest.raises(ValueError, match="1 keys for 2 values"):
        store.multi_set(["a"], ["1", "2"])


def test_prefixes_separate_keys(etcd_client: EtcdConnection, prefix: str) -> None:
    one, two = EtcdStore(etcd_client, f"{prefix}/one"), EtcdStore(etcd_client, f"{prefix}/one2/")
    assert (one.prefix, two.prefix) == (f"{prefix}/one/", f"{prefix}/one2/")
    one.set("key", "1")
    assert not two.check(["key"])
    assert two.num_keys() == 0


def test_the_timeout_can_be_given_read_and_set(etcd_client: EtcdConnection, prefix: str) -> None:
    assert EtcdStore(etcd_client, prefix).timeout == timedelta(seconds=300)
    store = EtcdStore(etcd_client, prefix, timeout=timedelta(seconds=7))
    assert store.timeout == timedelta(seconds=7)
    store.set_timeout(timedelta(milliseconds=1500))
    assert store.timeout == timedelta(milliseconds=1500)


# -- waiting --------------------------------------------------------------------------------------


def _later(do: Callable[[], Any]) -> threading.Thread:
    """Done a moment later, most likely while the caller waits; the outcome is the same."""
    thread = threading.Timer(0.1, do)
    thread.start()
    return thread


def test_get_waits_until_the_key_exists(
    store: EtcdStore, etcd_client: EtcdConnection, prefix: str
) -> None:
    other = EtcdStore(etcd_client, prefix)
    setting = _later(lambda: other.set("key", "value"))
    assert store.get("key") == b"value"
    setting.join()


def test_wait_and_multi_get_wait_for_all(store: EtcdStore) -> None:
    store.set("b", "2")
    setting = [_later(lambda: store.set("a", "1")), _later(lambda: store.set("c", "3"))]
    assert store.multi_get(["a", "b", "c"]) == [b"1", b"2", b"3"]
    store.wait(["a", "b", "c"])
    store.wait([])
    for each in setting:
        each.join()


def test_a_wait_ends_at_its_time_and_names_what_is_missing(store: EtcdStore) -> None:
    store.set("there", "1")
    store.set_timeout(timedelta(seconds=1))
    calls: list[Callable[[], object]] = [
        lambda: store.get("not-there"),
        lambda: store.multi_get(["there", "not-there"]),
        lambda: store.wait(["not-there", "there"]),
    ]
    for call in calls:
        started = time.monotonic()
        with takes_at_most(1), pytest.raises(LookupError, match="'not-there'") as told:
            call()
        assert time.monotonic() - started > 0.9
        assert "'there'" not in str(told.value)


def test_a_wait_may_have_a_time_of_its_own(store: EtcdStore) -> None:
    store.set_timeout(timedelta(seconds=60))
    assert not store.check(["not-there"])  # it has connected
    with takes_at_most(1), pytest.raises(LookupError, match="after 1 s"):
        store.wait(["not-there"], timedelta(seconds=1))


def test_arguments_have_torchs_names(store: EtcdStore) -> None:
    assert store.add(key="count", num=2) == 2
    store.wait(keys=["count"], override_timeout=timedelta(seconds=1))


def test_torch_accepts_the_store(store: EtcdStore) -> None:
    distributed = pytest.importorskip("torch.distributed")
    theirs = store.for_torch()
    assert isinstance(theirs, distributed.Store)
    assert theirs.timeout == store.timeout
    below = distributed.PrefixStore("round", theirs)
    below.set("key", "value")
    assert below.add("count", 2) == 2
    assert store.get("round/key") == b"value"
    assert below.get("key") == b"value"
    below.wait(["key"], timedelta(seconds=1))
    assert theirs.multi_get(["round/key", "round/count"]) == [b"value", b"2"]
    with pytest.raises(LookupError, match="not-there"):
        theirs.wait(["not-there"], timedelta(seconds=1))


# -- trouble --------------------------------------------------------------------------------------


@pytest.mark.parametrize("others", [0, 1, 5])
def test_an_add_without_an_answer_counts_once(
    one_etcd: EtcdCluster, etcd_client: EtcdConnection, prefix: str, others: int
) -> None:
    """Also where others have added since, so that the value does not show whose it was."""
    other = EtcdStore(etcd_client, prefix)
    other.add("count", 10)

    def add_more() -> None:
        for _ in range(others):
            other.add("count", 1)

    with lossy_line(one_etcd.endpoints[0]) as line:
        client = EtcdConnection("127.0.0.1", line.port)
        store = EtcdStore(client, prefix)
        assert store.check(["count"])
        line.meanwhile, line.lose = add_more, True
        # The first try, which takes the key to be new, is refused, and its answer is the one lost.
        assert store.add("count", 1) in (11, 11 + others)
        assert line.lost == 1
        assert store.get("count") == b"%d" % (11 + others)
        client.close()


@pytest.mark.parametrize("others", [0, 3])
def test_a_first_add_without_an_answer_counts_once(
    one_etcd: EtcdCluster, etcd_client: EtcdConnection, prefix: str, others: int
) -> None:
    other = EtcdStore(etcd_client, prefix)

    def add_more() -> None:
        for _ in range(others):
            other.add("count", 1)

    with lossy_line(one_etcd.endpoints[0]) as line:
        client = EtcdConnection("127.0.0.1", line.port)
        store = EtcdStore(client, prefix)
        line.meanwhile, line.lose = add_more, True
        assert store.add("count", 1) == 1
        assert line.lost == 1
        assert other.get("count") == b"%d" % (1 + others)
        client.close()


def test_an_append_without_an_answer_is_applied_once(
    one_etcd: EtcdCluster, etcd_client: EtcdConnection, prefix: str
) -> None:
    other = EtcdStore(etcd_client, prefix)
    with lossy_line(one_etcd.endpoints[0]) as line:
        client = EtcdConnection("127.0.0.1", line.port)
        store = EtcdStore(client, prefix)
        line.meanwhile, line.lose = (lambda: other.append("key", "b")), True
        store.append("key", "a")
        assert other.get("key") == b"ab"
        client.close()


def test_the_outcome_of_a_write_to_a_deleted_key_is_unknown(
    one_etcd: EtcdCluster, etcd_client: EtcdConnection, prefix: str
) -> None:
    other = EtcdStore(etcd_client, prefix)
    other.set("key", "before")
    with lossy_line(one_etcd.endpoints[0]) as line:
        client = EtcdConnection("127.0.0.1", line.port)
        store = EtcdStore(client, prefix)
        line.meanwhile, line.lose = (lambda: other.delete_key("key")), True
        with pytest.raises(RendezvousConnectionError, match="deleted since"):
            store.compare_set("key", "before", "after")
        client.close()


def test_a_frozen_etcd_delays_no_call_past_its_deadline(
    failing_etcd: EtcdProcess, prefix: str
) -> None:
    client = EtcdConnection("127.0.0.1", failing_etcd.client_port, read_timeout=60)
    store = EtcdStore(client, prefix)
    store.set("key", "value")
    store.set_timeout(timedelta(seconds=0.5))
    failing_etcd.freeze()
    calls: list[Callable[[], object]] = [
        lambda: store.get("key"),
        lambda: store.set("key", "x"),
        lambda: store.add("count", 1),
        lambda: store.check(["key"]),
        lambda: store.wait(["key"]),
        store.num_keys,
        lambda: store.delete_key("key"),
        lambda: store.multi_set(["a", "b"], ["1", "2"]),
    ]
    for call in calls:
        refused = pytest.raises(RendezvousConnectionError, match=str(failing_etcd.client_port))
        with takes_at_most(0.5), refused:
            call()
    client.close()


def test_an_etcd_that_freezes_during_a_wait_does_not_prolong_it(
    failing_etcd: EtcdProcess, prefix: str
) -> None:
    client = EtcdConnection("127.0.0.1", failing_etcd.client_port)
    store = EtcdStore(client, prefix, timeout=timedelta(seconds=1))
    freezing = _later(failing_etcd.freeze)
    with takes_at_most(1), pytest.raises((LookupError, RendezvousConnectionError)):
        store.get("key")
    freezing.join()
    client.close()


def test_a_damaged_value_is_a_state_error(
    store: EtcdStore, etcd_client: EtcdConnection, prefix: str
) -> None:
    etcd_client.write(f"{prefix}/key", b"garbage")
    with pytest.raises(RendezvousStateError, match=f"{prefix}/key"):
        store.get("key")
    store.set("key", "whole again")
    assert store.get("key") == b"whole again"
