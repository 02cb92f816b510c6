"""The loss of labelled tokens as a function of one weight for each model, with its derivatives; and its least point.

At a token let x_i be the logits of model i. Under the weights w the token costs

    log Σ_v exp(Σ_i w_i x_iv) - log Σ_{v right} exp(Σ_i w_i x_iv)

nats, which is convex in w where one token is right: its gradient is E_p[x] - x_right, its Hessian the covariance of x
under p. Where several are right (the ways to end an answer), the second term is linearised at each step, as in EM, so
that the cost still falls. Knows tensors and no models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

_MOST_STEPS = 20
_ENOUGH = 0.01
"""Nats, of all tokens together, that one more step would gain at most."""
_RULED_OUT = -1e4
"""In the place of -inf, below the right token's logit: its share is 0, and no product is NaN."""
_SMALLEST = 1e-5
"""Change of a weight."""


class Tokens(NamedTuple):
    """Some labelled tokens, and what each model says there."""

    logits: torch.Tensor
    """(tokens, models, vocab), float32: what each model says, less what it says of the right token, see `tokens_of`."""
    labels: torch.Tensor
    """(tokens,) the right token; where an answer ends, any of `ends` is as right."""
    is_end: torch.Tensor
    """(tokens,) bool: whether an answer ends here."""
    examples: torch.Tensor
    """(tokens,) number of the example that a token belongs to."""

    def of(self, models: torch.Tensor) -> Tokens:
        """What some of the models say there, by their numbers; of all nothing is copied."""
        return self if len(models) == self.logits.shape[1] else self._replace(logits=self.logits[:, models])


class Loss(NamedTuple):
    """Sums over the tokens of each fold, float64."""

    nats: torch.Tensor
    """(folds,)"""
    gradient: torch.Tensor
    """(folds, weights)"""
    hessian: torch.Tensor
    """(folds, weights, weights)"""


@dataclass(frozen=True)
class Prior:
    """What weights are drawn towards: they are as if normal around `mean` with these deviations."""

    mean: torch.Tensor
    """(weights,): one for each model, and the last is added to the logits of the tokens in `Problem.raised`."""
    deviation: torch.Tensor
    """(weights,); 0 holds a weight where it is."""

    @property
    def free(self) -> torch.Tensor:
        """(weights,) bool: which weights are fitted."""
        return self.deviation > 0

    @property
    def read(self) -> torch.Tensor:
        """Numbers of the weights that are not held at 0, and of the last one: the others' models need not be read, and
        what is found is what is found without them, to the last bit."""
        read = self.free | (self.mean != 0)
        read[-1] = True
        return read.nonzero()[:, 0]

    def penalty(self, weights: torch.Tensor) -> float:
        """Half the squared distance in deviations, nats."""
        free = self.free
        return 0.5 * float((((weights - self.mean)[free] / self.deviation[free]) ** 2).sum())

    def step(self, weights: torch.Tensor, gradient: torch.Tensor, hessian: torch.Tensor) -> tuple[torch.Tensor, float]:
        """A Newton step on loss and penalty, (weights,), 0 where a weight is held; and the nats it should gain."""
        free = self.free
        pull = self.deviation[free] ** -2
        slope = gradient[free] + pull * (weights - self.mean)[free]
        change = torch.zeros_like(weights)
        change[free] = -torch.linalg.solve(hessian[free][:, free] + torch.diag(pull), slope)
        return change, -0.5 * float(change[free] @ slope)


@dataclass(frozen=True)
class Problem:
    """Tokens to fit weights on, which can be gone through again and again."""

    tokens: Callable[[], Iterable[Tokens]]
    fold_of: torch.Tensor
    """(examples,) the fold that each example belongs to, from 0."""
    ends: torch.Tensor
    """Tokens of which any ends an answer."""
    raised: torch.Tensor
    """Tokens whose logits the last weight is added to."""

    def losses(self, candidates: Sequence[torch.Tensor], read: Sequence[torch.Tensor]) -> list[Loss]:
        """Loss and derivatives at several weights, in one pass.

        Args:
            candidates: (weights,) each.
            read: for each the weights that count, see `Prior.read`; derivatives by the others are 0.
        """
        folds = int(self.fold_of.max()) + 1
        found = [_zeros(folds, len(places)) for places in read]
        for some in self.tokens():
            fold = self.fold_of[some.examples]
            made: dict[tuple[float, ...], Sequence[torch.Tensor]] = {}  # two priors around one mean begin at one point
            for weights, places, loss in zip(candidates, read, found, strict=True):
                point = (*weights.tolist(), *places.tolist())
                if point not in made:
                    made[point] = _derivatives(some.of(places[:-1]), weights[places], self)
                for total, part in zip(loss, made[point], strict=True):
                    total.index_add_(0, fold, part.double())
        return [_among(loss, places, len(candidates[0])) for loss, places in zip(found, read, strict=True)]


def _zeros(folds: int, size: int) -> Loss:
    return Loss(*(torch.zeros(folds, *shape, dtype=torch.float64) for shape in ((), (size,), (size, size))))


def _among(loss: Loss, places: torch.Tensor, size: int) -> Loss:
    """The loss with its derivatives at their places among all weights."""
    whole = _zeros(len(loss.nats), size)
    whole.gradient[:, places] = loss.gradient
    whole.hessian[:, places[:, None], places] = loss.hessian
    return whole._replace(nats=loss.nats)


class Fit(NamedTuple):
    """The least point of loss + penalty for a prior."""

    weights: torch.Tensor
    """(weights,)"""
    loss: Loss
    """There, with its derivatives."""
    nats_at_mean: float
    """What all tokens cost at the prior's mean."""


def fit(problem: Problem, priors: Sequence[Prior]) -> list[Fit]:
    """The least points for several priors, all in the same passes over the tokens.

    Newton's method from each prior's mean; a step that does not lower the sum is halved.
    """
    descents = [_Descent(prior) for prior in priors]
    for _ in range(_MOST_STEPS):
        going = [one for one in descents if not one.done]
        if not going:
            break
        for descent, loss in zip(going, problem.losses(*_asked(going)), strict=True):
            descent.take(loss)
    return [Fit(one.weights, one.loss, one.nats_at_mean) for one in descents]


def _asked(going: Sequence[_Descent]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    return [one.next for one in going], [one.prior.read for one in going]


class _Descent:
    """The way down from a prior's mean."""

    loss: Loss
    nats_at_mean: float

    def __init__(self, prior: Prior) -> None:
        self.prior, self.weights, self.next = prior, prior.mean, prior.mean
        self.lowest, self.done = math.inf, False

    def take(self, loss: Loss) -> None:
        """Takes up what the next point costs, and chooses the one after it."""
        nats = float(loss.nats.sum())
        if self.lowest == math.inf:
            self.nats_at_mean = nats
        total = nats + self.prior.penalty(self.next)
        if total > self.lowest:
            self.next = (self.next + self.weights) / 2
            self.done = float((self.next - self.weights).abs().max()) < _SMALLEST
            return
        self.weights, self.loss, self.lowest = self.next, loss, total
        change, gain = self.prior.step(self.weights, loss.gradient.sum(0), loss.hessian.sum(0))
        self.next, self.done = self.weights + change, gain < _ENOUGH


def left_out(prior: Prior, fitted: Fit) -> list[torch.Tensor]:
    """For each fold the weights as fitted without it: one Newton step from those of all (Beirami et al. 2017)."""
    weights, loss = fitted.weights, fitted.loss
    gradient, hessian = loss.gradient.sum(0), loss.hessian.sum(0)
    return [
        weights + prior.step(weights, gradient - loss.gradient[fold], hessian - loss.hessian[fold])[0]
        for fold in range(len(loss.nats))
    ]


def tokens_of(
    columns: Sequence[torch.Tensor], labels: torch.Tensor, is_end: torch.Tensor, examples: torch.Tensor
) -> Tokens:
    """Tokens from each model's logits, (tokens, vocab); a constant for each token and model changes no cost, and with
    the right token's taken off, sums of squares keep their digits."""
    logits = torch.stack([column.float() for column in columns], dim=1)
    logits -= logits.gather(2, labels[:, None, None].expand(-1, len(columns), 1).long())
    return Tokens(logits.clamp_(min=_RULED_OUT), labels, is_end, examples)


def nats(some: Tokens, weights: torch.Tensor, problem: Problem) -> torch.Tensor:
    """What each token costs under weights, (tokens,).

    Args:
        some: the tokens.
        weights: (weights,).
        problem: what ends an answer, and what the last weight raises.
    """
    logits = _logits(some, weights, problem)
    right = _of_right(logits, some, problem)[0]
    return _exponentials(logits)[2] - right


def _exponentials(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """In the place of logits what their softmax is a multiple of, for a tensor as wide as a vocabulary costs as much as
    what is done to it; the sum of that, (tokens, 1); and the log of the sum of the logits' exponentials, (tokens,)."""
    highest = logits.amax(-1, keepdim=True)
    total = logits.sub_(highest).exp_().sum(-1, keepdim=True)
    return logits, total, (total.log() + highest)[:, 0]


def _logits(some: Tokens, weights: torch.Tensor, problem: Problem) -> torch.Tensor:
    """(tokens, vocab), up to a constant for each token; of models that count for nothing none is read, so that a sum is
    rounded as it is without them."""
    logits = torch.zeros_like(some.logits[:, 0])
    for model, weight in enumerate(weights[:-1].tolist()):
        if weight:
            logits.add_(some.logits[:, model], alpha=weight)
    if weights[-1] != 0:
        logits[:, problem.raised] += float(weights[-1])
    return logits


def _of_right(logits: torch.Tensor, some: Tokens, problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens,): log of the sum of exponentials over the right tokens; and of those that end, (ends, |ends|) of p."""
    own = logits.gather(1, some.labels[:, None].long())[:, 0]
    ends = logits[some.is_end][:, problem.ends]
    return own.masked_scatter(some.is_end, ends.logsumexp(-1)), ends.softmax(-1)


def _derivatives(
    some: Tokens, weights: torch.Tensor, problem: Problem
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Nats (tokens,), gradient (tokens, weights) and Hessian (tokens, weights, weights)."""
    logits = _logits(some, weights, problem)
    right, among_ends = _of_right(logits, some, problem)
    p, total, of_all = _exponentials(logits)
    p /= total
    weighted = p[:, None] * some.logits
    # first and second moments under p of each model's logits and, last, of whether the token is one that is raised
    of_raised, both = p[:, problem.raised].sum(-1), weighted[:, :, problem.raised].sum(-1)
    mean = torch.cat([weighted.sum(-1), of_raised[:, None]], dim=1)
    square = torch.cat([weighted @ some.logits.mT, both[:, :, None]], dim=2)
    square = torch.cat([square, mean.new_zeros(square[:, :1].shape)], dim=1)
    square[:, -1, :-1], square[:, -1, -1] = both, of_raised
    # what the right tokens have in the mean; a single right one has 0 of every model's, as its logits were taken off
    of_right = torch.zeros_like(mean)
    of_right[:, -1] = torch.isin(some.labels, problem.raised).to(mean)
    ending = some.logits[some.is_end.nonzero(), :, problem.ends].mT
    raised = torch.isin(problem.ends, problem.raised).to(mean)
    of_right[some.is_end] = torch.cat([(ending * among_ends[:, None]).sum(-1), (among_ends @ raised)[:, None]], dim=1)
    return of_all - right, mean - of_right, square - mean[:, :, None] * mean[:, None, :]
