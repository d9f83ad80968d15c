"""The layout that docs/architecture.md promises, read from the files themselves."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "synthoma").rglob("*.py"))

#: A part may import from any step before its own, and from itself.
STEPS = (
    ("errors", "console"),
    ("settings", "options"),
    ("data",),
    ("metrics",),
    ("formats", "phantoms"),
    ("nn",),
    ("engine",),
    ("gans", "tasks", "doctor"),
    ("zoo",),
    ("synthesis",),
    ("report",),
    ("people",),
    ("studies",),
    ("cli_data", "cli_sets", "cli_studies"),
    ("cli",),
    ("__main__",),
)
STEP = {part: step for step, parts in enumerate(STEPS) for part in parts}
#: A paper that builds on another.
BUILT_ON = {
    "cpggan": {"pggan"},
    "hybrid": {"pggan", "cpggan"},
    "cgan": {"gan", "dcgan"},
    "wgan": {"dcgan"},
}


def imports(path: Path) -> Iterator[str]:
    """Every module of synthoma that a file imports, at its top or in a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            module = node.module or ""
            names = [module, *(f"{module}.{alias.name}" for alias in node.names)]
        yield from (name for name in names if name.startswith("synthoma."))


def part_of(path: Path) -> str:
    return path.relative_to(ROOT / "synthoma").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way_only(path):
    own = part_of(path)
    if own == "__init__":
        assert list(imports(path)) == []
        return
    for name in imports(path):
        other = name.split(".")[1]
        if other == "__version__":
            continue
        assert own in STEP, f"{path}: part {own!r} has no place in STEPS"
        assert other == own or STEP[other] < STEP[own], f"{own} imports {other}"
        assert other != "console" or own == "studies" or own.startswith("cli"), (
            f"{own} talks to the terminal"
        )


def test_what_says_errors_and_draws_progress_imports_nothing_of_ours():
    for name in ("errors.py", "console.py"):
        assert list(imports(ROOT / "synthoma" / name)) == []


@pytest.mark.parametrize(
    "path", sorted((ROOT / "synthoma/gans").glob("*.py")), ids=lambda p: p.stem
)
def test_a_gan_imports_another_only_where_its_paper_builds_on_it(path):
    if path.stem == "__init__":
        return
    others = {n.split(".")[2] for n in imports(path) if n.startswith("synthoma.gans.")}
    assert others <= BUILT_ON.get(path.stem, set())


LIGHT = "import sys; sys.argv = ['synthoma', *sys.argv[1:]]\n"
HEAVY = (
    "{'torch', 'torchvision', 'numpy', 'nibabel', 'cv2', 'PIL', 'scipy', 'sklearn', 'matplotlib'}"
)


@pytest.mark.parametrize(
    "program",
    [
        "import synthoma",
        "from synthoma.cli import main\ntry: main()\nexcept SystemExit as end: assert not end.code",
    ],
    ids=["import synthoma", "synthoma --help"],
)
def test_neither_torch_nor_a_reader_is_loaded_for(program):
    said = f"print('loaded', sorted({HEAVY} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", f"{LIGHT}{program}\n{said}", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip().endswith("loaded []")


def test_no_file_has_a_name_that_says_nothing_or_more_than_600_lines():
    for path in [*FILES, *(ROOT / "tests").glob("*.py")]:
        assert path.stem not in {"utils", "util", "helpers", "helper", "common", "misc"}
        limit = 600 if path in FILES else 1000
        assert len(path.read_text(encoding="utf-8").splitlines()) <= limit, path


def test_no_tracked_file_names_the_host_of_a_package_registry():
    hosts = ["py" + "pi.org", "python" + "hosted.org", "anaconda" + ".org", "npm" + "js.org"]
    hosts += ["download.py" + "torch.org", "crates" + ".io", "proxy.go" + "lang.org"]
    patterns = [word for host in hosts for word in ("-e", host)]
    command = ["git", "grep", "-I", "-n", "-F", *patterns]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if found.returncode not in (0, 1):
        pytest.skip("not a git checkout")
    assert found.stdout == ""
