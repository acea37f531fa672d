"""``run.log``: what the package's loggers say during a run."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def logged_to(path: Path, level: int = logging.INFO) -> Iterator[logging.Logger]:
    """Append what the logger ``elsa_ray`` says to a file for as long as the block lasts.

    Args:
        path: the file, such as ``run.log`` in the run's folder.
        level: the least severe messages that are written.

    Raises:
        OSError: the file cannot be written.
    """
    logger = logging.getLogger("elsa_ray")
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.setLevel(level)
    level_before = logger.level
    logger.addHandler(handler)
    # A logger that is set to tell more than the file needs keeps doing so.
    logger.setLevel(min(level, level_before) if level_before else level)
    try:
        yield logger
    finally:
        logger.setLevel(level_before)
        logger.removeHandler(handler)
        handler.close()
