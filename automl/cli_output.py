"""What the `trimtab` command says, and the codes that it exits with."""

import sys

DONE, FAILED, BAD_INPUT = 0, 1, 2
WIDTH_OF_A_FILE = 160


def complain(message: str) -> None:
    """Say in one line what went wrong."""
    print(f"trimtab: error: {' '.join(message.split())}", file=sys.stderr)


def show(*tables: object) -> None:
    """Print tables: as wide as the terminal, or as their content needs where the output goes elsewhere."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH_OF_A_FILE)
    for table in tables:
        console.print(table)
