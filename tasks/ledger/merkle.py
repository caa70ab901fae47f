"""RFC 6962 Merkle trees: root, inclusion and consistency proofs, and their verification.

Leaves and inner nodes are hashed under different prefixes (0x00, 0x01), so that an inner node never passes for a leaf.
Roots and proof nodes are SHA-256 values as 64 lower-case hex digits; leaves are bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

EMPTY_ROOT = hashlib.sha256(b"").hexdigest()


def hash_leaf(leaf: bytes) -> bytes:
    """Returns SHA-256(0x00 || leaf), 32 bytes (RFC 6962 section 2.1)."""
    return hashlib.sha256(b"\x00" + leaf).digest()


def merkle_root(leaves: Iterable[bytes]) -> str:
    """Returns the root (hex) over `leaves` in order; the SHA-256 of nothing for no leaves."""
    return MerkleTree(leaves).root()


class MerkleTree:
    """A tree that grows at its right edge and can prove any earlier state of itself."""

    def __init__(self, leaves: Iterable[bytes] = ()) -> None:
        # _levels[k][i] is the hash of the complete subtree over leaves i * 2**k .. (i + 1) * 2**k - 1.
        self._levels: list[list[bytes]] = [[]]
        for leaf in leaves:
            self.append(leaf)

    @property
    def size(self) -> int:
        """Number of leaves."""
        return len(self._levels[0])

    def append(self, leaf: bytes) -> None:
        """Adds one leaf."""
        node = hash_leaf(leaf)
        for level in self._levels:
            level.append(node)
            if len(level) % 2:
                return
            node = _hash_nodes(level[-2], level[-1])
        self._levels.append([node])

    def root(self, size: int | None = None) -> str:
        """Returns the root (hex) over the first `size` leaves; over all of them by default.

        Raises:
            ValueError: the tree never had that size.
        """
        wanted = self.size if size is None else size
        self._check(0 <= wanted <= self.size)
        return self._range(0, wanted).hex() if wanted else EMPTY_ROOT

    def prove_inclusion(self, index: int, size: int | None = None) -> tuple[str, ...]:
        """Returns the audit path of leaf `index` in the tree of the first `size` leaves (RFC 6962 section 2.1.1).

        Raises:
            ValueError: no such leaf or size.
        """
        wanted = self.size if size is None else size
        self._check(0 <= index < wanted <= self.size)
        path: list[str] = []
        start, end = 0, wanted
        while end - start > 1:
            middle = start + _split(end - start)
            if index < middle:
                path.append(self._range(middle, end).hex())
                end = middle
            else:
                path.append(self._range(start, middle).hex())
                start = middle
        return tuple(reversed(path))

    def prove_consistency(self, old_size: int, size: int | None = None) -> tuple[str, ...]:
        """Proves that the first `old_size` leaves are a prefix of the first `size` (RFC 6962 section 2.1.2).

        Raises:
            ValueError: not 1 <= old_size <= size <= self.size.
        """
        wanted = self.size if size is None else size
        self._check(1 <= old_size <= wanted <= self.size)
        path: list[str] = []
        start, end = 0, wanted
        while end != old_size:
            middle = start + _split(end - start)
            if old_size <= middle:
                path.append(self._range(middle, end).hex())
                end = middle
            else:
                path.append(self._range(start, middle).hex())
                start = middle
        if start:
            path.append(self._range(start, end).hex())
        return tuple(reversed(path))

    def _range(self, start: int, end: int) -> bytes:
        width = end - start
        if width & (width - 1) == 0 and start % width == 0:
            return self._levels[width.bit_length() - 1][start // width]
        middle = start + _split(width)
        return _hash_nodes(self._range(start, middle), self._range(middle, end))

    @staticmethod
    def _check(holds: bool) -> None:
        if not holds:
            raise ValueError("position outside the tree")


class MerkleFrontier:
    """The right edge of a growing tree: its root in memory logarithmic in the number of leaves, and no proofs."""

    def __init__(self) -> None:
        self._size = 0
        self._peaks: list[bytes] = []

    def append_hash(self, node: bytes) -> None:
        """Adds one leaf by its `hash_leaf`."""
        complete = self._size
        while complete % 2:
            node = _hash_nodes(self._peaks.pop(), node)
            complete >>= 1
        self._peaks.append(node)
        self._size += 1

    def extend(self, nodes: Iterable[bytes]) -> None:
        """Adds leaves by their hashes, in order."""
        for node in nodes:
            self.append_hash(node)

    def root(self) -> str:
        """Returns the root (hex) over all leaves."""
        if not self._peaks:
            return EMPTY_ROOT
        node = self._peaks[-1]
        for peak in reversed(self._peaks[:-1]):
            node = _hash_nodes(peak, node)
        return node.hex()


def verify_inclusion(leaf: bytes, index: int, size: int, path: Sequence[str], root: str) -> bool:
    """Tells whether `path` proves `leaf` at `index` of the tree of `size` leaves and `root` (RFC 9162 section 2.1.3.2).

    Any malformed input proves nothing and gives False.
    """
    nodes = _parse(path)
    if nodes is None or not 0 <= index < size:
        return False
    node, position, last = hash_leaf(leaf), index, size - 1
    for sibling in nodes:
        if last == 0:
            return False
        if position % 2 or position == last:
            node = _hash_nodes(sibling, node)
            while not position % 2 and position:
                position, last = position >> 1, last >> 1
        else:
            node = _hash_nodes(node, sibling)
        position, last = position >> 1, last >> 1
    return last == 0 and node.hex() == root


def verify_consistency(old_size: int, old_root: str, size: int, root: str, path: Sequence[str]) -> bool:
    """Tells whether `path` proves that the tree `old_root` is a prefix of the tree `root` (RFC 9162 section 2.1.4.2).

    The empty tree is a prefix of every tree and needs the empty path. Malformed input proves nothing and gives False.
    """
    nodes = _parse(path)
    if nodes is None or not 0 <= old_size <= size:
        return False
    if old_size == 0:
        return not nodes and old_root == EMPTY_ROOT and (size > 0 or root == EMPTY_ROOT)
    if old_size == size:
        return not nodes and old_root == root
    return _replay_consistency(old_size, old_root, size, root, nodes)


def _replay_consistency(old_size: int, old_root: str, size: int, root: str, nodes: list[bytes]) -> bool:
    first, last = old_size - 1, size - 1
    while first % 2:
        first, last = first >> 1, last >> 1
    if first == 0:
        # The old tree is complete: it is itself the first node, and the proof leaves it out.
        start = _parse([old_root])
        if start is None:
            return False
        nodes = start + nodes
    if not nodes:
        return False
    old = new = nodes[0]
    for sibling in nodes[1:]:
        if last == 0:
            return False
        if first % 2 or first == last:
            old, new = _hash_nodes(sibling, old), _hash_nodes(sibling, new)
            while not first % 2 and first:
                first, last = first >> 1, last >> 1
        else:
            new = _hash_nodes(new, sibling)
        first, last = first >> 1, last >> 1
    return last == 0 and old.hex() == old_root and new.hex() == root


def _hash_nodes(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def _split(width: int) -> int:
    """Returns the largest power of two smaller than `width` (at least 2)."""
    return 1 << ((width - 1).bit_length() - 1)


def _parse(path: Sequence[str]) -> list[bytes] | None:
    try:
        nodes = [bytes.fromhex(item) for item in path]
    except (ValueError, TypeError):
        return None
    return nodes if all(len(node) == 32 for node in nodes) else None
