"""Run docferry as an unprivileged user, where only root can read the interpreter: `as_nobody.py UID WORD…`.

Everything that docferry imports is imported first, then the privileges are given up for good.
"""

from __future__ import annotations

import codecs
import encodings
import importlib
import os
import pkgutil
import sys
from contextlib import suppress

import anyio._backends._asyncio  # anyio imports it by name

import docferry
from docferry.cli.main import main

LEFT_OUT = ("docferry.__main__", "docferry.simulator", "docferry._migrations")
assert anyio._backends._asyncio
for encoding in pkgutil.iter_modules(encodings.__path__, "encodings."):
    with suppress(ImportError):  # those of Windows
        importlib.import_module(encoding.name)
for encoding_name in ("utf-8-sig", "idna", "ascii", "latin-1"):
    codecs.lookup(encoding_name)
for module in pkgutil.walk_packages(docferry.__path__, "docferry."):
    if not module.name.startswith(LEFT_OUT):
        with suppress(ImportError):  # an extra that is not installed
            importlib.import_module(module.name)

user = int(sys.argv[1])
os.setgroups([])
os.setgid(user)
os.setuid(user)
sys.exit(main(sys.argv[2:]))
