"""Every shipped recipe from its first stage to its table, with a few steps on made-up data of the right shape."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import yaml
from PIL import Image

from kdlightning import MNIST1D, Ensemble, load_student
from kdlightning.cli import main
from kdlightning.commands import run as run_module
from kdlightning.commands.shipped import read_header, shipped
from kdlightning.recipe import Plan, parse_recipe

RECIPES = {name.split("/")[1]: path for name, path in shipped().items() if name.startswith("recipes/")}
FEW_STEPS = [
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=1",
    "--trainer.check_val_every_n_epoch=1",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    *(f"--trainer.limit_{part}_batches={count}" for part, count in {"train": 2, "val": 1, "test": 1}.items()),
    "--trainer.num_sanity_val_steps=0",
]
CIFAR = {"batch_size": 64, "epochs": 240, "milestones": [150, 180, 210], "weight_decay": 5e-4, "precision": "32-true"}
# Learning rates of the stages in their order.
PROTOCOLS: dict[str, dict[str, Any]] = {
    "cifar100_resnet32x4_resnet8x4": {**CIFAR, "rates": [0.05, 0.05, 0.05]},
    "cifar100_vgg13_mobilenetv2": {**CIFAR, "rates": [0.05, 0.01, 0.01]},
    "imagenet_resnet34_resnet18": {
        "batch_size": 256,
        "epochs": 100,
        "milestones": [30, 60, 90],
        "weight_decay": 1e-4,
        "precision": "bf16-mixed",
        "rates": [0.1, 0.1],
    },
}


@pytest.fixture
def few_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a recipe's stages in this process: a few steps each, nothing fetched, networks as they are."""
    monkeypatch.chdir(tmp_path)

    def in_this_process(plan: Plan, command: list[str], screen: Any, lock: Any) -> int:
        return main(command[3:])

    monkeypatch.setattr(run_module, "run_stage", in_this_process)

    def run(name: str) -> dict[str, Any]:
        content = yaml.safe_load(RECIPES[name].read_text())
        data = {
            "CIFAR100": made_cifar,
            "ImageFolder": made_folder,
            "BlackBoxData": RECORDS.get(name),
            "CounterfactualData": made_counterfactuals,
            "TextClassification": made_reviews,
        }.get(content["shared"]["data"]["class_path"].rsplit(".", 1)[-1])
        options = [] if data is None else data(tmp_path / "data")
        for stage in content["stages"].values():
            if stage.get("command") == "export":
                continue
            stage["arguments"] = [*stage.get("arguments", []), *FEW_STEPS, *options]
        untrained = without_weights(content)
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(untrained, sort_keys=False))
        assert main(["run", str(path)]) == 0
        runs = tmp_path / "runs" / name
        return {
            stage.name: result_of(runs / stage.name / f"seed{stage.number - 1}" / "version_0")
            for stage in parse_recipe(name, content, name).stages
            if stage.command not in ("generate", "export")
        }

    return run


def result_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())


def without_weights(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_weights(item) for key, item in value.items() if key != "pretrained"}
    return [without_weights(item) for item in value] if isinstance(value, list) else value


def made_cifar(folder: Path) -> list[str]:
    folder.mkdir()
    random = numpy.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 4), ("test", 2)):
        arrays[f"x_{part}"] = random.integers(0, 256, (count, 32, 32, 3), "u1")
        arrays[f"y_{part}"] = random.integers(0, 100, count)
    numpy.savez(folder / "cifar100.npz", **arrays)
    return [f"--data.init_args.path={folder / 'cifar100.npz'}", "--data.init_args.batch_size=2"]


def made_folder(folder: Path) -> list[str]:
    random = numpy.random.default_rng(0)
    for part, count in (("train", 4), ("val", 2)):
        for number in range(1000):
            (folder / part / f"n{number:08}").mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 256, (180, 240, 3), "u1")
            Image.fromarray(pixels).save(folder / part / f"n{300 * number:08}" / f"{number}.JPEG")
    options = {"path": folder, "num_workers": 0, "batch_size": 2}
    return [f"--data.init_args.{name}={value}" for name, value in options.items()]


def made_problems(folder: Path) -> list[str]:
    """Sums with a recorded rationale and answer, of which some are wrong or missing."""
    folder.mkdir()
    records = [
        {
            "question": f"Ann has {n} apples and buys {n % 7}. How many has she?",
            "answer": float(n + n % 7),
            "llm_rationale": f"She has {n} and buys {n % 7}. {n} + {n % 7} = {n + n % 7}.",
            "llm_answer": None if n % 10 == 9 else float(n + n % 7 + (n % 10 == 8)),
        }
        for n in range(40)
    ]
    (folder / "problems.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return [f"--data.init_args.path={folder / 'problems.jsonl'}"]


def made_chains(folder: Path) -> list[str]:
    """Sums in two steps, of which some end in a wrong answer."""
    folder.mkdir()
    steps = "How many does Ann buy? ** She buys {0}.\nHow many has she? ** She has {1} + {0} = {2}.\n#### {2}"
    records = [
        {
            "question": f"Ann has {n} apples and buys {n % 7}. How many has she?",
            "answer": f"#### {n + n % 7}",
            "answer_socratic": steps.format(n % 7, n, n + n % 7 + (n % 10 == 8)),
        }
        for n in range(40)
    ]
    (folder / "chains.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return [f"--data.init_args.path={folder / 'chains.jsonl'}"]


def made_tasks(folder: Path) -> list[str]:
    """Records of two families of tasks on whether numbers are even, as the recipe names them."""
    folder.mkdir()
    tasks = {
        "glue_qqp_answer": "glue_qqp",
        "glue_qqp_meaning": "glue_qqp",
        "qasc_is_correct_1": "qasc",
        "qasc_is_correct_2": "qasc",
    }
    records = [
        {"family": family, "task": task, "prompt": f"{task}: is {n} even?", "completion": "no" if n % 2 else "yes"}
        for task, family in tasks.items()
        for n in range(20)
    ]
    (folder / "tasks.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return [f"--data.init_args.path={folder / 'tasks.jsonl'}"]


def made_counterfactuals(folder: Path) -> list[str]:
    """Perturbed premises, of which some score low or copy."""
    folder.mkdir()
    records = [
        {
            "guid": str(n),
            "premise": f"Person {n} sings a song in town {n % 3}.",
            "hypothesis": f"Person {n} makes music.",
            "label": "entailment",
            "new_label": "neutral",
            "span_prev": "sings a song",
            "gen_out": f"in town {n % 3}" if n % 10 == 9 else f"reads book {n}",
            "score": 0.1 if n % 10 == 8 else 0.8,
        }
        for n in range(80)
    ]
    (folder / "pairs.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return [f"--data.init_args.path={folder / 'pairs.jsonl'}"]


def made_reviews(folder: Path) -> list[str]:
    """Short reviews with a label each, where the recipe's data and its corpus lie."""
    (folder / "sst2").mkdir(parents=True)
    for part, count in (("train", 40), ("dev", 8), ("test", 8)):
        records = [
            {"text": f"film {n} was {'fine' if n % 2 else 'dull'} , part {n % 5}", "label": n % 2} for n in range(count)
        ]
        lines = "".join(f"{json.dumps(record)}\n" for record in records)
        (folder / "sst2" / f"{part}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    return ["--data.init_args.batch_size=4"]


def made_instructions(folder: Path) -> list[str]:
    """Instructions with recorded answers, where the first stages read them; later ones read what those leave."""
    path = folder.parent / "instruct" / "rasbt_instruction_data.jsonl.gz"
    path.parent.mkdir()
    records = [
        {
            "instruction": f"Name {n} towns of region {n % 7}.",
            "input": "Near the sea." if n % 3 else "",
            "output": "Here they are.",
        }
        for n in range(40)
    ]
    path.write_bytes(gzip.compress("".join(f"{json.dumps(record)}\n" for record in records).encode()))
    return []


# Made-up records of each black-box recipe.
RECORDS = {
    "mt_cot": made_problems,
    "distilling_step_by_step": made_problems,
    "fine_tune_cot": made_problems,
    "scott": made_problems,
    "socratic_cot": made_chains,
    "in_context_distillation": made_tasks,
    "instruction_following": made_instructions,
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", RECIPES)
def test_recipe_runs_to_its_table(name: str, few_steps: Any, capsys: pytest.CaptureFixture[str]) -> None:
    results = few_steps(name)
    shown = capsys.readouterr().out
    stages = parse_recipe(name, yaml.safe_load(RECIPES[name].read_text()), name).stages
    for stage in stages:
        if stage.command in ("generate", "export"):
            assert f"{stage.name}: {stage.command}" in shown
            continue
        result = results[stage.name]
        assert result["steps"] == (2 if stage.command == "fit" else 0)
        if stage.role is None:  # a first stage that leaves something for a later one, and no student
            continue
        kinds = ("last", "best") if stage.command == "fit" else ("built",)
        for which in kinds:
            tested = result["metrics"]["test"][which]
            assert tested
            assert all(math.isfinite(value) for value in tested.values())
        assert any(line.startswith(stage.label) for line in shown.splitlines())
    distilled = next(results[stage.name] for stage in stages if stage.base == "distilled")
    on_test = distilled.get("validates_on_test", False)
    assert on_test == (name in PROTOCOLS)
    assert ("chosen on test, not reportable" in shown) == on_test
    assert ("* chosen by validation" in shown) != on_test
    given = [line for line in shown.splitlines() if line.startswith("teacher, as given")]
    black_box = read_header(RECIPES[name])["access"] == "black_box"
    assert len(given) == (not black_box and all(stage.role != "teacher" for stage in stages))
    for line in given:
        assert f"{distilled['metrics']['test']['last']['teacher_acc']:.4f}" in line
        assert "21,797,672" in line, "ResNet-34 has so many parameters"


def test_factor_transfer_learns_under_the_paraphraser_of_its_first_stage(few_steps: Any) -> None:
    few_steps("factor_transfer")
    first, second = (last_of("factor_transfer", stage) for stage in ("paraphraser", "distilled"))
    for layer in (0, 2, 4):
        trained = first[f"adapters.paraphraser.teacher.losses.0.encoder.{layer}.weight"]
        assert torch.equal(second[f"adapters.factor_transfer.teacher.losses.0.paraphraser.{layer}.weight"], trained)


def test_fit_nets_second_stage_begins_where_the_hint_ended(few_steps: Any) -> None:
    few_steps("fit_net_two_stages")
    steps = [
        int(last_of("fit_net_two_stages", stage)["student.stages.0.1.num_batches_tracked"])
        for stage in ("alone", "hint", "distilled")
    ]
    assert steps == [2, 2, 4]


def test_the_ensemble_of_generations_is_that_of_their_checkpoints(few_steps: Any) -> None:
    results = few_steps("born_again")
    runs = {name: Path("runs/born_again", name) for name in ("first", "distilled.2", "distilled.3")}
    paths = [next(run.glob("seed*/version_0/checkpoints/last.ckpt")) for run in runs.values()]
    ensemble = Ensemble([load_student(path) for path in paths]).eval()
    content = yaml.safe_load(RECIPES["born_again"].read_text())
    data = MNIST1D(**content["shared"]["data"]["init_args"])
    data.prepare_data()
    data.setup("test")
    x, y = next(iter(data.test_dataloader())).data  # the test of a few steps sees one batch
    with torch.no_grad():
        accuracy = float((ensemble(x).argmax(1) == y).float().mean())
    assert results["together"]["metrics"]["test"]["built"]["acc"] == pytest.approx(accuracy)
    run = paths[0].parents[1]
    before = result_of(run)
    config = Path("runs/born_again/recipe/seed0/configs/first-1.yaml")
    shared = config.with_name("first-0.yaml")
    assert main(["test", "-c", str(shared), "-c", str(config), "--ckpt_path", "null", "--run", str(run)]) == 0
    assert result_of(run) == before, "what a run has measured is not written over"
    first = yaml.safe_load(Path("runs/born_again/distilled.2/seed1/version_0/config.yaml").read_text())
    second = yaml.safe_load(Path("runs/born_again/distilled.3/seed2/version_0/config.yaml").read_text())
    teachers = [config["model"]["init_args"]["teacher"]["init_args"]["checkpoint"] for config in (first, second)]
    assert teachers == [str(path) for path in paths[:2]]


def last_of(recipe: str, stage: str) -> dict[str, Any]:
    run = Path("runs") / recipe / stage / "seed0" / "version_0"
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_protocol_is_that_of_the_literature(name: str) -> None:
    wanted = PROTOCOLS[name]
    content = yaml.safe_load(RECIPES[name].read_text())
    trainer, data = content["shared"]["trainer"], content["shared"]["data"]["init_args"]
    assert (trainer["accelerator"], trainer["devices"], trainer["precision"]) == ("gpu", 1, wanted["precision"])
    assert trainer["max_epochs"] == wanted["epochs"]
    assert (data["batch_size"], data["val_split"]) == (wanted["batch_size"], 0)
    models = [stage["config"]["model"]["init_args"] for stage in content["stages"].values()]
    assert [model["optimizer"]["init_args"]["lr"] for model in models] == wanted["rates"]
    for model in models:
        options = model["optimizer"]["init_args"]
        assert model["optimizer"]["class_path"] == "torch.optim.SGD"
        assert {**options, "lr": 0} == {"lr": 0, "momentum": 0.9, "weight_decay": wanted["weight_decay"]}
        assert model["lr_scheduler"]["class_path"] == "torch.optim.lr_scheduler.MultiStepLR"
        assert model["lr_scheduler"]["init_args"] == {"milestones": wanted["milestones"], "gamma": 0.1}


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_says_what_it_is(name: str) -> None:
    header = read_header(RECIPES[name])
    assert header["kind"] == "recipe"
    assert header["summary"]
    text = RECIPES[name].read_text()
    recipe = parse_recipe(name, yaml.safe_load(text), name)
    assert {"baseline", "student"} <= {stage.role for stage in recipe.stages}
    assert f"# kdlightning run {name}" in text


def test_every_config_without_a_validation_split_says_so() -> None:
    without = [path for path in shipped().values() if "val_split: 0\n" in path.read_text()]
    assert len(without) >= len(PROTOCOLS)
    for path in without:
        words = " ".join(path.read_text().replace("#", " ").split())
        assert "best checkpoint is chosen on test and not reportable" in words, path
