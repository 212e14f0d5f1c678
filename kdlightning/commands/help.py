"""What `kdlightning --help` and `kdlightning COMMAND --help` print: short, written by hand, with examples."""

from __future__ import annotations

COMMANDS: dict[str, str] = {
    "fit": "train a student (and say how good its last and best checkpoints are)",
    "validate": "measure a checkpoint on the validation split",
    "test": "measure the last and the best checkpoint on the test split",
    "predict": "write a checkpoint's predictions to predictions.jsonl",
    "generate": "ask a black-box teacher for the text that its store lacks",
    "run": "run a recipe: several stages, from the teacher to a table that compares",
    "list": "list the methods and recipes that ship, by access, mode and knowledge",
    "taps": "print the tensors inside a model that a method can read, with their shapes",
    "export": "write the student alone, for timm, transformers, safetensors or ONNX",
    "compare": "compare finished runs: mean and deviation over seeds, difference to labels alone",
}

_TRAINING = """
Options
  -c, --config NAME|PATH    a file, or the name of a shipped configuration (`kdlightning list`);
                            may be repeated, later ones win
  --model CLASS             for example OfflineDistillation; --model.OPTION=VALUE sets its options
  --data CLASS              for example CIFAR100; --data.OPTION=VALUE sets its options
  --trainer.OPTION=VALUE    any option of the Lightning Trainer
  --seed_everything N       the seed (default 0)
  --ckpt_path last|best|PATH  {checkpoint}
  --name NAME               name of the runs (default: the configuration's)
  --print_config            print the whole configuration and stop
  --model.help CLASS, --data.help CLASS   the options of a class
  --help-all                every option
  --debug                   show the traceback of an error
"""

_RUNS = "Runs go to runs/<config>/seed<k>/version_<n>/ (another place: --trainer.default_root_dir=DIR).\n"

TEXTS: dict[str, str] = {
    "fit": "usage: kdlightning fit [-c NAME|PATH]... [options]\n\n"
    "Trains a student. The run ends with result.json: both checkpoints' validation metrics, versions, time.\n\n"
    "Examples\n"
    "  kdlightning fit -c offline/response/kd\n"
    "  kdlightning fit -c offline/response/kd --trainer.max_epochs=5 --seed_everything=1\n"
    "  kdlightning fit -c mine.yaml --ckpt_path last          # continue the newest run of mine.yaml\n"
    "  kdlightning fit --model OfflineDistillation --data CIFAR100 -c networks.yaml\n"
    + _TRAINING.format(checkpoint="continue from there, in the same run folder")
    + "\n"
    + _RUNS,
    "validate": "usage: kdlightning validate [-c NAME|PATH]... [--ckpt_path last|best|PATH]\n\n"
    "Measures a checkpoint on the validation split (default: the newest run's last one).\n\n"
    "Examples\n"
    "  kdlightning validate -c offline/response/kd\n"
    "  kdlightning validate -c offline/response/kd --ckpt_path best\n"
    + _TRAINING.format(checkpoint="which checkpoint; null measures the student as it is built")
    + "\n"
    + _RUNS,
    "test": "usage: kdlightning test [-c NAME|PATH]... [--ckpt_path last|best|PATH]\n\n"
    "Measures the newest run on the test split: its last checkpoint, which is the headline, and its best by\n"
    "validation, and adds both to the run's result.json.\n\n"
    "Examples\n"
    "  kdlightning test -c offline/response/kd\n"
    "  kdlightning test -c offline/response/kd --ckpt_path runs/mine/seed0/version_0/checkpoints/best.ckpt\n"
    + _TRAINING.format(checkpoint="only this one; null measures the student as it is built")
    + "\n"
    + _RUNS,
    "predict": "usage: kdlightning predict [-c NAME|PATH]... [--ckpt_path last|best|PATH]\n\n"
    "Writes predictions.jsonl into the run's folder, a line a sample: index, prediction, probability, target.\n\n"
    "Examples\n"
    "  kdlightning predict -c offline/response/kd --ckpt_path best\n"
    + _TRAINING.format(checkpoint="which checkpoint (default: the newest run's last one)")
    + "\n"
    + _RUNS,
    "generate": "usage: kdlightning generate [-c NAME|PATH]... [--dry-run] [--max_requests N] [--max_tokens N]"
    " [--max_money X]\n\n"
    "Asks a configuration's teacher for the text that its store lacks, filters it, and ends with a table: what was\n"
    "asked, failed, kept and dropped, and what it cost. It can be killed at any moment and started again: what was\n"
    "answered is never asked twice. `fit` on the same configuration reads the same store.\n\n"
    "Examples\n"
    "  kdlightning generate -c blackbox/cot/fine_tune_cot --data.path=problems.jsonl --dry-run\n"
    "  kdlightning generate -c blackbox/cot/fine_tune_cot --data.path=problems.jsonl\n"
    "  kdlightning generate -c mine.yaml --max_money=5\n\n"
    "Options\n"
    "  -c, --config NAME|PATH    as for fit; --model is not needed\n"
    "  --data.OPTION=VALUE       as for fit\n"
    "  --dry-run                 say what the first round that is not complete would ask, and ask nothing\n"
    "  --max_requests N, --max_tokens N, --max_money X   stop there; the same command goes on\n"
    "  --allow_failed            exit code 0 also when requests failed\n"
    "  --result PATH             also write the table's numbers as JSON\n"
    "  --debug                   show the traceback of an error\n\n"
    "Exit code: 0 if everything was answered, 1 if requests failed or the budget ended (they are listed, and the same\n"
    "command asks again for these alone), 2 for wrong input.\n",
    "run": "usage: kdlightning run NAME|PATH [--seed N] [--output DIR] [--fresh] [--no-baseline] [--dry-run]\n\n"
    "Runs the stages of a recipe and ends with a table. Finished stages are skipped while nothing that they depend\n"
    "on has changed; a run that was killed continues.\n\n"
    "Examples\n"
    "  kdlightning run quickstart\n"
    "  kdlightning run configs/recipes/quickstart.yaml --seed 1\n"
    "  kdlightning run mine.yaml --dry-run\n\n"
    "Options\n"
    "  --seed N        seed of all stages (default 0)\n"
    "  --output DIR    where runs go (default runs)\n"
    "  --fresh         run every stage again, in new folders\n"
    "  --no-baseline   leave out the student on labels alone\n"
    "  --dry-run       print the stages and what would happen to them\n"
    "  --debug         show the traceback of an error\n",
    "list": "usage: kdlightning list [TEXT] [--access A] [--mode M] [--knowledge K] [--ability A] [--task T]"
    " [--json]\n\n"
    "Lists the configurations that ship, from their headers.\n\n"
    "Examples\n"
    "  kdlightning list\n"
    "  kdlightning list --knowledge feature\n"
    "  kdlightning list attention --json\n",
    "taps": "usage: kdlightning taps MODEL [--input C,H,W] | -c NAME|PATH [--role student|teacher]\n\n"
    "Prints the tensors inside a model that a method can read, with their shapes for two samples.\n\n"
    "Examples\n"
    "  kdlightning taps resnet50\n"
    "  kdlightning taps resnet18 --input 3,32,32\n"
    "  kdlightning taps cifar/resnet8x4\n"
    "  kdlightning taps -c offline/feature/fit_net --role teacher\n\n"
    "Options\n"
    "  MODEL           a timm model's name, cifar/NAME of a CIFAR network, or a local transformers folder\n"
    "  -c NAME|PATH    read the networks and a batch of data from a configuration\n"
    "  --role ROLE     student or teacher (default: both)\n"
    "  --input SHAPE   shape of one sample, for example 3,32,32\n"
    "  --json          an array of {name, shape, kind}\n",
    "export": "usage: kdlightning export CKPT|RUN_FOLDER [--format FORMAT] [--output DIR] [--which WHO]"
    " [--quantize int8]\n\n"
    "Writes the student alone, loads it again with the named library alone, and compares its answers.\n\n"
    "Examples\n"
    "  kdlightning export runs/mine/seed0/version_0\n"
    "  kdlightning export runs/mine/seed0/version_0/checkpoints/best.ckpt --format timm --output student\n"
    "  kdlightning export runs/mine/seed0/version_0 --format onnx --output student.onnx\n\n"
    "Options\n"
    "  --format auto|timm|transformers|sentence-transformers|safetensors|onnx   auto: what its own library loads\n"
    "  --output DIR    default: a folder named export beside the checkpoints; must be new or an earlier export\n"
    "  --which WHO     student, or a peer of online distillation: peer1, peer2, ... (default student)\n"
    "  --quantize int8 of ONNX: weights of linear layers as 8-bit integers; says by how much answers change\n",
    "compare": "usage: kdlightning compare RUN... [--metric NAME] [--checkpoint WHICH] [--baseline CONFIG] [--json]\n\n"
    "Groups finished runs by configuration: mean ± deviation over seeds, and the difference to the same student on\n"
    "labels alone, paired by seed. Reads nothing but result.json files (RUN: one of them, or any folder above).\n\n"
    "Examples\n"
    "  kdlightning compare runs\n"
    "  kdlightning compare runs/kd runs/dkd --metric test/acc --checkpoint best\n"
    "  kdlightning compare runs --json > table.json\n\n"
    "Options\n"
    "  --metric NAME      default: the runs' monitor on the test split, or else on the validation split\n"
    "  --checkpoint WHICH last (default) or best\n"
    "  --baseline CONFIG  default: the runs without a teacher that train the same student\n"
    "  --json             instead of the Markdown table\n"
    "  --chart DIR        also write a chart for TensorBoard, and chart.png, into DIR\n",
}


def overview() -> str:
    """The page of `kdlightning --help`."""
    width = max(len(name) for name in COMMANDS)
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return (
        "usage: kdlightning COMMAND [options]\n\n"
        "Knowledge distillation on PyTorch Lightning.\n\n"
        "Commands\n" + "\n".join(lines) + "\n\n"
        "Examples\n"
        "  kdlightning run quickstart\n"
        "  kdlightning list --knowledge feature\n"
        "  kdlightning fit -c offline/response/kd --trainer.max_epochs=5\n\n"
        "  kdlightning COMMAND --help    examples and options of a command\n"
        "  kdlightning --version\n"
    )
