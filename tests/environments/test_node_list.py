"""Node lists of Slurm and Open MPI."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rallypoint.environments.node_list import HOSTS_MAX, expand


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("n1", "n1"),
        ("n[1-4]", "n1 n2 n3 n4"),
        ("n[08-11]", "n08 n09 n10 n11"),
        ("n[8-11]", "n8 n9 n10 n11"),
        ("n[1,3-4],login", "n1 n3 n4 login"),
        ("r[1-2]n[01-02]", "r1n01 r1n02 r2n01 r2n02"),
        ("gpu-[1-2].ib.example", "gpu-1.ib.example gpu-2.ib.example"),
        ("n[3:1-2]", "n001 n002"),
        ("ctl,n[1:1-4]", "ctl n1 n2 n3 n4"),
        ("n1,n1,n[1-2]", "n1 n2"),
        ("10.0.0.[1-2]", "10.0.0.1 10.0.0.2"),
        ("[1-3]", "1 2 3"),
        # As Slurm's `scontrol show hostnames` reads them.
        ("n[0000000001-0000000003]", "n0000000001 n0000000002 n0000000003"),
        ("n[999999999-1000000001]", "n999999999 n1000000000 n1000000001"),
        ("n[1-2],", "n1 n2"),
        (",n1", "n1"),
        ("n1,,n2", "n1 n2"),
        ("n1, n2", "n1 n2"),
        ("n1 n2", "n1 n2"),
        ("n[1-2][3-4][5-6]", "n135 n136 n235 n236 n145 n146 n245 n246"),
        ("n1,n1,n[2-4]", "n1 n2 n3 n4"),
    ],
)
def test_a_list_is_expanded(text: str, hosts: str) -> None:
    assert expand(text) == tuple(hosts.split())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "has no name"),
        (", ", "has no name"),
        ("n[1-4", "not closed"),
        ("n1-4]", "not open"),
        ("n[1-[2]]", "within brackets"),
        ("n[]", "'' in brackets"),
        ("n[1-]", "'1-' in brackets"),
        ("n[a-b]", "'a-b' in brackets"),
        ("n[1;2]", "'1;2' in brackets"),
        ("n[\u0661]", "in brackets"),
        ("n[4-1]", "4-1, which runs backwards"),
        ("n1;n2", "'n1;n2', which is not part of a host name"),
        ("n[1-2, 4]", "' 4' in brackets"),
        ("n[1-9999999999999999999]", "in brackets, which is not a number"),
        ("(null)", "not part of a host name"),
        ("n[1-999999999]", f"more than {HOSTS_MAX} hosts"),
        ("n[1-1000]m[1-1000]", f"more than {HOSTS_MAX} hosts"),
        ("n[1-99999],m[1-99999]", f"more than {HOSTS_MAX} hosts"),
        ("x" * 1_000_001, "more than 1000000 characters"),
    ],
)
def test_what_is_wrong_with_a_list_is_told(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=r"^has |^closes ") as caught:
        expand(text)
    assert told in str(caught.value)


def test_a_large_list_is_expanded() -> None:
    assert len(expand("n[1-100000]")) == HOSTS_MAX


_names = st.from_regex(r"[a-z][a-z.-]{0,5}", fullmatch=True)
_numbers = st.lists(
    st.tuples(st.integers(0, 120), st.integers(0, 5), st.integers(1, 4)), min_size=1, max_size=3
)
_brackets = st.lists(st.tuples(_names, _numbers), max_size=2)
_parts = st.lists(st.tuples(_names, _brackets), min_size=1, max_size=3)


@given(_parts)
def test_what_is_written_is_read(
    parts: list[tuple[str, list[tuple[str, list[tuple[int, ...]]]]]],
) -> None:
    """Each list that can be written has the hosts that it was written from."""
    texts, hosts = [], []
    for prefix, brackets in parts:
        text, choices = prefix, [[prefix]]
        for name, ranges in brackets:
            shown, numbers = [], []
            for first, more, width in ranges:
                shown.append(f"{first:0{width}}-{first + more}" if more else f"{first:0{width}}")
                digits = len(f"{first:0{width}}")
                numbers += [f"{each:0{digits}}" for each in range(first, first + more + 1)]
            text += f"{name}[{','.join(shown)}]"
            choices += [[name], numbers]
        texts.append(text)
        hosts += ["".join(each) for each in itertools.product(*choices)]
    assert expand(",".join(texts)) == tuple(dict.fromkeys(hosts))


@given(st.text(alphabet="n1029-,:[]. (x", max_size=40))
def test_any_text_is_a_list_or_refused(text: str) -> None:
    try:
        hosts = expand(text)
    except ValueError as error:
        assert str(error).startswith(("has ", "closes "))  # noqa: PT017
    else:
        assert hosts
        assert all(hosts)
        assert len(hosts) <= HOSTS_MAX
