"""Two processes on CPU train a student on recorded text; each rank reports. Started by test_black_box_module.py."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import lightning as L
import torch

from kdlightning.blackbox.cot.fine_tune_cot import FineTuneCoT
from kdlightning.blackbox.data import BlackBoxData
from kdlightning.models import transformers_model
from kdlightning.modules.black_box import BlackBoxDistillation

if __name__ == "__main__":
    folder, records = Path(sys.argv[1]), sys.argv[2]
    warnings.filterwarnings("error", message=".*sync_dist.*")
    torch.set_num_threads(1)
    L.seed_everything(0)
    data = BlackBoxData(
        FineTuneCoT(inference_tokens=6),
        records,
        recorded_fields={"rationale": "why", "answer": "said"},
        store=str(folder / "text.sqlite"),
        test_split=5,
        val_split=5,
        vocab_size=300,
        batch_size=4,
        eval_batch_size=2,
        progress=False,
    )
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = {"vocab_size": 300, "num_key_value_heads": 2, "max_position_embeddings": 256, **sizes}
    student = transformers_model(architecture="AutoModelForCausalLM", model_type="llama", config=config)
    module = BlackBoxDistillation(student)
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(folder),
    )
    trainer.fit(module, datamodule=data)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    metrics |= trainer.test(module, datamodule=data, verbose=False)[0]
    weights = [float(parameter.detach().double().sum()) for parameter in student.parameters()]
    (folder / f"rank{trainer.global_rank}.json").write_text(json.dumps({"metrics": metrics, "weights": weights}))
