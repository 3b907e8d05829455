"""Test the tree of RFC 6962 against its definition, and its proofs against every change."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from docferry.receipts.merkle import (
    EMPTY_ROOT,
    Frontier,
    Tree,
    leaf_hash,
    node_hash,
    verify_consistency,
    verify_inclusion,
)
from docferry.receipts.verify_export import root_from_inclusion, roots_from_consistency


def leaves(size: int) -> list[bytes]:
    return [leaf_hash(str(number).encode()) for number in range(size)]


def defined_root(hashes: list[bytes]) -> bytes:
    """MTH of RFC 6962, section 2.1, word for word."""
    if not hashes:
        return sha256(b"").digest()
    if len(hashes) == 1:
        return hashes[0]
    k = 1
    while 2 * k < len(hashes):
        k *= 2
    return node_hash(defined_root(hashes[:k]), defined_root(hashes[k:]))


#: The test vectors of the Certificate Transparency implementations: eight leaves and the roots of each size.
INPUTS = ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
ROOTS = (
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)


def test_known_roots() -> None:
    frontier = Frontier()
    assert frontier.root() == EMPTY_ROOT
    for data, root in zip(INPUTS, ROOTS, strict=True):
        frontier.append(leaf_hash(bytes.fromhex(data)))
        assert frontier.root().hex() == root


@given(st.integers(0, 300))
def test_frontier_and_tree_have_the_root_that_is_defined(size: int) -> None:
    hashes, frontier = leaves(size), Frontier()
    for each in hashes:
        frontier = Frontier(frontier.size, frontier.encode())  # as each commit reads it back
        frontier.append(each)
    assert frontier.root() == defined_root(hashes) == Tree(hashes).root()


@given(st.integers(1, 200), st.data())
def test_inclusion(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    hashes = leaves(size)
    tree = Tree(hashes)
    proof, root = tree.inclusion_proof(index), tree.root()
    assert verify_inclusion(hashes[index], index, size, proof, root)
    assert root_from_inclusion(hashes[index], index, size, proof) == root
    assert not verify_inclusion(leaf_hash(b"other"), index, size, proof, root)
    assert not verify_inclusion(hashes[index], index, size, [*proof, root], root)
    if size > 1:
        other = data.draw(st.integers(0, size - 1).filter(lambda each: each != index))
        assert not verify_inclusion(hashes[index], other, size, proof, root)
        assert not verify_inclusion(hashes[index], index, size, proof[:-1], root)
    for at in range(len(proof)):
        changed = [*proof[:at], leaf_hash(b"other"), *proof[at + 1 :]]
        assert not verify_inclusion(hashes[index], index, size, changed, root)


@given(st.integers(1, 200), st.data())
def test_consistency(size: int, data: st.DataObject) -> None:
    old = data.draw(st.integers(1, size))
    hashes = leaves(size)
    tree = Tree(hashes)
    proof, before, root = tree.consistency_proof(old), tree.root(old), tree.root()
    assert before == defined_root(hashes[:old])
    assert verify_consistency(old, before, size, root, proof)
    assert roots_from_consistency(old, before, size, proof) == (before, root)
    forked = Tree([*hashes[: old - 1], leaf_hash(b"other")]).root()
    assert not verify_consistency(old, forked, size, root, proof)
    assert not verify_consistency(old, before, size, forked if old == size else EMPTY_ROOT, proof)
    for at in range(len(proof)):
        changed = [*proof[:at], leaf_hash(b"other"), *proof[at + 1 :]]
        assert not verify_consistency(old, before, size, root, changed)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="no frontier"):
        Frontier(3, b"x" * 32)
    tree = Tree(leaves(3))
    for call in (lambda: tree.root(4), lambda: tree.inclusion_proof(3), lambda: tree.consistency_proof(0)):
        with pytest.raises(ValueError, match="3 leaves"):
            call()
    assert not verify_inclusion(b"", 3, 3, [], b"")
    assert not verify_consistency(4, b"", 3, b"", [])
