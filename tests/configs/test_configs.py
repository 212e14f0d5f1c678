"""Every shipped configuration trains on real data, in this process; one of each mode as a command of its own."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kdlightning.cli import main
from kdlightning.commands.shipped import read_header, shipped

CONFIGS = {name: path for name, path in shipped().items() if not name.startswith("recipes/")}
METHODS = {name: path for name, path in CONFIGS.items() if read_header(path).get("kind") != "baseline"}
HEADERS = {name: read_header(path) for name, path in METHODS.items()}
SHORT = ["--trainer.max_epochs=1", "--trainer.limit_val_batches=2"]
WORDS = {
    "access": {"white_box", "black_box"},
    "knowledge": {"response", "feature", "relation", "text"},
    "mode": {"offline", "online", "self", "on_policy", "black_box"},
    "ability": {"icl", "cot", "instruction", "none"},
}


def data_options(path: Path) -> list[str] | None:
    """What makes a configuration's data small and found; None if they are not on this machine."""
    data = yaml.safe_load(path.read_text())["data"]["class_path"].rsplit(".", 1)[-1]
    folder = os.environ.get("KDLIGHTNING_DATA")
    if data in ("Digits", "DigitScenes", "MNIST1D"):
        return ["--data.init_args.train_limit=256"]
    if data == "TaggedText":  # which the user brings
        return [f"--data.init_args.path={made_tags(yaml.safe_load(path.read_text()))}"]
    if folder is None:
        return None
    real = {
        "CIFAR10": ("cifar10_15k_3k.npz", 96),
        "TextClassification": ("sst2", 96),
        "TextGroups": ("trec", 32),
        "TextCorpus": ("lm/tinyshakespeare.txt.gz", 48),
        "MaskedText": ("lm/tinyshakespeare.txt.gz", 48),
        "BlackBoxData": ("svamp_palm_cot/train.jsonl.gz", 64),
        "CounterfactualData": ("disco_e2n.jsonl.gz", 96),
    }
    name, limit = real[data]
    options = {"path": f"{folder}/{read_header(path).get('data', name)}", "train_limit": limit}
    if data == "BlackBoxData" and "InContextDistillation" not in path.read_text():
        # A teacher that is a model answers at its own pace. (Prompted tasks stand one after the other in their file.)
        options["record_limit"] = 100
    return [f"--data.init_args.{option}={value}" for option, value in options.items()]


def made_tags(config: dict) -> Path:
    """A folder of texts with the tags that a configuration names."""
    tags = config["data"]["init_args"]["tag_names"]
    folder = Path("tags").resolve()
    folder.mkdir(exist_ok=True)
    for part, count in (("train", 48), ("dev", 8), ("test", 8)):
        texts = ["\n".join(f"word{n % 9}{tag} {tag}" for tag in tags[n % 2 :]) for n in range(count)]
        (folder / f"{part}.conll").write_text("\n\n".join(texts) + "\n")
    return folder


def fit(name: str) -> dict:
    """Runs a configuration briefly in the current folder, its teachers and starting points first."""
    options = data_options(CONFIGS[name])
    if options is None:
        pytest.skip("KDLIGHTNING_DATA is not set: no real data on this machine")
    for needed in sorted(needed_runs(CONFIGS[name])):
        if not Path("runs", needed).exists():
            fit(needed)
    arguments = ["fit", "-c", name, *SHORT, *options]
    if yaml.safe_load(CONFIGS[name].read_text())["trainer"].get("devices", 1) == 1:
        assert main(arguments) == 0
    else:  # Lightning starts the other processes with this one's own command line
        subprocess.run([Path(sys.executable).with_name("kdlightning"), *arguments], check=True, capture_output=True)
    newest = max(Path("runs", name, "seed0").glob("version_*/result.json"), key=lambda file: file.stat().st_mtime)
    return json.loads(newest.read_text())


def needed_runs(path: Path) -> set[str]:
    """The configurations whose checkpoints a configuration reads."""
    return {name for name in CONFIGS if f"runs/{name}/seed0" in path.read_text()}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("configs"))
    yield Path.cwd()
    os.chdir(before)


@pytest.mark.parametrize("name", METHODS)
def test_header_says_where_a_method_belongs(name):
    header = HEADERS[name]
    for key, allowed in WORDS.items():
        assert header[key] in allowed, key
    assert header["name"]
    assert header["paper"]
    assert header["task"]
    module, _, attribute = header["class_path"].rpartition(".")
    assert isinstance(getattr(importlib.import_module(module), attribute), type)
    folder = name.split("/")[0]
    assert folder == {"black_box": "blackbox"}.get(header["mode"], header["mode"])


def test_no_two_methods_share_a_name():
    names = [header["name"] for header in HEADERS.values()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", CONFIGS)
def test_config_trains(name, workplace):
    result = fit(name)
    last = result["metrics"]["val"]["last"]
    score = "cka" if read_header(CONFIGS[name])["task"] in ("unlabelled", "sentence_embedding") else "loss"
    assert last[score] == last[score], f"the validation {score} is NaN"
    assert result["config"]["name"] == name
    run = max(Path("runs", name, "seed0").glob("version_*"), key=lambda folder: folder.stat().st_mtime)
    assert (run / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.parametrize(
    "name", ["offline/response/kd", "online/dml", "self/pskd", "on_policy/gkd", "blackbox/cot/fine_tune_cot"]
)
def test_one_config_of_each_mode_as_a_command(name, workplace):
    options = data_options(CONFIGS[name])
    if options is None:
        pytest.skip("KDLIGHTNING_DATA is not set: no real data on this machine")
    for needed in needed_runs(CONFIGS[name]):
        if not Path("runs", needed).exists():
            fit(needed)
    command = [sys.executable, "-c", "from kdlightning.cli import main; raise SystemExit(main())", "fit", "-c", name]
    done = subprocess.run([*command, *SHORT, *options, "--seed_everything=1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "result.json" in done.stdout
    assert list(Path("runs", name, "seed1").glob("version_*/result.json"))
