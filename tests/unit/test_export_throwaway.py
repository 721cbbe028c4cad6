"""Whatever the process of an artefact does, the caller gets an answer: real processes of stand-in workers."""

import sys
import time
from pathlib import Path

import pytest

from automl.export import throwaway

WORKERS = {
    "crashes": "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)",
    "hangs": "import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
    "time.sleep(60)",
    "complains": "import sys\nsys.stderr.write('first line\\nthe reason\\n')\nsys.exit(1)",
    "is_silent": "import sys\nsys.exit(3)",
    "writes_nothing": "pass",
    "writes_pickles": "import sys, pickle, pathlib\nfolder = pathlib.Path(sys.argv[1])\n"
    "(folder / 'outputs.npy').write_bytes(pickle.dumps([1]))\n(folder / 'result.json').write_text('{}')",
    "shadowed": "import json, sys\nsys.stderr.write(json.__file__)\nsys.exit(1)",
}


def _run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timeout_s: float = 20.0) -> throwaway.Ran:
    module = f"worker_{name}"
    (tmp_path / f"{module}.py").write_text(WORKERS[name])
    (tmp_path / "run").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(throwaway, "WORKER", module)
    return throwaway.run_artefact(
        "model.onnx",
        tmp_path / "run",
        tmp_path / "images.npy",
        batch=1,
        threads=1,
        allow_code=False,
        timeout_s=timeout_s,
    )


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("crashes", "the process died of SIGSEGV"),
        ("complains", "the reason"),
        ("is_silent", "the process ended with exit code 3"),
        ("writes_nothing", "left no readable result"),
        ("writes_pickles", "left no readable result"),
    ],
)
def test_a_failure_is_told(name: str, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = _run(name, tmp_path, monkeypatch)
    assert ran.outputs is None
    assert error in str(ran.error)


def test_a_process_that_hangs_is_killed_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = time.monotonic()
    ran = _run("hangs", tmp_path, monkeypatch, timeout_s=2.0)
    assert ran.error == "did not end within 2 s and was killed"
    assert time.monotonic() - started < 50  # not a timing: it would be 60 if anything had waited for the sleepers


def test_the_current_directory_does_not_shadow_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "json.py").write_text("raise SystemExit('hijacked')")
    monkeypatch.chdir(here)
    assert str(_run("shadowed", tmp_path, monkeypatch).error).startswith(sys.base_prefix)
