"""The fused loss: the same numbers and gradients as the sum of logits written out, in every setting."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any, cast, get_args

import pytest
import torch
from torch.nn.functional import cross_entropy, linear

from valueadapter import ConfigError, UnsupportedModeError
from valueadapter.adapter.causal_lm import fit_width
from valueadapter.adapter.heads import Head, LazyLogits
from valueadapter.artifact.config import PenaltyKind, Regularisation
from valueadapter.forward.sum import add_value_logits
from valueadapter.training import liger_loss
from valueadapter.training.chunked_loss import summed_loss
from valueadapter.training.penalty import norm_penalty

TOKENS, WIDTH, SCALE = 11, 23, 0.7
PENALTIES = [
    Regularisation(kind, 0.3, centred=centred) for kind, centred in product(get_args(PenaltyKind), (True, False))
]
NONE = Regularisation("none", 0.0)


class Case:
    """Two heads of 5 and 6 hidden units over `TOKENS` tokens."""

    def __init__(
        self,
        base_width: int = WIDTH,
        value_width: int = WIDTH,
        *,
        bias: bool = True,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        generator = torch.Generator().manual_seed(base_width + value_width)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        self.base = LazyLogits(normal(TOKENS, 5), Head(normal(base_width, 5), normal(base_width) if bias else None))
        self.value = LazyLogits(normal(TOKENS, 6), Head(normal(value_width, 6), normal(value_width) if bias else None))
        self.labels = torch.randint(0, base_width, (TOKENS,), generator=generator)
        for tensor in self.trained():
            tensor.requires_grad_()

    def trained(self) -> Iterator[torch.Tensor]:
        yield self.value.hidden
        yield self.value.head.weight
        if self.value.head.bias is not None:
            yield self.value.head.bias

    def fused(self, penalty: Regularisation = NONE, **options: Any) -> Any:
        return summed_loss(self.base, self.value, labels=self.labels, scale=SCALE, penalty=penalty, **options)

    def written_out(self, penalty: Regularisation = NONE, label_smoothing: float = 0.0) -> torch.Tensor:
        """As the model sums the logits and the trainer takes the loss."""
        z = linear(self.base.hidden, self.base.head.weight, self.base.head.bias)
        v = linear(self.value.hidden, self.value.head.weight, self.value.head.bias)
        total = cross_entropy(
            add_value_logits(z, v, SCALE), self.labels, reduction="sum", label_smoothing=label_smoothing
        )
        mask = torch.ones(TOKENS, dtype=torch.bool)
        added = norm_penalty(SCALE * fit_width(v, z.shape[-1]), mask, penalty.kind, centred=penalty.centred)
        return total + penalty.coefficient * added

    def compare(self, made: torch.Tensor, expected: torch.Tensor, **tolerance: Any) -> None:
        """Values, and the gradients of all that is trained."""
        torch.testing.assert_close(made, expected.to(made.dtype), **tolerance)
        ours, theirs = (torch.autograd.grad(loss, list(self.trained())) for loss in (made, expected))
        for a, b in zip(ours, theirs, strict=True):
            assert a.dtype == b.dtype
            torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize("penalty", PENALTIES, ids=lambda p: f"{p.kind} {'centred' if p.centred else 'raw'}")
@pytest.mark.parametrize("value_width", [WIDTH, WIDTH - 4, WIDTH + 4], ids=["equal", "narrower", "wider"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_equals_the_sum_written_out(penalty: Regularisation, value_width: int, smoothing: float) -> None:
    """Every penalty, smoothing, padding of either vocabulary, with bias and without, whatever the chunk."""
    for bias, chunk in product((True, False), (1, 4, TOKENS, 100)):
        case = Case(value_width=value_width, bias=bias)
        made = case.fused(penalty, label_smoothing=smoothing, chunk=chunk).total
        case.compare(made, case.written_out(penalty, smoothing), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("value_width", [WIDTH, WIDTH - 4, WIDTH + 4], ids=["equal", "narrower", "wider"])
def test_a_constant_added_to_all_value_logits_changes_nothing(value_width: int) -> None:
    """Logits mean the same when one number is added to all of them; also for ids that only the base has."""
    base, value = torch.randn(3, WIDTH), torch.randn(3, value_width)
    sums = [add_value_logits(base.clone(), value + constant, SCALE).softmax(-1) for constant in (0.0, -40.0, 40.0)]
    for other in sums[1:]:
        torch.testing.assert_close(other, sums[0], rtol=1e-4, atol=1e-6)
    case = Case(value_width=value_width, bias=True)
    bias = cast(torch.Tensor, case.value.head.bias)
    moved = LazyLogits(case.value.hidden, Head(case.value.head.weight, bias - 40))
    common = {"labels": case.labels, "scale": SCALE, "penalty": NONE}
    with torch.no_grad():
        fused = [summed_loss(case.base, one, **common).total for one in (case.value, moved)]
    torch.testing.assert_close(fused[1], fused[0])


@pytest.mark.parametrize("penalty", PENALTIES, ids=lambda p: f"{p.kind} {'centred' if p.centred else 'raw'}")
def test_float32_equals_the_sum_written_out(penalty: Regularisation) -> None:
    """To rounding, in the dtype that training runs in."""
    case = Case(dtype=torch.float32)
    case.compare(case.fused(penalty, chunk=4).total, case.written_out(penalty), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("penalty", PENALTIES, ids=lambda p: f"{p.kind} {'centred' if p.centred else 'raw'}")
def test_without_gradients_the_sums_are_the_same_and_none_are_made(penalty: Regularisation) -> None:
    """Evaluation sees what training sees; total = cross-entropy + coefficient x penalty."""
    case = Case(value_width=WIDTH - 4)
    trained = case.fused(penalty, label_smoothing=0.1, chunk=4)
    with torch.no_grad():
        evaluated = case.fused(penalty, label_smoothing=0.1, chunk=4)
    assert not evaluated.total.requires_grad
    torch.testing.assert_close(tuple(evaluated), tuple(sum_.detach() for sum_ in trained), rtol=1e-12, atol=1e-12)
    total = trained.cross_entropy + penalty.coefficient * trained.penalty
    torch.testing.assert_close(trained.total.detach(), total)
    assert not trained.cross_entropy.requires_grad
    assert not trained.penalty.requires_grad


def test_gradients_are_the_derivatives() -> None:
    """Against finite differences."""
    case = Case(base_width=7, value_width=6)

    def total(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        value = LazyLogits(hidden, Head(weight, bias))
        penalty = Regularisation("l2", 0.3)
        return summed_loss(case.base, value, labels=case.labels, scale=SCALE, penalty=penalty, chunk=4).total

    assert torch.autograd.gradcheck(total, tuple(case.trained()))


@pytest.mark.parametrize("which", ["hidden", "weight", "bias"])
def test_only_what_is_trained_gets_a_gradient(which: str) -> None:
    """A frozen head, or a frozen body under a trained head; the base never."""
    case = Case()
    tensors = dict(zip(("hidden", "weight", "bias"), case.trained(), strict=True))
    for name, tensor in tensors.items():
        tensor.requires_grad_(name == which)
    case.base.head.weight.requires_grad_()
    case.fused(chunk=4).total.backward()
    assert {name for name, tensor in tensors.items() if tensor.grad is not None} == {which}
    assert case.base.head.weight.grad is None
    (expected,) = torch.autograd.grad(case.written_out(), [tensors[which]])
    torch.testing.assert_close(tensors[which].grad, expected)


def test_accumulated_and_repeated_backward() -> None:
    """Parts of a batch, each divided by the whole's count, add up; a kept graph gives the same gradient twice."""
    case = Case()
    whole = torch.autograd.grad(case.written_out() / TOKENS, list(case.trained()))
    for rows in (slice(0, 5), slice(5, None)):
        base = LazyLogits(case.base.hidden[rows], case.base.head)
        value = LazyLogits(case.value.hidden[rows], case.value.head)
        loss = summed_loss(base, value, labels=case.labels[rows], scale=SCALE, penalty=NONE, chunk=2).total / TOKENS
        for _ in range(2):
            torch.autograd.backward(loss, retain_graph=True)
    for tensor, expected in zip(case.trained(), whole, strict=True):
        torch.testing.assert_close(tensor.grad, 2 * expected)


def test_twice_differentiating_is_refused() -> None:
    """The gradient is made in forward, so it has no graph of its own; to say nothing would be a wrong number."""
    case = Case()
    with pytest.raises(UnsupportedModeError, match="no second derivatives"):
        torch.autograd.grad(case.fused().total, [case.value.hidden], create_graph=True)


@pytest.mark.parametrize("autocast", [False, True], ids=["bfloat16", "autocast"])
def test_bfloat16_is_close_and_sums_in_float32(autocast: bool) -> None:
    """Logits in bfloat16, whether the weights are or autocast makes them; loss and head's gradient summed wider."""
    exact = Case()
    case = Case(dtype=torch.float32 if autocast else torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        made = case.fused(Regularisation("l1", 0.3), chunk=1).total
    expected = exact.written_out(Regularisation("l1", 0.3))
    assert made.dtype == torch.float32
    torch.testing.assert_close(made.double(), expected, rtol=1e-2, atol=0.0)
    ours, theirs = (torch.autograd.grad(loss, list(c.trained())) for loss, c in ((made, case), (expected, exact)))
    for a, b, tensor in zip(ours, theirs, case.trained(), strict=True):
        assert a.dtype == tensor.dtype
        torch.testing.assert_close(a.double(), b, rtol=0.05, atol=0.02)


def test_hidden_states_of_a_cache_are_read_in_half_precision() -> None:
    """They are widened to the base head's dtype before the product."""
    case = Case(dtype=torch.float32)
    half = LazyLogits(case.base.hidden.half(), case.base.head)
    made = summed_loss(half, case.value, labels=case.labels, scale=SCALE, penalty=NONE).total
    case.base = LazyLogits(half.hidden.float(), case.base.head)
    case.compare(made, case.written_out(), rtol=2e-5, atol=2e-6)


def test_no_tokens_are_no_loss() -> None:
    """A process whose share of a batch holds no response gets zeros and zero gradients."""
    case = Case()
    base, value = (LazyLogits(side.hidden[:0], side.head) for side in (case.base, case.value))
    total = summed_loss(base, value, labels=case.labels[:0], scale=SCALE, penalty=PENALTIES[2]).total
    torch.autograd.backward(total)
    assert float(total.detach()) == 0
    assert case.value.head.weight.grad is not None
    assert not case.value.head.weight.grad.any()


def test_misuse_is_refused() -> None:
    """Tokens that do not pair up, an empty chunk."""
    case = Case()
    with pytest.raises(ConfigError, match="got 11, 11 and 10"):
        summed_loss(case.base, case.value, labels=case.labels[:-1], scale=1.0, penalty=NONE)
    with pytest.raises(ConfigError, match="at least 1 token"):
        case.fused(chunk=0)


@pytest.mark.parametrize("bias", [True, False])
def test_two_heads_are_one(bias: bool) -> None:
    """[h_b, s h_v] over [W_b, W_v] is base + s value; gradients reach the value's half."""
    case = Case(bias=bias)
    both = liger_loss.as_one(case.base, case.value, SCALE)
    loss = cross_entropy(both.rows(slice(None)), case.labels, reduction="sum")
    case.compare(loss, case.written_out(), rtol=1e-12, atol=1e-12)
    assert not liger_loss.usable(case.base, case.value), "there is no kernel for the CPU"


def _on_gpu(side: LazyLogits) -> LazyLogits:
    bias = None if side.head.bias is None else side.head.bias.cuda()
    return LazyLogits(side.hidden.cuda(), Head(side.head.weight.cuda(), bias))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("bias", [True, False])
def test_the_kernel_equals_the_sum_written_out(bias: bool, smoothing: float) -> None:
    """On CUDA, where Liger is installed."""
    pytest.importorskip("liger_kernel")
    case = Case(bias=bias, dtype=torch.float32)
    base, value = _on_gpu(case.base), _on_gpu(case.value)
    assert liger_loss.usable(base, value)
    labels = case.labels.cuda()
    made = summed_loss(base, value, labels=labels, scale=SCALE, penalty=NONE, label_smoothing=smoothing).total
    case.compare(made.cpu(), case.written_out(label_smoothing=smoothing), rtol=1e-3, atol=1e-3)
