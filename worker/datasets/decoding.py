"""Decoding many pictures at once: processes that read by offset from one file and answer in order.

Processes and not threads: for small pictures most of the time goes into Python, and a picture that crashes a decoder
takes one of them along, not everything.
"""

import hashlib
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from worker.jobs.errors import BadImage, ImageTooLarge
from worker.jobs.processes import cores, die_with_parent

from .archive import Member
from .pictures import Header, Preprocessing, read_header

_CHUNK_PICTURES = 512  # that one process decodes at a time, unless
_CHUNK_BYTES = 4 * 2**20  # their files,
_CHUNK_PIXELS = 8 * 2**20  # or what they become, are larger than this
_AHEAD: Final = 4  # chunks a process, so that none waits and few lie about
_DIGEST_BYTES: Final = 16

Digest = bytes
Place = tuple[int, int]  # offset and size in the file
Result = TypeVar("Result")


class DecoderDied(Exception):
    """Worth another try: what killed the process need not have been a picture."""


@dataclass(frozen=True)
class Inspected:
    """What a picture's file says of itself, or why it cannot be read."""

    header: Header | None
    digest: Digest  # of the file
    problem: str | None


_Inspected = tuple[tuple[int, int, bool] | None, Digest, str | None]  # the same, in a twentieth of the time to send


@dataclass(frozen=True)
class Decoded:
    """The readable pictures of a chunk."""

    images: NDArray[np.uint8]  # N x C x H x W
    digests: list[Digest]  # of each picture's pixels
    problems: dict[int, str]  # place in the chunk -> why it could not be decoded; not among the images


class Decoders:
    """Processes that inspect and decode the pictures of one file."""

    def __init__(self, pool: ProcessPoolExecutor, blob: Path, max_pixels: int) -> None:
        self._pool, self._blob, self._max_pixels = pool, blob, max_pixels

    def inspect(self, members: Iterable[Member]) -> Iterator[list[Inspected]]:
        """In chunks, in order. Raises DecoderDied."""
        for chunk in self._run(_inspect, members, _CHUNK_PICTURES, self._max_pixels):
            yield [Inspected(header and Header(*header), digest, problem) for header, digest, problem in chunk]

    def decode(self, members: Sequence[Member], shape: Preprocessing) -> Iterator[Decoded]:
        """In chunks, in order. Raises DecoderDied."""
        most = max(1, min(_CHUNK_PICTURES, _CHUNK_PIXELS // (shape.channels * shape.height * shape.width)))
        return self._run(_decode, members, most, self._max_pixels, shape)

    def _run(
        self, work: Callable[..., Result], members: Iterable[Member], most: int, *arguments: object
    ) -> Iterator[Result]:
        waiting: deque[tuple[Sequence[Member], Future[Result]]] = deque()
        for chunk in _chunks(members, most):
            waiting.append((chunk, self._submit(work, chunk, *arguments)))
            if len(waiting) >= _AHEAD * cores():
                yield _result(*waiting.popleft())
        while waiting:
            yield _result(*waiting.popleft())

    def _submit(self, work: Callable[..., Result], chunk: Sequence[Member], *arguments: object) -> Future[Result]:
        try:
            places = [(member.offset, member.size) for member in chunk]  # a path costs more to send than to decode
            return self._pool.submit(work, self._blob, places, *arguments)
        except BrokenProcessPool as error:  # found out between two results
            raise _died(chunk) from error


@contextmanager
def decoders(blob: Path, max_pixels: int) -> Iterator[Decoders]:
    """Forks a process a core. To be called by a process with one thread that never ran a parallel operation."""
    pool = ProcessPoolExecutor(cores(), mp_context=get_context("fork"), initializer=_begin)
    try:
        yield Decoders(pool, blob, max_pixels)
    except BaseException:
        for process in active_children():  # one that hangs would be waited for
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the parent's handler waits for its loop; the pool's ends at once
    die_with_parent()
    torch.set_num_threads(1)


def _chunks(members: Iterable[Member], most: int) -> Iterator[Sequence[Member]]:
    chunk: list[Member] = []
    size = 0
    for member in members:
        if chunk and (len(chunk) >= most or size + member.size > _CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(member)
        size += member.size
    if chunk:
        yield chunk


def _result(chunk: Sequence[Member], future: Future[Result]) -> Result:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise _died(chunk) from error


def _died(chunk: Sequence[Member]) -> DecoderDied:
    return DecoderDied(
        "A process that decodes pictures died, possibly of one of them, possibly because the machine ran out of "
        f"memory. It was at {chunk[0].path} or not far from it."
    )


def _read(blob: Path, places: Sequence[Place]) -> Iterator[bytes]:
    descriptor = os.open(blob, os.O_RDONLY)
    try:
        for offset, size in places:
            yield os.pread(descriptor, size, offset)
    finally:
        os.close(descriptor)


def _inspect(blob: Path, places: Sequence[Place], max_pixels: int) -> list[_Inspected]:
    inspected: list[_Inspected] = []
    for data in _read(blob, places):
        header, problem = None, None
        try:
            found = read_header(data, max_pixels=max_pixels)
            header = (found.width, found.height, found.is_grey)
        except (BadImage, ImageTooLarge) as error:
            problem = error.detail
        inspected.append((header, _digest(data), problem))
    return inspected


def _decode(blob: Path, places: Sequence[Place], max_pixels: int, shape: Preprocessing) -> Decoded:
    images, digests, problems = [], [], {}
    for place, data in enumerate(_read(blob, places)):
        try:
            pixels = shape.picture(data, max_pixels=max_pixels).numpy()
        except (BadImage, ImageTooLarge) as error:
            problems[place] = error.detail
        else:
            images.append(pixels)
            digests.append(_digest(np.ascontiguousarray(pixels).data))
    empty = np.empty((0, shape.channels, shape.height, shape.width), dtype=np.uint8)
    return Decoded(np.stack(images) if images else empty, digests, problems)


def _digest(data: bytes | memoryview) -> Digest:
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest()
