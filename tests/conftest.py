"""Fixtures that every test may use; while testing, annotated shapes and types are checked."""

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

# small networks are faster on one thread, also in the processes that tests start
os.environ.setdefault("OMP_NUM_THREADS", "1")

install_import_hook("synthoma", "typecheck.check")  # before anything of synthoma is imported


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images; the test is skipped where it is absent."""
    root = Path(__file__).parent.parent
    folder = root / os.environ.get("SYNTHOMA_REAL_DATA", "../shared/data")
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}; SYNTHOMA_REAL_DATA names its place")
    return folder
