"""`mast3r models`: the registry of weights."""

from __future__ import annotations

from collections.abc import Sequence

from mast3r.cli.options import make_parser, tell
from mast3r.models import WeightsRecord, list_models

_HEAD = ("name", "network", "px", "parameters", "licence of the weights", "commercial", "where")


def main(argv: Sequence[str], prog: str) -> int:
    """Run the command."""
    parser = make_parser(prog, "List the known weights.", ["", "--commercial", "--json"])
    parser.add_argument("name", nargs="?", help="show only weights whose name contains this")
    parser.add_argument("--commercial", action="store_true", help="show only weights free for commercial use")
    args = parser.parse_args(argv)
    wanted = (args.name or "").lower()
    records = [r for r in list_models() if wanted in r.name.lower() and (r.commercial or not args.commercial)]
    if not records:
        names = ", ".join(record.name for record in list_models())
        raise ValueError(f"no weights are called like {args.name!r}; there are {names}.")
    tell(args, _table(records), {"models": [record.as_dict() for record in records]})
    return 0


def _table(records: Sequence[WeightsRecord]) -> str:
    rows = [_HEAD, *(_row(record) for record in records)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def _row(record: WeightsRecord) -> tuple[str, ...]:
    return (
        record.name,
        record.architecture,
        str(record.image_size),
        f"{record.parameters / 1e6:.1f} M",
        record.weights_licence,
        "yes" if record.commercial else "no",
        record.availability,
    )
