"""Send a folder with Codat's own SDK, with a given number of concurrent requests.

The script runs in the environment of the other programs, so it imports nothing of docferry.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

from codat_lending import CodatLending
from codat_lending.models import shared

COMPANY = "8a210b68-6988-11ed-a1eb-0242ac120002"
CONNECTION = "2e9d2c44-f675-40ba-8049-353bfcb5e171"


async def main(url: str, at_once: int, paths: Iterator[Path]) -> None:
    sdk = CodatLending(security=shared.Security(auth_header="Basic YmVuY2htYXJr"), server_url=url)

    async def worker() -> None:
        for path in paths:
            content = await asyncio.to_thread(path.read_bytes)
            await sdk.file_upload.upload_async(
                request={
                    "company_id": COMPANY,
                    "connection_id": CONNECTION,
                    "file_upload": shared.FileUpload(file=shared.CodatFile(file_name=path.name, content=content)),
                }
            )

    await asyncio.gather(*(worker() for _ in range(at_once)))


folder, address, number = sys.argv[1:4]
asyncio.run(main(address, int(number), (path for path in Path(folder).rglob("*") if path.is_file())))
