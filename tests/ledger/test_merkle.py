"""Merkle trees against the vectors of the RFC 6962 reference implementation and a recursive oracle."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.ledger.merkle import EMPTY_ROOT, MerkleTree, merkle_root, verify_consistency, verify_inclusion

LEAVES = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
A = "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7"
B = "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e"
C = "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"
D = "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"
E = "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0"
F = "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a"
INCLUSION = [(0, 1, ()), (0, 8, (A, B, C)), (5, 8, (D, E, ROOTS[4])), (2, 3, (ROOTS[2],)), (1, 5, (ROOTS[1], B, D))]
CONSISTENCY = [(1, 1, ()), (1, 8, (A, B, C)), (6, 8, (F, E, ROOTS[4])), (2, 5, (B, D))]

leaf_lists = st.lists(st.binary(max_size=4), min_size=1, max_size=40)


def oracle(leaves: list[bytes]) -> bytes:
    """RFC 6962 section 2.1, word for word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + oracle(leaves[:k]) + oracle(leaves[k:])).digest()


@pytest.mark.parametrize("size", range(9))
def test_roots_are_those_of_the_reference_implementation(size: int) -> None:
    assert merkle_root(LEAVES[:size]) == ROOTS[size]
    assert MerkleTree(LEAVES).root(size) == ROOTS[size]


@pytest.mark.parametrize(("index", "size", "path"), INCLUSION)
def test_inclusion_proofs_are_those_of_the_reference_implementation(
    index: int, size: int, path: tuple[str, ...]
) -> None:
    assert MerkleTree(LEAVES).prove_inclusion(index, size) == path
    assert verify_inclusion(LEAVES[index], index, size, path, ROOTS[size])


@pytest.mark.parametrize(("old", "size", "path"), CONSISTENCY)
def test_consistency_proofs_are_those_of_the_reference_implementation(
    old: int, size: int, path: tuple[str, ...]
) -> None:
    assert MerkleTree(LEAVES).prove_consistency(old, size) == path
    assert verify_consistency(old, ROOTS[old], size, ROOTS[size], path)


@given(leaf_lists, st.data())
def test_every_state_has_the_root_of_the_oracle_and_proves_its_leaves(leaves: list[bytes], data: st.DataObject) -> None:
    tree = MerkleTree(leaves)
    size = data.draw(st.integers(1, len(leaves)))
    index = data.draw(st.integers(0, size - 1))
    root = tree.root(size)
    assert root == oracle(leaves[:size]).hex()
    path = tree.prove_inclusion(index, size)
    assert verify_inclusion(leaves[index], index, size, path, root)
    assert not verify_inclusion(leaves[index] + b"x", index, size, path, root)
    assert not verify_inclusion(leaves[index], index, size, (*path, A), root)
    assert not verify_inclusion(leaves[index], size, size, path, root)


@given(leaf_lists, st.data())
def test_an_honest_prefix_is_proved_and_a_rewritten_past_is_not(leaves: list[bytes], data: st.DataObject) -> None:
    old = data.draw(st.integers(1, len(leaves)))
    tree = MerkleTree(leaves)
    path = tree.prove_consistency(old)
    assert verify_consistency(old, tree.root(old), tree.size, tree.root(), path)
    index = data.draw(st.integers(0, old - 1))
    forged = MerkleTree([leaf + b"x" if i == index else leaf for i, leaf in enumerate(leaves)])
    assert not verify_consistency(old, tree.root(old), tree.size, forged.root(), forged.prove_consistency(old))
    assert not verify_consistency(old, tree.root(old), tree.size, tree.root(), (*path, A))
    if path:
        assert not verify_consistency(old, tree.root(old), tree.size, tree.root(), path[:-1])


def test_malformed_proofs_prove_nothing() -> None:
    assert not verify_inclusion(b"", 0, 2, ("zz",), ROOTS[2])
    assert not verify_inclusion(b"", 0, 2, (A[:62],), ROOTS[2])
    assert not verify_consistency(3, ROOTS[3], 2, ROOTS[2], ())
    assert not verify_consistency(1, "not hex", 2, ROOTS[2], (A,))
    assert verify_consistency(0, EMPTY_ROOT, 5, ROOTS[5], ())
    assert not verify_consistency(0, ROOTS[1], 5, ROOTS[5], ())
    for call in (lambda t: t.root(9), lambda t: t.prove_inclusion(8), lambda t: t.prove_consistency(0)):
        with pytest.raises(ValueError, match="outside the tree"):
            call(MerkleTree(LEAVES))
