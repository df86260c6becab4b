"""Rank policies: R3, and as few nodes move as possible."""

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rallypoint.core.ranks import POLICIES, Candidate, order, worker_ranks


def nodes(*names: str) -> list[Candidate]:
    """Candidates whose host is their name, with one worker each."""
    return [Candidate(name, name, 1) for name in names]


def moved(previous: list[str], ranked: list[str]) -> int:
    """How many names of `previous` have another rank in `ranked`."""
    old = {name: rank for rank, name in enumerate(previous)}
    return sum(old.get(name, rank) != rank for rank, name in enumerate(ranked))


@st.composite
def regroupings(draw: st.DrawFn, nodes_max: int = 12) -> tuple[list[str], list[Candidate]]:
    """A last round, and the candidates of the next one: survivors and newcomers, in any order."""
    names = draw(st.lists(st.text(max_size=4), unique=True, max_size=nodes_max))
    previous = draw(st.lists(st.sampled_from(names), unique=True)) if names else []
    joined = draw(st.lists(st.sampled_from(names), unique=True)) if names else []
    hosts = st.sampled_from(["a1", "a01", "a10", "b", "ß٣"])
    indexes = st.none() | st.integers(0, 9)
    return previous, [Candidate(name, draw(hosts), 1, draw(indexes)) for name in joined]


class TestNatural:
    @pytest.mark.parametrize(
        ("earlier", "later"),
        [
            ("node9", "node10"),
            ("node", "node0"),
            ("node01", "node1"),
            ("node1", "node02"),
            ("rack2-node10", "rack10-node2"),
            ("10.0.0.9", "10.0.0.10"),
            ("9", "a"),
            ("A1", "a1"),
            ("node9", "nodes"),
            ("nöde9", "nöde10"),
            ("", "0"),
            ("node" + "9" * 5000, "node1" + "0" * 5000),
        ],
    )
    def test_hosts_are_in_natural_order(self, earlier: str, later: str) -> None:
        assert order("natural", (), nodes(later, earlier)) == [earlier, later]

    def test_digits_of_other_scripts_are_text(self) -> None:
        assert order("natural", (), nodes("n٣", "n²", "n4")) == ["n4", "n²", "n٣"]

    def test_the_host_counts_before_the_name(self) -> None:
        candidates = [Candidate("b", "h1", 1), Candidate("a10", "h2", 1), Candidate("a9", "h2", 1)]
        assert order("natural", (), candidates) == ["b", "a9", "a10"]

    def test_natural_order_ignores_the_last_round(self) -> None:
        assert order("natural", ["c", "b", "a"], nodes("c", "b", "a")) == ["a", "b", "c"]


class TestStable:
    def test_first_round_is_in_natural_order(self) -> None:
        assert order("stable", (), nodes("n10", "n9", "n1")) == ["n1", "n9", "n10"]

    def test_newcomer_takes_the_place_of_the_lost(self) -> None:
        assert order("stable", ["a", "b", "c"], nodes("c", "x", "a")) == ["a", "x", "c"]

    def test_newcomers_take_gaps_in_natural_order_then_the_end(self) -> None:
        ranked = order("stable", ["a", "b", "c"], nodes("b", "n10", "n9", "n2"))
        assert ranked == ["n2", "b", "n9", "n10"]

    def test_when_the_round_shrinks_the_last_fill_the_gaps_in_order(self) -> None:
        previous = ["a", "b", "c", "d", "e", "f"]
        assert order("stable", previous, nodes("f", "e", "d", "b")) == ["e", "b", "f", "d"]

    def test_survivors_that_move_are_placed_before_newcomers(self) -> None:
        previous = ["a", "b", "c", "d"]
        assert order("stable", previous, nodes("a0", "d", "c")) == ["d", "a0", "c"]

    def test_a_round_without_survivors_is_in_natural_order(self) -> None:
        assert order("stable", ["a", "b"], []) == []

    def test_all_newcomers_are_in_natural_order(self) -> None:
        assert order("stable", ["a", "b"], nodes("y", "x")) == ["x", "y"]

    @given(regroupings())
    def test_survivors_keep_their_ranks_if_these_exist(
        self, regrouping: tuple[list[str], list[Candidate]]
    ) -> None:
        previous, candidates = regrouping
        ranked = order("stable", previous, candidates)
        here = {candidate.name for candidate in candidates}
        kept = [(rank, name) for rank, name in enumerate(previous[: len(ranked)]) if name in here]
        assert all(ranked[rank] == name for rank, name in kept)

    @given(regroupings(nodes_max=5))
    def test_no_other_order_moves_fewer_nodes(
        self, regrouping: tuple[list[str], list[Candidate]]
    ) -> None:
        previous, candidates = regrouping
        names = [candidate.name for candidate in candidates]
        fewest = min(moved(previous, list(ranked)) for ranked in permutations(names))
        assert moved(previous, order("stable", previous, candidates)) == fewest


def indexed(**indexes: int | None) -> list[Candidate]:
    """Candidates with these indexes, all on one host."""
    return [Candidate(name, "host", 1, index) for name, index in indexes.items()]


class TestIndex:
    def test_the_first_round_has_the_order_of_the_scheduler(self) -> None:
        assert order("index", (), indexed(a=2, b=10, c=0, d=1)) == ["c", "d", "a", "b"]

    def test_the_index_counts_before_host_and_name(self) -> None:
        candidates = [Candidate("a", "h1", 1, 1), Candidate("b", "h2", 1, 0)]
        assert order("index", (), candidates) == ["b", "a"]
        assert order("stable", (), candidates) == ["a", "b"]

    def test_survivors_keep_their_ranks_whatever_their_index(self) -> None:
        assert order("index", ["c", "b"], indexed(a=1, b=0, c=2)) == ["c", "b", "a"]

    def test_newcomers_take_gaps_in_the_order_of_their_indexes(self) -> None:
        previous = ["a", "b", "c", "d"]
        found = order("index", previous, indexed(x=3, b=1, y=0, d=7, z=2))
        assert found == ["y", "b", "z", "d", "x"]

    def test_nodes_without_an_index_come_last_in_natural_order(self) -> None:
        assert order("index", (), indexed(n10=None, n9=None, z=5)) == ["z", "n9", "n10"]

    def test_natural_order_decides_between_equal_indexes(self) -> None:
        assert order("index", (), indexed(n10=4, n9=4, a=4)) == ["a", "n9", "n10"]

    @given(regroupings())
    def test_it_moves_no_survivor_that_stable_keeps(
        self, regrouping: tuple[list[str], list[Candidate]]
    ) -> None:
        previous, candidates = regrouping
        stable, index = (order(policy, previous, candidates) for policy in ("stable", "index"))
        survivors = set(previous)
        assert [name if name in survivors else None for name in index] == [
            name if name in survivors else None for name in stable
        ]

    @given(st.permutations(range(9)))
    def test_with_an_index_each_the_first_rounds_ranks_are_the_indexes(
        self, indexes: list[int]
    ) -> None:
        candidates = [Candidate(f"n{9 - each}", "host", 1, each) for each in indexes]
        assert order("index", (), candidates) == [f"n{9 - each}" for each in range(9)]


@pytest.mark.parametrize("policy", POLICIES)
class TestEveryPolicy:
    @given(regrouping=regroupings())
    def test_r3_each_candidate_has_one_rank(
        self, policy: str, regrouping: tuple[list[str], list[Candidate]]
    ) -> None:
        previous, candidates = regrouping
        ranked = order(policy, previous, candidates)
        assert sorted(ranked) == sorted(candidate.name for candidate in candidates)

    @given(regrouping=regroupings(), data=st.data())
    def test_the_order_of_arrival_does_not_matter(
        self, policy: str, regrouping: tuple[list[str], list[Candidate]], data: st.DataObject
    ) -> None:
        previous, candidates = regrouping
        shuffled = data.draw(st.permutations(candidates))
        assert order(policy, previous, shuffled) == order(policy, previous, candidates)

    def test_a_name_twice_is_refused(self, policy: str) -> None:
        with pytest.raises(ValueError, match="candidates has the name 'a' twice"):
            order(policy, (), nodes("a", "b", "a"))
        with pytest.raises(ValueError, match="previous has the name 'b' twice"):
            order(policy, ["b", "b"], nodes("a"))


def test_an_unknown_policy_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match="'best'; known are stable, index, natural"):
        order("best", (), nodes("a"))


class TestWorkerRanks:
    def test_nodes_may_have_different_numbers_of_workers(self) -> None:
        assert worker_ranks(["a", "b", "c"], {"c": 4, "a": 2, "b": 1}) == [0, 2, 3]

    def test_without_nodes_there_are_no_ranks(self) -> None:
        assert worker_ranks([], {}) == []

    def test_a_node_without_workers_is_refused(self) -> None:
        with pytest.raises(ValueError, match="'b' has 0 workers"):
            worker_ranks(["a", "b"], {"a": 1, "b": 0})

    @given(st.lists(st.integers(1, 9), max_size=20))
    def test_r3_each_rank_once(self, counts: list[int]) -> None:
        names = [f"n{index}" for index in range(len(counts))]
        firsts = worker_ranks(names, dict(zip(names, counts, strict=True)))
        ranks = [first + k for first, n in zip(firsts, counts, strict=True) for k in range(n)]
        assert ranks == list(range(sum(counts)))
