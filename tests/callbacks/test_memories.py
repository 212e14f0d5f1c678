"""Relations with a memory in a run: bit for bit after a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kdlightning import CRD, Classification, LatestCheckpoint, OfflineDistillation, QueueSoftmax, RelationKD
from kdlightning.data.loader import ResumableLoader


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("loss", [CRD(dimensions=4), QueueSoftmax(size=8)], ids=["crd", "queue_softmax"])
def test_a_resumed_run_ends_where_the_undisturbed_one_ends(
    loss: Any, accumulate: int, net: Any, images: Any, trainer: Any, tmp_path: Path
) -> None:
    data = images().dataset

    def run(epochs: int, checkpoint: Any = None) -> Any:
        torch.manual_seed(0)
        module = OfflineDistillation(net(4), net(6, 1), task=Classification(5))
        module._seed = 11
        callbacks = [RelationKD(loss, {"pre_logits": "pre_logits"}), LatestCheckpoint(dirpath=tmp_path)]
        runner = trainer(max_epochs=epochs, callbacks=callbacks, accumulate_grad_batches=accumulate)
        runner.fit(module, ResumableLoader(data, 8, shuffle=True, seed=3), ckpt_path=checkpoint)
        return module

    whole = run(2)
    first = run(1)
    moved = {name for name, value in whole.state_dict().items() if not torch.equal(value, first.state_dict()[name])}
    assert any("bank" in name or "queue" in name for name in moved)
    torch.manual_seed(99)
    resumed = run(2, str(tmp_path / "last.ckpt"))
    ours, theirs = whole.state_dict(), resumed.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
