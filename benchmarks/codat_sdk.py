"""Codat's own SDK, sending a folder with so many requests at once: what somebody would write without docferry.
Runs in the peers' environment, so it imports nothing of ours."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

from codat_lending import CodatLending
from codat_lending.models import shared

COMPANY = "8a210b68-6988-11ed-a1eb-0242ac120002"
CONNECTION = "2e9d2c44-f675-40ba-8049-353bfcb5e171"


async def main(folder: str, url: str, at_once: str) -> None:
    sdk = CodatLending(security=shared.Security(auth_header="Basic YmVuY2htYXJr"), server_url=url)
    paths = (path for path in Path(folder).rglob("*") if path.is_file())

    async def worker(paths: Iterator[Path]) -> None:
        for path in paths:
            content = await asyncio.to_thread(path.read_bytes)
            await sdk.file_upload.upload_async(
                request={
                    "company_id": COMPANY,
                    "connection_id": CONNECTION,
                    "file_upload": shared.FileUpload(
                        file=shared.CodatFile(file_name=path.name, content=content)
                    ),
                }
            )

    await asyncio.gather(*(worker(paths) for _ in range(int(at_once))))


asyncio.run(main(*sys.argv[1:4]))
