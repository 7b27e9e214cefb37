"""Who copied whom: only where the order of commits is certain."""

from crusades.copies import Known, find_copies, find_original

A = Known("a", "5A", 10)
B = Known("b", "5B", 12)


def test_the_later_commit_is_the_copy():
    assert find_original(B, [A]) == A
    assert find_original(A, [B]) is None
    assert find_copies(A, [B]) == [B]


def test_the_same_block_accuses_nobody():
    twin = Known("c", "5C", 10)
    assert find_original(A, [twin]) is None
    assert find_original(twin, [A]) is None


def test_a_commit_block_that_is_only_a_bound_protects_its_owner():
    bound = Known("b", "5B", 12, exact=False)
    assert find_original(bound, [A]) is None
    assert find_copies(A, [bound]) == []


def test_a_bound_that_lies_before_is_certain():
    assert find_original(B, [Known("a", "5A", 10, exact=False)]).id == "a"


def test_of_several_the_earliest_is_the_original_and_nobody_copies_himself():
    assert find_original(Known("c", "5C", 20), [B, A, Known("c", "5C", 5)]) == A
