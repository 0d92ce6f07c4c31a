"""`Packed`: a list of plain values that grows by few bytes an item."""

from __future__ import annotations

import marshal
import zlib
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar, overload

T = TypeVar("T")

_BLOCK = 128
"""Items of a compressed block. The messages of a topic repeat each other nearly whole, observations above all."""
_LEVEL = 1
"""The fastest of zlib: higher ones save a quarter and take three times as long."""


class Packed(Sequence[T], Generic[T]):
    """A list to append to, and to take off the front of. All but its newest items are compressed, in blocks.

    Items are None, numbers, strings, bytes, and tuples, lists and dictionaries of these. Each look into a block
    makes new ones. Reading on from where the last look was is cheap; a look anywhere else unpacks a block.
    """

    def __init__(self) -> None:
        self._begin = 0
        """How many items were dropped."""
        self._blocks: dict[int, bytes] = {}
        """The compressed blocks by their number; block n holds the items from `n * _BLOCK` on, dropped ones counted."""
        self._newest: list[T] = []
        self._sealed = 0
        """How many items went into blocks."""
        self._unpacked: tuple[int, list[T]] = -1, []
        """The block that was looked into last."""

    def append(self, item: T) -> None:
        self._newest.append(item)
        if len(self._newest) == 2 * _BLOCK:
            block, self._newest = self._newest[:_BLOCK], self._newest[_BLOCK:]
            self._blocks[self._sealed // _BLOCK] = zlib.compress(marshal.dumps(block), _LEVEL)
            self._sealed += _BLOCK

    def drop(self, count: int) -> None:
        """Take items off the front: these many, or all."""
        self._begin += min(max(count, 0), len(self))
        for number in [number for number in self._blocks if (number + 1) * _BLOCK <= self._begin]:
            del self._blocks[number]

    @property
    def held_bytes(self) -> int:
        """The size of the compressed blocks; beside it there are at most twice a block's items, as they are."""
        return sum(map(len, self._blocks.values()))

    def __len__(self) -> int:
        return self._sealed + len(self._newest) - self._begin

    def __iter__(self) -> Iterator[T]:
        start = 0
        while start < len(self):
            items = self[start : start + _BLOCK]
            yield from items
            start += len(items)

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> list[T]: ...
    def __getitem__(self, place: int | slice) -> T | list[T]:
        if isinstance(place, slice):
            start, stop, step = place.indices(len(self))
            if step != 1:
                raise ValueError(f"a packed list is read on, one by one, not in steps of {step}")
            return self._items(self._begin + start, self._begin + stop)
        index = place + len(self) if place < 0 else place
        if not 0 <= index < len(self):
            raise IndexError(f"item {place} of {len(self)}")
        return self._items(self._begin + index, self._begin + index + 1)[0]

    def _items(self, start: int, stop: int) -> list[T]:
        """The items between two places, dropped ones counted."""
        if start >= self._sealed:
            return self._newest[start - self._sealed : max(stop - self._sealed, 0)]
        items: list[T] = []
        while start < min(stop, self._sealed):
            number, first = divmod(start, _BLOCK)
            items += self._block(number)[first : first + stop - start]
            start = (number + 1) * _BLOCK
        if stop > self._sealed:
            items += self._newest[: stop - self._sealed]
        return items

    def _block(self, number: int) -> list[T]:
        if self._unpacked[0] != number:
            self._unpacked = number, marshal.loads(zlib.decompress(self._blocks[number]))
        return self._unpacked[1]
