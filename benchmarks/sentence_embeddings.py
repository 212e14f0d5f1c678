"""Sentence embeddings: how much of a pretrained encoder's worth to a classifier keeps a student of fewer layers?

    python benchmarks/sentence_embeddings.py --teacher FOLDER --data FOLDER    # it holds trec/
    python benchmarks/sentence_embeddings.py --table

The teacher is a sentence encoder (a folder in the layout of sentence-transformers). The student is every other of its
layers, or fewer, and learns the teacher's embeddings of TREC's training questions by the cosine loss; no label is read.
Both usual probes then judge frozen embeddings by the six types of question: the vote of the nearest neighbours and a
linear classifier, fitted on the training questions and scored on the 500 test questions. Beside it stand the student as
it was cut, before any training, and the teacher. Nothing is chosen on test: the last epoch counts. Seeds differ in the
order of the texts and in dropout.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paired import difference_words, markdown, mean_words, paired_difference, write

RESULTS = Path(__file__).parent / "results" / "sentence_embeddings"
PROBES = {"knn": "nearest neighbours", "linear": "linear classifier"}


def cut_student(folder: str, layers: int) -> Any:
    """The teacher's pooling around some of its layers."""
    from kdlightning import SentenceEncoder, sentence_encoder, student_from_teacher, transformers_model

    whole: Any = sentence_encoder(folder)
    encoder = student_from_teacher(transformers_model(folder, architecture="AutoModel"), layers=layers)
    return SentenceEncoder(encoder, whole.pooling, whole.normalize)


def questions(options: argparse.Namespace, seed: int) -> Any:
    """TREC in the teacher's tokens; its training questions are all trained on."""
    from kdlightning import TextClassification

    return TextClassification(
        str(options.data / "trec"), tokenizer=options.teacher, val_split=0, max_length=64, batch_size=32, seed=seed
    )


def probes(model: Any, data: Any) -> dict[str, float]:
    """Test accuracy of both probes on a network's embeddings."""
    from kdlightning import knn_probe, linear_probe

    train, test = data.train_dataloader(), data.test_dataloader()
    return {"knn": knn_probe(model, train, test), "linear": linear_probe(model, train, test)}


def distilled(options: argparse.Namespace, seed: int, data: Any) -> tuple[Any, float]:
    """A student that was trained without labels, and the seconds that it took."""
    import lightning as L
    import torch

    from kdlightning import CosineEmbedding, FeatureKD, OfflineDistillation, SentenceEmbedding, sentence_encoder

    L.seed_everything(seed, verbose=False)
    student = cut_student(options.teacher, options.layers)
    module = OfflineDistillation(
        student,
        sentence_encoder(options.teacher),
        task=SentenceEmbedding(neighbours=0),
        response=None,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=2e-4),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs),
    )
    trainer = L.Trainer(
        max_epochs=options.epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[FeatureKD(CosineEmbedding(), {"logits": "logits"})],
    )
    begin = time.perf_counter()
    trainer.fit(module, datamodule=data)
    return student, time.perf_counter() - begin


def table() -> str:
    """Mean and deviation over the seeds, the share of the teacher's accuracy, and what training adds."""
    top = json.loads((RESULTS / "teacher.json").read_text())
    records = {int(path.stem.rpartition("_seed")[2]): json.loads(path.read_text()) for path in RESULTS.glob("*_seed*")}
    rows = [["test accuracy by", "teacher", "as cut", "distilled", "kept", "difference to as cut (95 %)", "seeds"]]
    for probe, words in PROBES.items():
        ours, cut = ({seed: each[kind][probe] for seed, each in records.items()} for kind in ("distilled", "cut"))
        kept = sum(ours.values()) / len(ours) / top[probe]
        means = [mean_words(list(values.values())) for values in (cut, ours)]
        difference = difference_words(paired_difference(ours, cut))
        rows.append([words, f"{top[probe]:.4f}", *means, f"{kept:.1%}", difference, str(len(records))])
    sizes = next(iter(records.values()))
    return f"{markdown(rows)}\n\n{sizes['layers']} of {top['layers']} layers, {sizes['epochs']} epochs."


def train(options: argparse.Namespace) -> None:
    """The teacher's scores, then the seeds that are missing."""
    import torch

    from kdlightning import sentence_encoder

    torch.set_num_threads(options.threads)
    top = RESULTS / "teacher.json"
    if not top.is_file():
        teacher: Any = sentence_encoder(options.teacher)
        write(top, {**probes(teacher, questions(options, 0)), "layers": teacher.config.num_hidden_layers})
    for seed in options.seeds:
        record = RESULTS / f"layers{options.layers}_seed{seed}.json"
        if record.is_file():
            continue
        data = questions(options, seed)
        cut = probes(cut_student(options.teacher, options.layers), data)
        student, seconds = distilled(options, seed, data)
        facts = {"layers": options.layers, "epochs": options.epochs, "seconds": seconds}
        write(record, {"cut": cut, "distilled": probes(student, data), **facts})


def main(arguments: Sequence[str] | None = None) -> str:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = os.environ.get("KDLIGHTNING_DATA")
    parser.add_argument("--teacher", help="folder of a sentence encoder")
    parser.add_argument("--data", type=Path, default=folder and Path(folder), help="folder that holds trec/")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--layers", type=int, default=3, help="of the student")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="train nothing")
    options = parser.parse_args(arguments)
    if not options.table:
        if options.data is None or options.teacher is None:
            parser.error("--teacher FOLDER and --data FOLDER (or KDLIGHTNING_DATA) must be given")
        train(options)
    print(text := table())
    return text


if __name__ == "__main__":
    main()
