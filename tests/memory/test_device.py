"""The caching allocator's rules, on sequences whose answer can be worked out by hand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ullage.memory.device import CUDA_WORKSPACE_BYTES, MIB, CachingAllocator, reserved_bytes
from ullage.memory.ledger import Piece


def test_small_requests_share_a_segment_of_two_mebibytes() -> None:
    allocator = CachingAllocator()
    for handle in range(4096):
        allocator.allocate(handle, 100)  # rounded up to 512: 4,096 of them fill 2 MiB
    assert allocator.reserved_bytes == 2 * MIB
    allocator.allocate(5000, 1)
    assert allocator.reserved_bytes == 4 * MIB


def test_middle_requests_come_from_segments_of_twenty_mebibytes() -> None:
    allocator = CachingAllocator()
    allocator.allocate(0, 9 * MIB)
    allocator.allocate(1, 9 * MIB)
    assert allocator.reserved_bytes == 20 * MIB
    allocator.allocate(2, 9 * MIB)
    assert allocator.reserved_bytes == 40 * MIB


def test_large_requests_are_rounded_to_two_mebibytes() -> None:
    allocator = CachingAllocator()
    allocator.allocate(0, 33 * MIB + 1)
    assert allocator.reserved_bytes == 34 * MIB


def test_what_is_freed_serves_again_and_neighbours_merge() -> None:
    allocator = CachingAllocator()
    allocator.allocate(0, 40 * MIB)
    allocator.free(0, 40 * MIB)
    allocator.allocate(1, 12 * MIB)
    allocator.allocate(2, 12 * MIB)
    assert allocator.reserved_bytes == 40 * MIB
    allocator.free(1, 12 * MIB)
    allocator.free(2, 12 * MIB)
    allocator.allocate(3, 40 * MIB)
    assert allocator.reserved_bytes == 40 * MIB


def test_a_rest_too_small_to_split_off_is_given_away() -> None:
    allocator = CachingAllocator()
    allocator.allocate(0, 19 * MIB + MIB // 2)  # a segment of 20 MiB; half a mebibyte is not split off
    allocator.allocate(1, MIB // 4 + MIB)
    assert allocator.reserved_bytes == 40 * MIB


@given(st.lists(st.integers(0, 50 * MIB), max_size=30), st.randoms(use_true_random=False))
def test_everything_freed_can_be_had_again_as_it_was(sizes: list[int], random: object) -> None:
    allocator = CachingAllocator()
    for round_ in range(2):
        for handle, size in enumerate(sizes):
            allocator.allocate(handle, size)
        if round_ == 0:
            reserved = allocator.reserved_bytes
            assert reserved >= sum(sizes)
            order = list(range(len(sizes)))
            random.shuffle(order)  # type: ignore[attr-defined]
            for handle in order:
                allocator.free(handle, sizes[handle])
    assert allocator.reserved_bytes == reserved


def test_a_cpu_reserves_what_is_alive() -> None:
    pieces = [Piece(n, "forward", "", "") for n in (100, 200, 50)]
    events = [0, 1, ~0, 2]  # 100, 300, 200, 250
    assert reserved_bytes(pieces, events, "cpu") == 300
    assert reserved_bytes(pieces, events, "cuda") == 2 * MIB + CUDA_WORKSPACE_BYTES
