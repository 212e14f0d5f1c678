"""Two processes under Lightning share the samples, and Lightning leaves the samplers alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import json, sys
import lightning as L, torch
from kdlightning.data.loader import resumable

torch.set_num_threads(1)

class Reader(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen = {"train": [], "val": []}
    def training_step(self, batch, batch_idx):
        self.seen["train"].append([self.current_epoch, *batch.index.tolist()])
        return self.layer(batch.data[:, None].float()).mean()
    def validation_step(self, batch, batch_idx):
        self.seen["val"] += batch.index.tolist()
    def on_fit_end(self):  # in the forked processes, which do not come back from fit
        json.dump(self.seen, open(f"{sys.argv[1]}/{self.global_rank}.json", "w"))
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)

module = Reader()
trainer = L.Trainer(accelerator="cpu", devices=2, strategy="ddp_fork", max_epochs=2, logger=False,
                    num_sanity_val_steps=0, enable_checkpointing=False, enable_progress_bar=False,
                    enable_model_summary=False)
trainer.fit(module, resumable(range(11), batch_size=4, seed=1), resumable(range(7), batch_size=2, shuffle=False))
"""


def test_ranks_share_the_samples(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PL_", "KDLIGHTNING"))}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))

    assert first["val"] == [0, 2, 4, 6] * 2
    assert second["val"] == [1, 3, 5] * 2
    for epoch in range(2):
        parts = [[i for e, *batch in seen["train"] if e == epoch for i in batch] for seen in (first, second)]
        assert [len(part) for part in parts] == [6, 6]
        assert sorted({*parts[0], *parts[1]}) == list(range(11))
        assert len(set(parts[0]) & set(parts[1])) == 1, "one sample pads the twelfth place"
    orders = [[batch for e, *batch in first["train"] if e == epoch] for epoch in range(2)]
    assert orders[0] != orders[1]
