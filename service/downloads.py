"""Files that are sent to clients."""

import os
from typing import IO, Any

from fastapi.responses import FileResponse
from starlette.types import Receive, Scope, Send


class OpenFileResponse(FileResponse):
    """Sends a file that is open already, and closes it: whoever deletes it meanwhile does not break the download."""

    max_ranges = 16  # of a request; more are taken for none, and the whole file is sent

    def __init__(self, file: IO[bytes], **more: Any) -> None:
        descriptor = file.fileno()
        super().__init__(f"/dev/fd/{descriptor}", stat_result=os.fstat(descriptor), **more)
        self._file = file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._file:
            await super().__call__(scope, receive, send)
