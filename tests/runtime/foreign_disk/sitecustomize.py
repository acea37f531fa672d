"""Found first by every Python of a node whose path begins with this folder: the driver's folder cannot be read there.

As if the node were another machine. ``DRIVERS_FOLDER`` names the folder, ``DRIVERS_FOLDER_READ`` a folder that is made
by who tries.
"""

import os
import sys

FOLDER, READ = os.environ.get("DRIVERS_FOLDER"), os.environ.get("DRIVERS_FOLDER_READ", "")


def refuse(event: str, arguments: tuple) -> None:
    if event in ("open", "os.listdir", "os.scandir") and str(arguments[0]).startswith(str(FOLDER)):
        os.makedirs(READ, exist_ok=True)
        raise PermissionError(f"{arguments[0]} is on the driver's disk")


if FOLDER:
    sys.addaudithook(refuse)
