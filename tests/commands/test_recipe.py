"""The recipe engine with stages that only leave files: skipping, continuing, failing, referring."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdlightning.commands.stage import Screen
from kdlightning.errors import ConfigurationError
from kdlightning.recipe import Engine, Plan, parse_recipe

TWO = {
    "stages": {
        "teacher": {"role": "teacher", "config": {"model": "T"}, "then": ["test", "export"]},
        "student": {"role": "student", "config": {"model": {"checkpoint": "${stages.teacher.best}"}}},
    }
}


class Fake:
    """Stands for processes: remembers what was started and leaves what a fit leaves."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        self.started: list[list[str]] = []
        self.codes: dict[str, int] = {}
        self.weights = "weights"
        self.dies_while = ""
        self.report = "text"

    def __call__(self, plan: Plan, command: list[str]) -> int:
        self.started.append(command[3:])
        name = plan.stage.name
        if plan.stage.command == "generate" and self.codes.get(name, 0) == 0:
            if self.dies_while == name:
                raise KeyboardInterrupt
            report, result = Path("store.Method/report.jsonl"), Path(command[command.index("--result") + 1])
            for path, content in ((report, self.report), (result, json.dumps({"report": str(report), "products": []}))):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(content)
        if plan.run is not None and self.codes.get(name, 0) == 0:
            folder = plan.run / "checkpoints"
            folder.mkdir(parents=True, exist_ok=True)
            for which in ("last", "best"):
                (folder / f"{which}.ckpt").write_text(f"{self.weights} of {name} {which}")
            if self.dies_while == name:
                raise KeyboardInterrupt
            (plan.run / "result.json").write_text("{}")
            if "export" in plan.stage.then:
                (plan.run / "export").mkdir(exist_ok=True)
                (plan.run / "export" / "model.safetensors").write_text(self.weights)
        return self.codes.get(name, 0)

    def names(self) -> list[str]:
        """Names of the runs that were started since the last call."""
        names = [command[command.index("--name") + 1].split("/")[1] for command in self.started if "--name" in command]
        self.started.clear()
        return names


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    return Fake(tmp_path, monkeypatch)


@pytest.fixture
def engine(fake: Fake) -> Callable[..., Engine]:
    def make(content: dict[str, Any] = TWO, *, seed: int = 0, fresh: bool = False, **options: Any) -> Engine:
        recipe = parse_recipe("r", content, "r.yaml", **options)
        return Engine(recipe, Path("runs"), seed, Path, fake, fresh=fresh)

    return make


def test_stages_run_in_order_with_their_products(engine, fake: Fake) -> None:
    assert engine().run() == 0
    first, second = fake.started
    run = "runs/r/teacher/seed0/version_0"
    assert first[first.index("--run") + 1] == run
    assert first[first.index("--then") + 1] == "test,export"
    assert "--seed_everything=0" in first
    written = Path(second[second.index("--config") + 1])
    assert yaml.safe_load(written.read_text()) == {"model": {"checkpoint": f"{run}/checkpoints/best.ckpt"}}


def test_finished_stages_are_skipped(engine, fake: Fake) -> None:
    engine().run()
    fake.started.clear()
    shown: list[str] = []
    assert engine().run(lambda plan, number, count: shown.append(f"{number}/{count} {plan.action}")) == 0
    assert fake.started == []
    assert shown == ["1/2 skip", "2/2 skip"]


def test_a_changed_setting_runs_the_stage_and_what_reads_it(engine, fake: Fake) -> None:
    engine().run()
    fake.names()
    changed = {
        "stages": {**TWO["stages"], "student": {**TWO["stages"]["student"], "arguments": ["--trainer.max_epochs=9"]}}
    }
    engine(changed).run()
    assert fake.names() == ["student"]
    fake.weights = "other weights"
    changed["stages"]["teacher"] = {**TWO["stages"]["teacher"], "arguments": ["--trainer.max_epochs=9"]}
    engine(changed).run()
    assert fake.names() == ["teacher", "student"]


def test_equal_products_of_a_changed_stage_change_nothing_downstream(engine, fake: Fake) -> None:
    engine().run()
    fake.names()
    changed = {"stages": {**TWO["stages"], "teacher": {**TWO["stages"]["teacher"], "arguments": ["--verbose"]}}}
    engine(changed).run()
    assert fake.names() == ["teacher"]


def test_a_configuration_by_name_is_read_for_changes(engine, fake: Fake) -> None:
    Path("a.yaml").write_text("model: A")
    recipe = {"stages": {"fit": {"config": "a.yaml"}}}
    engine(recipe).run()
    engine(recipe).run()
    assert fake.names() == ["fit"]
    Path("a.yaml").write_text("model: B")
    engine(recipe).run()
    assert fake.names() == ["fit"]
    assert Path("runs/r/fit/seed0/version_1").is_dir()


@pytest.mark.parametrize("product", ["checkpoints/best.ckpt", "export/model.safetensors", "result.json"])
def test_a_lost_product_is_made_again(engine, fake: Fake, product: str) -> None:
    engine().run()
    fake.names()
    (Path("runs/r/teacher/seed0/version_0") / product).unlink()
    engine().run()
    assert fake.names() == ["teacher"]


def test_a_changed_product_is_made_again_and_a_touched_one_is_not(engine, fake: Fake) -> None:
    engine().run()
    fake.names()
    best = Path("runs/r/teacher/seed0/version_0/checkpoints/best.ckpt")
    best.touch()
    engine().run()
    assert fake.names() == []
    best.write_text("somebody else's")
    engine().run()
    assert fake.names() == ["teacher"]


def test_a_killed_stage_goes_on_from_its_last_checkpoint(engine, fake: Fake) -> None:
    fake.dies_while = "student"
    with pytest.raises(KeyboardInterrupt):
        engine().run()
    fake.dies_while = ""
    fake.started.clear()
    engine().run()
    (arguments,) = fake.started
    run = "runs/r/student/seed0/version_0"
    assert arguments[arguments.index("--run") + 1] == run
    assert arguments[arguments.index("--ckpt_path") + 1] == f"{run}/checkpoints/last.ckpt"


def test_a_failing_stage_stops_the_recipe_and_is_tried_again(engine, fake: Fake) -> None:
    fake.codes["teacher"] = 2
    assert engine().run() == 2
    assert fake.names() == ["teacher"]
    fake.codes.clear()
    assert engine().run() == 0
    assert fake.names() == ["teacher", "student"]
    assert not Path("runs/r/teacher/seed0/version_1").exists()


def test_fresh_runs_everything_in_new_folders(engine, fake: Fake) -> None:
    engine().run()
    fake.names()
    engine(fresh=True).run()
    assert fake.names() == ["teacher", "student"]
    assert Path("runs/r/teacher/seed0/version_1/result.json").is_file()


def test_seeds_do_not_share_runs(engine, fake: Fake) -> None:
    engine().run()
    fake.names()
    engine(seed=3).run()
    assert "--seed_everything=3" in fake.started[0]
    assert Path("runs/r/teacher/seed3/version_0").is_dir()


def test_repetitions_count_seeds_up_and_teach_the_next(engine, fake: Fake) -> None:
    born = {"repeat": 2, "config": {"model": "${previous.last}"}}
    after = {"config": {"a": "${stages.born.best}", "b": "${stages.born.1.run}", "c": "${seed}"}}
    engine({"stages": {"teacher": {"config": {"model": "T"}}, "born": born, "after": after}}).run()
    configs = [yaml.safe_load(Path(args[args.index("--config") + 1]).read_text()) for args in fake.started]
    assert configs[1] == {"model": "runs/r/teacher/seed0/version_0/checkpoints/last.ckpt"}
    assert configs[2] == {"model": "runs/r/born.1/seed0/version_0/checkpoints/last.ckpt"}
    assert configs[3] == {
        "a": "runs/r/born.2/seed1/version_0/checkpoints/best.ckpt",
        "b": "runs/r/born.1/seed0/version_0",
        "c": "0",
    }
    assert "--seed_everything=1" in fake.started[2]


def test_repetitions_may_begin_with_a_later_number(engine, fake: Fake) -> None:
    born = {"repeat": 2, "first": 2, "label": "generation", "config": {"model": "${previous.last}"}}
    recipe = {"stages": {"teacher": {"config": {"model": "T"}}, "born": born}}
    engine(recipe).run()
    assert [args[args.index("--seed_everything=1") - 1] for args in fake.started[1:2]] == ["r/born.2"]
    assert "--seed_everything=2" in fake.started[2]
    assert fake.names() == ["teacher", "born.2", "born.3"]
    assert [stage.label for stage in engine(recipe).recipe.stages] == ["teacher", "generation 2", "generation 3"]
    alone = {"stages": {"born": {"repeat": 1, "first": 4, "config": {"model": "M"}}}}
    assert [stage.name for stage in engine(alone).recipe.stages] == ["born.4"]


def test_a_changed_repetition_runs_again_with_those_that_follow(engine, fake: Fake) -> None:
    born = {"repeat": 3, "config": {"model": "${previous.last}"}}
    recipe = {"stages": {"teacher": {"config": {"model": "T"}}, "born": born}}
    engine(recipe).run()
    fake.names()
    Path("runs/r/born.2/seed1/version_0/checkpoints/last.ckpt").unlink()
    engine(recipe).run()
    assert fake.names() == ["born.2"], "its product is what it was"
    Path("runs/r/born.2/seed1/version_1/checkpoints/last.ckpt").unlink()
    fake.weights = "other weights"
    engine(recipe).run()
    assert fake.names() == ["born.2", "born.3"]


def test_a_test_stage_with_a_role_leaves_scores_of_its_own(engine, fake: Fake) -> None:
    together = {"command": "test", "role": "student", "config": {"members": ["${stages.teacher.last}"]}}
    recipe = {"stages": {"teacher": {"config": {"model": "T"}}, "together": together, "plain": {"command": "test"}}}
    recipe["stages"]["plain"]["config"] = {"model": "T"}
    engine(recipe).run()
    _, measured, plain = fake.started
    run = "runs/r/together/seed0/version_0"
    assert measured[0] == plain[0] == "test"
    assert measured[measured.index("--run") + 1] == run
    assert measured[measured.index("--ckpt_path") + 1] == "null"
    assert "--run" not in plain
    assert "--ckpt_path" not in plain
    fake.names()
    engine(recipe).run()
    assert fake.names() == []
    Path(run, "result.json").unlink()
    engine(recipe).run()
    assert fake.names() == ["together"]


def test_shared_options_come_first(engine, fake: Fake) -> None:
    engine({"shared": {"data": "D"}, "stages": {"fit": {"config": {"model": "M"}}}}).run()
    (arguments,) = fake.started
    files = [arguments[at + 1] for at, word in enumerate(arguments) if word == "--config"]
    assert [yaml.safe_load(Path(file).read_text()) for file in files] == [{"data": "D"}, {"model": "M"}]


def test_an_export_stage_reads_a_product(engine, fake: Fake) -> None:
    stages = {
        **TWO["stages"],
        "ship": {"command": "export", "arguments": ["${stages.student.best}", "--format", "timm"]},
    }
    engine({"stages": stages}).run()
    assert fake.started[2] == ["export", "runs/r/student/seed0/version_0/checkpoints/best.ckpt", "--format", "timm"]


TEXT = {
    "shared": {"data": {"init_args": {"store": "store.sqlite"}}},
    "stages": {
        "alone": {"role": "baseline", "config": {"model": "S"}},
        "text": {"command": "generate"},
        "student": {"role": "student", "config": {"model": "S"}},
    },
}


def test_a_generate_stage_takes_the_shared_data_and_leaves_a_report(engine, fake: Fake) -> None:
    recipe = engine(TEXT)
    recipe.run()
    command, *arguments = fake.started[1]
    assert command == "generate"
    assert yaml.safe_load(Path(arguments[1]).read_text()) == TEXT["shared"]
    assert arguments[0] == "--config"
    assert arguments[2:] == ["--seed_everything=0", "--result", "runs/r/recipe/seed0/generated/text.json"]
    assert list(recipe.state["text"]["products"]) == ["store.Method/report.jsonl"]
    fake.started.clear()
    engine(TEXT).run()
    assert fake.started == []


def test_a_changed_or_lost_report_is_made_again_and_read_anew_by_the_stages_after_it(engine, fake: Fake) -> None:
    engine(TEXT).run()
    fake.started.clear()
    Path("store.Method/report.jsonl").unlink()
    engine(TEXT).run()
    assert [started[0] for started in fake.started] == ["generate"], "it came out the same"
    fake.started.clear()
    fake.report = "more text"
    Path("store.Method/report.jsonl").write_text("changed")
    engine(TEXT).run()
    assert [started[0] for started in fake.started] == ["generate", "fit"]
    assert fake.names() == ["student"]


def test_a_killed_generate_stage_goes_on(engine, fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    fake.dies_while = "text"
    with pytest.raises(KeyboardInterrupt):
        engine(TEXT).run()
    fake.dies_while = ""
    recipe = engine(TEXT)
    plan = recipe.plan(recipe.recipe.stages[1])
    assert (plan.action, plan.run) == ("resume", None)
    Screen().show(plan, 2, 3)
    assert capsys.readouterr().out == "[2/3] text: goes on with what its store lacks\n"
    fake.started.clear()
    recipe.run()
    assert [started[0] for started in fake.started] == ["generate", "fit"]


def test_without_baseline(engine, fake: Fake) -> None:
    stages = {**TWO["stages"], "alone": {"role": "baseline", "config": {"model": "S"}}}
    engine({"stages": stages}, baseline=False).run()
    assert fake.names() == ["teacher", "student"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"model": 1}, "has no stages: it is a configuration"),
        ({"stages": []}, "must map names to stages"),
        ({"stages": {"a": {}}, "stagess": 1}, "a recipe has no 'stagess'; did you mean stages"),
        ({"stages": {"a": {"comand": "fit"}}}, "stage 'a' has no 'comand'; did you mean command"),
        ({"stages": {"a": {"command": "fitt"}}}, "command 'fitt'; did you mean fit"),
        ({"stages": {"a": {"then": ["tset"]}}}, "then cannot be 'tset'; did you mean test"),
        ({"stages": {"a": {"command": "test", "then": ["export"]}}}, "after test, then cannot be 'export'"),
        ({"stages": {"a": {"repeat": 0}}}, "repeat must be a whole number of at least 1, not 0"),
        ({"stages": {"a": {"first": 0}}}, "first must be a whole number of at least 1, not 0"),
        ({"stages": {"a": {"first": True}}}, "first must be a whole number of at least 1, not True"),
        ({"stages": {"a": {"role": "techer"}}}, "role 'techer'; did you mean teacher"),
        ({"stages": {"a": [1]}}, "stage 'a' must hold command, config"),
        ({"stages": {"a/b": {}}}, "use letters, digits"),
        ({"stages": {"a": {"config": 3}}}, "config must be a name, options, or a list of these, not 3"),
        ({"stages": {"a": {"arguments": {"b": 1}}}}, "arguments must be a list"),
        ({"stages": {"a": {"config": "${stages.b.best}"}, "b": {}}}, "no earlier stage is named 'b'"),
        ({"stages": {"teacher": {}, "b": {"config": "${stages.techer.best}"}}}, "did you mean teacher"),
        ({"stages": {"a": {}, "b": {"config": "${stages.a.bset}"}}}, "a stage has no 'bset'; did you mean best"),
        ({"stages": {"a": {"config": "${previous.best}"}}}, "there is no stage before it"),
        ({"stages": {"a": {"config": "${foo}"}}}, "a stage has no 'foo'"),
        ({"stages": {"a": {"config": "${b.best}"}}}, "write \\${stages.NAME.best}"),
        ({"stages": {"a": {}, "b": {"config": "${stages.a.export}"}}}, "a exports nothing; give it then"),
        ({"stages": {"a": {"command": "test"}, "b": {"config": "${previous.best}"}}}, "only fit stages have products"),
        ({"stages": {"a": {"config": "${stages.b.best}"}}}, "no earlier stage is named 'b'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_recipe_is_one_sentence(content: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        parse_recipe("r", content, "r.yaml")


def test_a_baseline_that_others_need_cannot_be_left_out() -> None:
    stages = {"alone": {"role": "baseline"}, "b": {"config": "${stages.alone.best}"}}
    with pytest.raises(ConfigurationError, match="no earlier stage is named 'alone'"):
        parse_recipe("r", {"stages": stages}, "r.yaml", baseline=False)


@pytest.mark.parametrize("content", [b"{", b"\xff", b'{"stages": []}', b'{"stages": {"alone": 1}}'])
def test_damaged_state_is_named_and_a_fresh_run_does_without(content: bytes, engine, fake: Fake) -> None:
    folder = Path("runs/r/recipe/seed0")
    folder.mkdir(parents=True)
    (folder / "recipe.json").write_bytes(content)
    with pytest.raises(ConfigurationError, match="is damaged: delete it, or run with --fresh"):
        engine()
    assert engine(fresh=True).run() == 0
    assert engine().run() == 0
