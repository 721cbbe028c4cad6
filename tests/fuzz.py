"""Fuzzing of the files that users bring, guided by the code that is covered.

`pip install atheris` (Linux, macOS), then `python tests/fuzz.py [KIND ...] [--runs 20000]`: each kind of file of
`file_kinds.py` in a process of its own. Whatever is raised that is no clear refusal ends it, and the file that did it
is kept.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HANGS_S = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", help="all where none is named")
    parser.add_argument("--runs", type=int, default=20_000, help="of each")
    parser.add_argument("--kept", type=Path, default=Path("runs/fuzz"), help="where files are kept that did it")
    parser.add_argument("--here", action="store_true", help="in this process, which that ends")
    arguments = parser.parse_args()
    if arguments.here:
        fuzz(arguments.kinds[0], arguments.runs, arguments.kept)
    from file_kinds import NAMES

    arguments.kept.mkdir(parents=True, exist_ok=True)
    how = ["--here", "--runs", str(arguments.runs), "--kept", str(arguments.kept)]
    failed = []
    for name in arguments.kinds or NAMES:
        found = subprocess.run([sys.executable, __file__, name, *how], capture_output=True, text=True, check=False)
        said = [line for line in found.stderr.splitlines() if re.match(r"#\d+\s", line)]
        print(f"{name}: {said[-1] if said else 'nothing was run'}", flush=True)
        if found.returncode:
            failed.append(name)
            print(found.stdout[-4000:], found.stderr[-4000:], sep="\n", flush=True)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


def fuzz(name: str, runs: int, kept: Path) -> None:
    """Does not return: libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["automl", "backends", "search_spaces", "yaml"]):
        from file_kinds import ODD, Watch, forbid_pickle, judge, kinds
    with tempfile.TemporaryDirectory() as temporary:
        folder, corpus, words = (Path(temporary) / each for each in ("files", "corpus", "words"))
        folder.mkdir(), corpus.mkdir()
        kind = kinds(folder)[name]
        (corpus / "whole").write_bytes(kind.content)
        words.write_text("".join(f'"{escaped(odd[:60])}"\n' for odd in ODD))
        options = [f"-runs={runs}", f"-timeout={HANGS_S}", f"-dict={words}", f"-artifact_prefix={kept}/"]
        most = max(4096, 2 * len(kind.content))
        forbid_pickle(setattr)
        with judge(name, kind, folder, Watch()) as judged:
            atheris.Setup([sys.argv[0], *options, f"-max_len={most}", str(corpus)], judged)
            atheris.Fuzz()


def escaped(content: bytes) -> str:
    """As libFuzzer's dictionaries have it."""
    return "".join(f"\\x{byte:02x}" for byte in content)


if __name__ == "__main__":
    main()
