"""Tables for people: as wide as their terminal, or as the table needs where a log has no width."""

import sys

from rich.console import Console
from rich.table import Table

LOG_WIDTH = 200


def print_table(table: Table) -> None:
    Console(width=None if sys.stdout.isatty() else LOG_WIDTH).print(table)
