"""The demo as the terminal shows it: progress, table, meaning, and where everything lies."""

from __future__ import annotations

import math
import shlex
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from lightning_sim.demo.digits import digits_loader
from lightning_sim.demo.training import STAGES, Demo, run_demo
from lightning_sim.record import SimilarityHistory
from lightning_sim.views.summary import summarize
from lightning_sim.views.table import summary_table

__all__ = ["meaning", "show_demo"]

_PLANS = {
    "reference": "reference on upright digits",
    "fine-tuned": "fine-tuned from it on rotated digits",
    "from scratch": "from scratch on rotated digits",
}


def show_demo(directory: Path, *, epochs: int, seed: int, console: Console) -> Demo:
    """Run the demo in a new directory and explain it on the console."""
    started = time.perf_counter()
    _say(console, "Training three networks, two of them watched by SimilarityMonitor", "bold")
    demo = _run_with_progress(directory, epochs, seed, console)
    accuracies = ", ".join(f"{stage} {demo.accuracies[stage]:.1%}" for stage in STAGES)
    _say(console, f"\nAccuracy on own task: {accuracies}")
    _say(console, "\nSimilarity to reference.ckpt on the held-out upright digits", "bold")
    console.print(Text(summary_table(summarize(demo.histories), width=console.width)), soft_wrap=True)
    _say(
        console,
        "1 is the same; for jsd 0 is, and 0.69 nats is the most. Epochs count from 0; start is before training.\n",
        "dim",
    )
    for sentence in meaning(demo.histories["fine-tuned"], demo.histories["from scratch"]):
        console.print(Text(sentence), width=min(console.width, 100))
    console.print()
    for name, place in _places(demo.directory).items():
        # Not wrapped, so that it can be copied; Text, because square brackets in a path are markup to rich.
        console.print(Text.assemble((f"{name:<13}", "bold"), place), soft_wrap=True)
    _say(console, f"\nTook {time.perf_counter() - started:.0f} seconds.", "dim")
    return demo


def meaning(fine_tuned: SimilarityHistory, scratch: SimilarityHistory) -> tuple[str, str]:
    """One sentence about the fine-tuned network, one about the network from scratch."""
    agreement = float(fine_tuned.trajectory("agreement").values[-1])
    answers = "an unknown share" if math.isnan(agreement) else f"{agreement:.0%}"
    return (
        f"After fine-tuning, CKA with the checkpoint is {_span(fine_tuned)}, and {answers} of the held-out upright "
        "digits still get the checkpoint's answer.",
        f"The network trained from scratch never saw the checkpoint, and its CKA with it is {_span(scratch)}.",
    )


def _span(history: SimilarityHistory) -> str:
    """The last CKA of the lowest and of the highest layer."""
    values = {layer: float(history.trajectory("cka", layer=layer).values[-1]) for layer in history.layers}
    known = {layer: value for layer, value in values.items() if not math.isnan(value)}
    if not known:
        return "not known in any layer"
    low, high = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
    return f"{known[high]:.2f} in {high} and {known[low]:.2f} in {low}"


def _run_with_progress(directory: Path, epochs: int, seed: int, console: Console) -> Demo:
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("batches"),
        TimeElapsedColumn(),
    )
    num_batches = epochs * len(digits_loader("training"))
    with Progress(*columns, console=console) as progress:
        tasks = {stage: progress.add_task(plan, total=num_batches, start=False) for stage, plan in _PLANS.items()}

        def on_batch(stage: str) -> None:
            progress.start_task(tasks[stage])
            progress.advance(tasks[stage])

        return run_demo(directory, epochs=epochs, seed=seed, on_batch=on_batch)


def _places(directory: Path) -> dict[str, str]:
    return {
        "Figure": str(directory / "similarity.png"),
        "Record": f"lightning_sim.read_history({str(directory / 'fine-tuned')!r}).to_pandas()",
        "TensorBoard": f"tensorboard --logdir {shlex.quote(str(directory))}",
        "": "then open http://localhost:6006",
    }


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(text, style=style, highlight=False)
