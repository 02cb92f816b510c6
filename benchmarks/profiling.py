"""`python -m benchmarks.profiling`: which operations a token of base + default adapter takes, and of the base alone.

What docs/performance.md says of P13's parts is read from here; shares of CPU time, one thread.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile
from transformers.utils import logging

from benchmarks.one_body import GREEDY, PROMPT, with_default_adapter
from testkit.reference_models import smollm2_instruct

MOST = 8


def main() -> None:
    """Prints the operations that take most."""
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    model = with_default_adapter(str(smollm2_instruct()))
    ids = model.base_tokenizer(PROMPT, return_tensors="pt")
    alone = {key: value for key, value in GREEDY.items() if key != "stop_strings"}
    _show("SmolLM2 alone", lambda: model.base.generate(**ids, **alone))
    _show("SmolLM2 with the default adapter", lambda: model.generate(**ids, **GREEDY))


def _show(title: str, step: Callable[[], object]) -> None:
    step()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        step()
    operations = sorted(found.key_averages(), key=lambda one: -one.self_cpu_time_total)
    total = sum(one.self_cpu_time_total for one in operations)
    print(f"{title}: {total / GREEDY['max_new_tokens'] / 1000:.0f} ms a token")
    for one in operations[:MOST]:
        print(f"  {one.self_cpu_time_total / total:5.1%}  {one.key} ({one.count} times)")


if __name__ == "__main__":
    main()
