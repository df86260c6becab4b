"""The wheel and the sdist: they are fit for a registry, and work without this checkout."""

from __future__ import annotations

import configparser
import os
import shutil
import ssl
import subprocess
import sys
import sysconfig
import tarfile
import urllib.request
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.ports import free_port

ROOT = Path(__file__).parents[1]
LATE_S = 100
pytestmark = [pytest.mark.processes, pytest.mark.verify, pytest.mark.timeout(400)]


def run(*command: object, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a program without the settings of this shell, and fail the test if it fails."""
    keeps = ("PATH", "LANG", "TMPDIR")
    own = {name: os.environ[name] for name in keeps if name in os.environ}
    done = subprocess.run(
        [str(each) for each in command],
        cwd=cwd,
        env=own | {"HOME": str(cwd), "PYTHONNOUSERSITE": "1"} | environ,
        capture_output=True,
        text=True,
        timeout=LATE_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with both. The wheel is built from the sdist."""
    for name in ("build", "hatchling", "twine"):
        pytest.importorskip(name)
    folder = tmp_path_factory.mktemp("dist")
    # A copy, because a build may write beside its source.
    source = folder / "source"
    ignored = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", "build")
    shutil.copytree(ROOT, source, ignore=ignored)
    out = folder / "out"
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source, cwd=folder)
    return out


def wheel_of(dist: Path) -> Path:
    (wheel,) = dist.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a new environment with the wheel.

    Its dependencies are those of this environment, so that no network is needed.
    """
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "env", with_pip=True)
    programs = folder / "env" / "bin"
    run(programs / "python", "-m", "pip", "install", "--no-deps", "--no-index", wheel_of(dist),
        cwd=folder)  # fmt: skip
    (site,) = (folder / "env" / "lib").glob("python*/site-packages")
    # A folder that a .pth file names is searched, but its own .pth files, of the checkout, are not.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return programs


@pytest.fixture
def program(installed: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def start(*words: object, **environ: str) -> subprocess.CompletedProcess[str]:
        name, *more = words
        return run(installed / str(name), *more, cwd=tmp_path, **environ)

    return start


Program = Callable[..., subprocess.CompletedProcess[str]]


def test_twine_accepts_both(dist: Path, tmp_path: Path) -> None:
    files = sorted(dist.iterdir())
    assert [each.name.rpartition(".")[2] for each in files] == ["whl", "gz"]
    done = run(sys.executable, "-m", "twine", "check", "--strict", *files, cwd=tmp_path)
    assert done.stdout.count("PASSED") == 2


def test_the_wheel_has_all_that_is_not_code_and_nothing_else(dist: Path) -> None:
    with zipfile.ZipFile(wheel_of(dist)) as wheel:
        names = set(wheel.namelist())
        (entries,) = [each for each in names if each.endswith("entry_points.txt")]
        points = configparser.ConfigParser(delimiters="=")
        points.read_string(wheel.read(entries).decode())
    assert set(points.sections()) == {"console_scripts", "pytest11", "torchrun.handlers"}
    source = ROOT / "src"
    mine = [each for each in (source / "rallypoint").rglob("*") if each.is_file()]
    wanted = {each.relative_to(source).as_posix() for each in mine if each.suffix != ".pyc"}
    assert wanted - names == set()
    assert {each.partition("/")[0] for each in names} == {
        "rallypoint",
        entries.partition("/")[0],
    }
    assert "rallypoint/cli/_demo_train.py" in names
    assert {"LICENSE", "NOTICE"} <= {each.rpartition("/")[2] for each in names}


def test_the_sdist_has_what_its_tests_need(dist: Path) -> None:
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {each.partition("/")[2] for each in archive.getnames()}
    for each in ("pyproject.toml", "README.md", "LICENSE", "Makefile", "CHANGELOG.md"):
        assert each in names
    for each in ("tests/kinds.py", "docs/protocol.md", "deploy/README.md", "tools/docsite/plan.py"):
        assert each in names
    assert not [each for each in names if "__pycache__" in each or each.startswith((".git/", ".v"))]


def test_its_commands_work_without_the_checkout(program: Program, tmp_path: Path) -> None:
    where = program("python", "-c", "import rallypoint; print(rallypoint.__file__)").stdout
    assert str(ROOT) not in where
    assert "site-packages" in where
    assert "serve" in program("rallypoint", "--help").stdout
    program("rallypoint", "token", "new", tmp_path / "token")
    assert (tmp_path / "token").read_text().startswith("rlp1.")


def test_two_nodes_meet(installed: Path, program: Program, tmp_path: Path) -> None:
    program("rallypoint", "token", "new", tmp_path / "token")
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import rallypoint\n"
        "with rallypoint.join() as run:\n"
        "    world = run.next_world()\n"
        "    world.barrier('all')\n"
        "    print('of', world.size)\n"
    )
    common = ("--nnodes", "2", "--run-id", "job", "--endpoint", f"127.0.0.1:{free_port()}")
    command = [str(installed / "rallypoint"), "run", *common, "--token-file", "token", str(worker)]
    nodes = [
        subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for _ in range(2)
    ]
    ended = [each.communicate(timeout=LATE_S)[0].decode() for each in nodes]
    assert [each.returncode for each in nodes] == [0, 0], ended
    assert all("of 2" in each for each in ended)


def test_it_serves_the_page(installed: Path, program: Program, tmp_path: Path) -> None:
    program("rallypoint", "token", "new", "--state", tmp_path / "state")
    port = free_port()
    serve = subprocess.Popen(
        [installed / "rallypoint", "serve", "--state", "state", "--port", str(port)],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert serve.stdout is not None
        assert serve.stdout.readline().startswith(b"https://")
        context = ssl.create_default_context(cafile=str(tmp_path / "state/ca.crt"))
        context.check_hostname = False
        files = sorted((ROOT / "src/rallypoint/coordinator/page").iterdir())
        assert files
        for each in files:
            name = "" if each.name == "index.html" else f"page/{each.name}"
            url = f"https://127.0.0.1:{port}/{name}"
            with urllib.request.urlopen(url, timeout=30, context=context) as answer:
                assert answer.read() == each.read_bytes(), url
    finally:
        serve.terminate()
        serve.communicate(timeout=LATE_S)


def test_pytest_finds_the_fixture_by_itself(program: Program, tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(
        "def test_mine(rallypoint_cluster):\n"
        "    rallypoint_cluster.start(2)\n"
        "    assert [each.size for each in rallypoint_cluster.meet()] == [2, 2]\n"
    )
    done = program("python", "-m", "pytest", "-q", "-W", "error", "test_mine.py")
    assert "1 passed" in done.stdout
