"""The loss of labelled tokens under weights, with its derivatives, against torch's own."""

from __future__ import annotations

import torch

from valueadapter.training import newton

ENDS, RAISED = torch.tensor([7, 9]), torch.tensor([7, 11])
POINTS = [torch.tensor(one, dtype=torch.float64) for one in ([0.7, 0.6, -0.3, 0.0], [1.1, 0.2, -0.4, 1.5])]


def problem(is_end: torch.Tensor) -> newton.Problem:
    """Six tokens of three examples in two folds, in two pieces, of three models and 50 columns."""
    generator = torch.Generator().manual_seed(0)
    pieces = []
    for rows in (slice(0, 4), slice(4, 6)):
        labels, examples = torch.tensor([1, 7, 11, 3, 9, 4])[rows], torch.tensor([0, 0, 1, 1, 2, 2])[rows]
        columns = [3 * torch.randn(len(labels), 50, generator=generator) for _ in range(3)]
        pieces.append(newton.tokens_of(columns, labels, is_end[rows], examples))
    return newton.Problem(lambda: pieces, torch.tensor([0, 1, 0]), ENDS, RAISED)


def nats(one: newton.Problem, weights: torch.Tensor, fold: int) -> torch.Tensor:
    """What the tokens of a fold cost, in float64 and without a shortcut."""
    total = torch.zeros((), dtype=torch.float64)
    for some in one.tokens():
        raised = torch.zeros(some.logits.shape[-1], dtype=torch.float64).index_fill(0, RAISED, 1.0)
        sums = torch.einsum("m,tmv->tv", weights[:-1], some.logits.double()) + weights[-1] * raised
        log_p = sums.log_softmax(-1)
        right = log_p.gather(1, some.labels[:, None])[:, 0]
        right = torch.where(some.is_end, log_p[:, ENDS].logsumexp(-1), right)
        total = total - right[one.fold_of[some.examples] == fold].sum()
    return total


def test_nats_and_slopes_are_those_of_the_loss() -> None:
    """Of each fold, at several points that are asked for together, one of them twice."""
    one = problem(torch.tensor([False, True, False, False, True, False]))
    points, everything = [POINTS[0], POINTS[0], POINTS[1]], torch.arange(4)
    for point, loss in zip(points, one.losses(points, [everything] * 3), strict=True):
        for fold in range(2):
            at = point.clone().requires_grad_()
            expected = nats(one, at, fold)
            (slope,) = torch.autograd.grad(expected, at)
            torch.testing.assert_close(loss.nats[fold], expected.detach(), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(loss.gradient[fold], slope, rtol=1e-4, atol=1e-4)


def test_curvature_is_that_of_the_loss_where_one_token_is_right() -> None:
    one = problem(torch.zeros(6, dtype=torch.bool))
    for point, loss in zip(POINTS, one.losses(POINTS, [torch.arange(4)] * 2), strict=True):
        for fold in range(2):
            expected = torch.autograd.functional.hessian(lambda at, fold=fold: nats(one, at, fold), point)
            torch.testing.assert_close(loss.hessian[fold], expected, rtol=1e-4, atol=1e-4)


def test_what_is_not_read_has_no_slope() -> None:
    """The same as a model that counts for nothing and is held there, as far as sums in float32 go."""
    one = problem(torch.zeros(6, dtype=torch.bool))
    point = torch.tensor([0.7, 0.0, -0.3, 0.5], dtype=torch.float64)
    whole, less = one.losses([point, point], [torch.arange(4), torch.tensor([0, 2, 3])])
    kept = [0, 2, 3]
    assert less.gradient[:, 1].abs().max() == less.hessian[:, 1].abs().max() == less.hessian[:, :, 1].abs().max() == 0
    torch.testing.assert_close(less.gradient[:, kept], whole.gradient[:, kept], rtol=1e-5, atol=1e-5)
    here, there = (loss.hessian[:, kept][:, :, kept] for loss in (less, whole))
    torch.testing.assert_close(here, there, rtol=1e-5, atol=1e-5)
