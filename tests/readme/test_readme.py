"""README: two commands, blocks that run as they stand, and a table that follows the configurations."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DESIGN_SNIPPET = """
class MyDistillation(OfflineDistillation):
    def distill_terms(self, step):                     # adds to the task's and the response's terms; response=None leaves KD out
        return {"mine": F.mse_loss(step.student.logits, step.teacher.logits)}

module = MyDistillation(student, teacher=teacher, task=Classification(10))
L.Trainer(max_epochs=3).fit(module, train_loader, val_loader)
"""  # noqa: E501


def bash_blocks() -> list[str]:
    return re.findall(r"```bash\n(.*?)```", README, re.DOTALL)


def test_there_are_two_commands_each_on_a_line_and_each_making_its_environment():
    assert len(bash_blocks()) == 2
    for block in bash_blocks():
        assert block.count("\n") == 1
        assert block.startswith("python3 -m venv .venv && .venv/bin/pip install -q ")
    assert [("pytest" in block) for block in bash_blocks()] == [False, True]
    assert "kdlightning run configs/recipes/quickstart.yaml" in bash_blocks()[0]


@pytest.fixture
def somebodys_files(tmp_path: Path) -> None:
    """What the section on teachers takes for granted: weights of timm and transformers, and foreign key names."""
    from kdlightning import timm_model, transformers_model

    torch.save(timm_model("resnet18", num_classes=10).state_dict(), tmp_path / "resnet18.pth")
    config = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    transformers_model(model_type="bert", config={"vocab_size": 20, **config}).save_pretrained(tmp_path / "my-bert")
    conv, norm = torch.nn.Conv2d, torch.nn.BatchNorm2d
    layers = [conv(1, 32, 3), norm(32), torch.nn.ReLU(), conv(32, 64, 3), norm(64)]
    backbone = torch.nn.Sequential(*layers).state_dict(prefix="module.backbone.")
    torch.save({**backbone, **torch.nn.Linear(64, 10).state_dict(prefix="module.fc.")}, tmp_path / "theirs.pt")


def test_its_blocks_run_from_top_to_bottom(run_page: Any, somebodys_files: None):
    page = run_page("README.md")

    reached = page.namespace["trainer"].callback_metrics
    assert reached["val/teacher_acc"] > 0.9
    assert reached["val/acc"] > 0.7
    assert DESIGN_SNIPPET.strip() in README
    logged = page.namespace["module"].trainer.callback_metrics
    for term in ("task", "kd", "fit_net", "attention_transfer", "rkd"):
        assert f"train/loss_{term}" in logged
    assert Path("runs/mine/seed0/version_0/predictions.jsonl").is_file()
    assert Path("student/model.safetensors").is_file()
    ran = {command.split("kdlightning ")[1].split()[0] for command in page.commands}
    assert ran == {"fit", "test", "taps", "predict", "export", "generate"}


def test_the_table_of_methods_follows_the_headers():
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "make_tables.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_an_old_table_is_found_and_replaced():
    spec = importlib.util.spec_from_file_location("make_tables", ROOT / "docs" / "make_tables.py")
    assert spec is not None
    assert spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    page = f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter"
    header = {"config": "a/b", "name": "B", "access": "white_box", "mode": "self", "knowledge": "response"}
    header["paper"] = "Somebody 2020, A Title, arXiv:2001.00001"
    new = tables.with_tables(page, tables.tables([header]))
    assert new.startswith("before\n")
    assert new.endswith("\nafter")
    assert "| self | response | B | `a/b` |  | [Somebody 2020](https://arxiv.org/abs/2001.00001) |" in new
    assert "old" not in new
    with pytest.raises(ValueError, match="has no"):
        tables.with_tables("no comments", "x")
