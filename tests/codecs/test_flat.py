"""Tensors in a row of numbers, and back."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from elsa_ray.codecs.flat import cut, joined

shapes = st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple), min_size=1, max_size=5)


@given(shapes)
def test_what_is_joined_is_cut_into_the_same_tensors(own: list[tuple[int, ...]]) -> None:
    tensors = [torch.randn(shape, requires_grad=True) for shape in own]
    flat_N = joined(tensors)
    assert torch.equal(flat_N, torch.cat([tensor.detach().reshape(-1) for tensor in tensors]))
    assert not flat_N.requires_grad
    assert all(torch.equal(*pair) for pair in zip(cut(flat_N, tuple(own)), tensors, strict=True))
    part = torch.cat([torch.zeros(3), flat_N])[3:]
    assert all(torch.equal(*pair) for pair in zip(cut(part, tuple(own)), tensors, strict=True)), "of any row"
    before = tensors[0].detach().clone()
    flat_N += 1
    assert torch.equal(tensors[0], before), "a copy"


def test_strided_tensors_are_joined_in_the_order_of_their_indices() -> None:
    matrix = torch.arange(6.0).reshape(2, 3)
    assert joined([matrix.T, matrix[:, 1]]).tolist() == [0, 3, 1, 4, 2, 5, 1, 4]
