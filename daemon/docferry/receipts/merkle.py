"""Build the Merkle tree of RFC 6962: append in constant time, roots, inclusion and consistency proofs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Final

#: Length of a hash in bytes.
HASH_SIZE: Final = 32
#: The root of a tree without leaves.
EMPTY_ROOT: Final = sha256(b"").digest()


def leaf_hash(data: bytes) -> bytes:
    """Return the hash of a leaf that holds `data`."""
    return sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an interior node."""
    return sha256(b"\x01" + left + right).digest()


class Frontier:
    """Hold the right edge of a tree: the roots of its complete subtrees, the largest first.

    An append costs one hash on average. The state of a tree of a million leaves has at most 640 bytes.
    """

    __slots__ = ("_hashes", "size")

    def __init__(self, size: int = 0, hashes: bytes = b"") -> None:
        """Restore the result of `encode` for a tree of `size` leaves. Raises ValueError if the two do not match."""
        if len(hashes) != HASH_SIZE * size.bit_count():
            raise ValueError(f"a tree of {size} leaves has no frontier of {len(hashes)} bytes")
        self.size = size
        self._hashes = [hashes[at : at + HASH_SIZE] for at in range(0, len(hashes), HASH_SIZE)]

    def append(self, leaf: bytes) -> None:
        """Add the hash of the next leaf."""
        hashes, bits = self._hashes, self.size
        while bits & 1:
            leaf = sha256(b"\x01" + hashes.pop() + leaf).digest()
            bits >>= 1
        hashes.append(leaf)
        self.size += 1

    def root(self) -> bytes:
        """Return the root of the tree so far."""
        if not self._hashes:
            return EMPTY_ROOT
        root = self._hashes[-1]
        for left in reversed(self._hashes[:-1]):
            root = node_hash(left, root)
        return root

    def encode(self) -> bytes:
        """Return the concatenated hashes, for storage."""
        return b"".join(self._hashes)


class Tree:
    """Hold all nodes of a tree, for proofs: 64 bytes of memory per leaf."""

    def __init__(self, leaves: Iterable[bytes]) -> None:
        """Build the tree over these leaf hashes."""
        self._levels = [bytearray().join(leaves)]
        self.size = len(self._levels[0]) // HASH_SIZE
        while len(self._levels[-1]) > HASH_SIZE:
            self._levels.append(_parents(self._levels[-1]))

    def root(self, size: int | None = None) -> bytes:
        """Return the root of the first `size` leaves, by default of all."""
        size = self.size if size is None else size
        if not 0 <= size <= self.size:
            raise ValueError(f"the tree has {self.size} leaves, not {size}")
        frontier, start = list[bytes](), 0
        for bit in reversed(range(size.bit_length())):
            if size >> bit & 1:
                frontier.append(self._node(bit, start >> bit))
                start += 1 << bit
        return Frontier(size, b"".join(frontier)).root()

    def inclusion_proof(self, index: int) -> list[bytes]:
        """Return the audit path of a leaf, from the leaf to the root."""
        if not 0 <= index < self.size:
            raise ValueError(f"the tree has {self.size} leaves, none of index {index}")
        path = []
        for level in range(len(self._levels) - 1):
            sibling = (index >> level) ^ 1
            if sibling * HASH_SIZE < len(self._levels[level]):
                path.append(self._node(level, sibling))
        return path

    def consistency_proof(self, size: int) -> list[bytes]:
        """Return the proof that the tree begins with its first `size` leaves (RFC 6962, section 2.1.2)."""
        if not 0 < size <= self.size:
            raise ValueError(f"the tree has {self.size} leaves, not {size}")
        proof, low, high, is_whole = list[bytes](), 0, self.size, True
        while size != high - low:
            half = _split(high - low)
            if size <= half:
                proof.append(self._range(low + half, high))
                high = low + half
            else:
                proof.append(self._range(low, low + half))
                low, size, is_whole = low + half, size - half, False
        if not is_whole:
            proof.append(self._range(low, high))
        return proof[::-1]

    def _range(self, low: int, high: int) -> bytes:
        """Return the root of the subtree over leaves `low` to `high`, which must exist in the tree."""
        level = (high - low - 1).bit_length()
        return self._node(level, low >> level)

    def _node(self, level: int, at: int) -> bytes:
        return bytes(self._levels[level][at * HASH_SIZE : (at + 1) * HASH_SIZE])


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Return whether `proof` shows that the leaf hash is at `index` of the tree with this size and root."""
    if not 0 <= index < size:
        return False
    position, last, found = index, size - 1, leaf
    for each in proof:
        if not last:
            return False
        if position & 1 or position == last:
            found = node_hash(each, found)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            found = node_hash(found, each)
        position, last = position >> 1, last >> 1
    return not last and found == root


def verify_consistency(old_size: int, old_root: bytes, size: int, root: bytes, proof: Sequence[bytes]) -> bool:
    """Return whether `proof` shows that the tree of `size` leaves begins with the tree of `old_size` leaves."""
    if not 0 < old_size <= size:
        return False
    if old_size == size:
        return not proof and old_root == root
    path = list(proof)
    if old_size & (old_size - 1) == 0:
        path.insert(0, old_root)
    if not path:
        return False
    position, last = old_size - 1, size - 1
    while position & 1:
        position, last = position >> 1, last >> 1
    old = new = path[0]
    for each in path[1:]:
        if not last:
            return False
        if position & 1 or position == last:
            old, new = node_hash(each, old), node_hash(each, new)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            new = node_hash(new, each)
        position, last = position >> 1, last >> 1
    return not last and old == old_root and new == root


def _parents(level: bytearray) -> bytearray:
    """Return the level above; a last node without a sibling moves up unchanged."""
    pair = 2 * HASH_SIZE
    whole = len(level) // pair * pair
    view = memoryview(level)
    above = bytearray().join(sha256(b"\x01" + view[at : at + pair]).digest() for at in range(0, whole, pair))
    return above + view[whole:]


def _split(size: int) -> int:
    """Return the largest power of two below `size`."""
    return 1 << (size - 1).bit_length() - 1
