"""Named statements from `sql/*.sql`.

A statement begins with `-- name: <name>` and ends where the next one begins. Parameters are `:name`; a cast of one is
written `CAST(:name AS type)`.
"""

from importlib.resources import files

from sqlalchemy import TextClause, text

_MARK = "-- name:"


def parse(source: str) -> dict[str, str]:
    """Statement texts by name, in order."""
    found: dict[str, str] = {}
    for block in source.split(_MARK)[1:]:
        name, _, body = block.partition("\n")
        if name.strip() in found:
            raise ValueError(f"statement {name.strip()!r} is there twice")
        found[name.strip()] = body.strip().rstrip(";")
    return found


def load(file: str) -> dict[str, TextClause]:
    """The statements of `sql/<file>.sql`."""
    source = (files("adapters.postgres") / "sql" / f"{file}.sql").read_text(encoding="utf-8")
    return {name: text(body) for name, body in parse(source).items()}
