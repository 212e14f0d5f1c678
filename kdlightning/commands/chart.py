"""A chart of several runs, as a picture and for TensorBoard. Imports matplotlib and no torch."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def draw(runs: Mapping[str, Mapping[str, Any]], monitor: str, bars: Mapping[str, float], title: str) -> bytes:
    """Validation curves beside bars of the final scores, as PNG.

    Args:
        runs: results by label.
        monitor: the metric of the curves, for example `val/acc`.
        bars: final score by label.
        title: what the bars show.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    for number, (label, result) in enumerate(runs.items()):
        points: Sequence[Sequence[float]] = result.get("history", {}).get(monitor, [])
        left.plot([p[0] + 1 for p in points], [p[2] for p in points], label=label, color=f"C{number}", marker=".")
    left.set(xlabel="epoch", ylabel=monitor, title="validation")
    left.grid(alpha=0.3)
    left.legend()
    colors = [f"C{list(runs).index(name)}" for name in bars]
    right.bar_label(right.barh(list(bars), list(bars.values()), color=colors), fmt="%.4f", padding=3)
    # Each bar says its number; an axis would go on to accuracies above 1.
    right.set(title=title, xlim=(None, 1.3 * max(bars.values(), default=1)), xticks=[])
    right.invert_yaxis()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def write_chart(folder: Path, picture: bytes, tag: str = "comparison") -> Path:
    """Writes `chart.png`, and the same picture where TensorBoard finds it.

    Returns:
        Path of the picture.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    image = Summary.Image(encoded_image_string=picture, **_size(picture))
    summary = Summary(value=[Summary.Value(tag=tag, image=image)])
    writer = EventFileWriter(str(folder))
    writer.add_event(Event(wall_time=time.time(), step=0, summary=summary))
    writer.close()
    path = folder / "chart.png"
    path.write_bytes(picture)
    return path


def _size(picture: bytes) -> dict[str, int]:
    # The header of a PNG holds both as big-endian words.
    width, height = (int.from_bytes(picture[at : at + 4], "big") for at in (16, 20))
    return {"width": width, "height": height, "colorspace": 4}
