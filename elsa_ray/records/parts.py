"""The rows that one round adds to the tables, as a file of their own: from these a killed run's tables are made again.

Parquet cannot be appended to once its file was closed, and is no file at all before. A part holds Arrow streams, one
table after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa

from elsa_ray.records.json_text import written_whole


def write_part(path: Path, tables: Iterable[Iterator[pa.Table]]) -> None:
    """Write tables, each given piece by piece (at least one), into a file, which is whole or not there.

    Raises:
        OSError: the folder cannot be written to.
    """
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with written_whole(path) as stream:
        for pieces in tables:
            first = next(pieces)
            with pa.ipc.new_stream(stream, first.schema, options=options) as writer:
                writer.write_table(first)
                for piece in pieces:
                    writer.write_table(piece)


def read_part(path: Path, num_tables: int) -> list[pa.Table]:
    """Read the tables of a part.

    Raises:
        OSError: there is no such file, or it is damaged (an Arrow error is one too, or a ValueError).
        ValueError: see above.
    """
    with path.open("rb") as stream:
        return [pa.ipc.open_stream(stream).read_all() for _ in range(num_tables)]
