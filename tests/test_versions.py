"""Which code made a number."""

import subprocess
from pathlib import Path

import pytest

from synthoma.engine.versions import commit, versions


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", "-C", str(folder), *who, *words], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    """A repository with a package, committed."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "one")
    return package


@pytest.fixture(autouse=True)
def _asked_anew():
    commit.cache_clear()


def test_a_checkout_names_its_commit_whatever_its_tags(checkout):
    git(checkout, "tag", "-a", "v1", "-m", "v1")
    assert commit(checkout) == git(checkout, "rev-parse", "--short=12", "HEAD")


def test_a_changed_file_is_told(checkout):
    (checkout / "__init__.py").write_text("changed")
    assert commit(checkout) == git(checkout, "rev-parse", "--short=12", "HEAD") + "-dirty"


def test_a_package_installed_inside_of_another_repository_has_no_commit(checkout):
    installed = checkout.parent / ".venv" / "package"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert commit(installed) is None


def test_without_a_repository_or_git_there_is_no_commit(tmp_path, checkout, monkeypatch):
    lonely = tmp_path.parent / f"{tmp_path.name}-lonely"
    lonely.mkdir()
    assert commit(lonely) is None
    monkeypatch.setenv("PATH", "")
    assert commit(checkout) is None


def test_versions_name_the_commit_where_there_is_one(monkeypatch):
    for found, told in (("0123456789ab", {"commit": "0123456789ab"}), (None, {})):
        monkeypatch.setattr("synthoma.engine.versions.commit", lambda package, found=found: found)
        assert {k: v for k, v in versions().items() if k == "commit"} == told
