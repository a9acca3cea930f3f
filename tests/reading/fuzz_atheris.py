"""A reader under libFuzzer: `python -m tests.reading.fuzz_atheris FORMAT -max_total_time=600`.

Needs the package atheris (`pip install atheris`), which is no part of the development environment.
It ends at the first finding and saves the input; options are libFuzzer's.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["efficientllava.reading", "json", "yaml"]):
    from efficientllava.errors import UserError
    from tests.reading.fuzz import LONGEST, READERS, corpus


def main() -> None:
    """Write the sound files as the first corpus, and fuzz."""
    name, *options = sys.argv[1:]
    suffix, read = READERS[name]
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    (folder / "corpus").mkdir()
    for number, content in enumerate(corpus(name)):
        (folder / "corpus" / str(number)).write_bytes(content)
    file = folder / f"config{suffix}"

    def one(content: bytes) -> None:
        file.write_bytes(content)
        try:
            read(file)
        except UserError:
            pass

    limits = [f"-max_len={LONGEST}", "-rss_limit_mb=4096", "-timeout=30"]
    atheris.Setup([sys.argv[0], *limits, *options, str(folder / "corpus")], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
