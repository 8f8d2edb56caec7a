"""Orthogonalised momentum: the update has nearly equal singular values, and it goes downhill."""

import torch
from torch import nn

from engine.builtin.optimizer import OrthogonalMomentum, orthogonalized


def test_singular_values_of_an_update_are_near_one_in_every_shape() -> None:
    generator = torch.Generator().manual_seed(0)
    for rows, columns in [(16, 16), (8, 40), (40, 8)]:
        matrices = torch.randn(3, rows, columns, generator=generator)
        values = torch.linalg.svdvals(orthogonalized(matrices))
        assert values.shape == (3, 8 if rows != columns else 16)
        assert values.max() < 1.3
        assert values.median() > 0.6


def test_a_zero_gradient_moves_nothing() -> None:
    assert orthogonalized(torch.zeros(1, 4, 4)).abs().max() == 0


def test_steps_bring_matrices_of_different_shapes_to_their_targets() -> None:
    # Given a square and a tall matrix that are to become two others
    torch.manual_seed(0)
    matrices = [nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(12, 4))]
    targets = [torch.randn(8, 8), torch.randn(12, 4)]
    optimizer = OrthogonalMomentum(matrices)

    def loss() -> torch.Tensor:
        return torch.stack([(m - t).square().sum() for m, t in zip(matrices, targets, strict=True)]).sum()

    before = loss().item()
    # When they follow the gradient at a falling rate
    for step in range(200):
        loss().backward()  # type: ignore[no-untyped-call]
        optimizer.step(0.1 * (1 - step / 200))
        for matrix in matrices:
            matrix.grad = None
    # Then they are nearly there
    assert loss().item() < 0.02 * before
