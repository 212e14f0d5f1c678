"""MNIST files, MNIST-1D arrays, CIFAR batches and image folders."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import torchvision
from PIL import Image

from kdlightning.data.cifar import CIFAR10, CIFAR100
from kdlightning.data.image_folder import ImageFolder
from kdlightning.data.mnist import MNIST
from kdlightning.data.mnist1d import MNIST1D
from kdlightning.errors import ConfigurationError


def write_idx(path: Path, array: numpy.ndarray) -> None:
    data = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    for part, count in (("train", 40), ("t10k", 8)):
        images = (numpy.arange(count * 30) % 256).astype("u1").reshape(count, 6, 5)
        write_idx(tmp_path / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte", (numpy.arange(count) % 4).astype("u1"))
    return tmp_path


def test_mnist_files_packed_or_not(mnist: Path) -> None:
    data = MNIST(str(mnist), val_split=4, augment=True, mean=0.5, std=0.25)
    assert data.num_classes == 4
    assert data.input_shape == (1, 6, 5)
    assert [len(data.part(part)) for part in ("train", "val", "test")] == [36, 4, 8]
    image, label = data.part("test")[1]
    assert label == 1
    assert torch.allclose(image.flatten(), (torch.arange(30, 60) / 255 - 0.5) / 0.25, atol=1e-6)


def test_mnist_in_torchvisions_layout(mnist: Path, tmp_path: Path) -> None:
    raw = tmp_path / "root" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file in mnist.glob("*ubyte*"):
        file.rename(raw / file.name)
    assert len(MNIST(str(tmp_path / "root")).part("test")) == 8


def test_mnist_refuses_missing_and_unfit_files(mnist: Path) -> None:
    write_idx(mnist / "t10k-labels-idx1-ubyte", numpy.zeros(7, "u1"))
    with pytest.raises(ConfigurationError, match="t10k has images .8, 6, 5. and labels .7,.: they do not fit"):
        MNIST(str(mnist)).setup()
    (mnist / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(ConfigurationError, match="has no t10k-labels-idx1-ubyte .or .gz.: give path"):
        MNIST(str(mnist)).setup()
    with pytest.raises(ConfigurationError, match="MNIST needs path"):
        MNIST().setup()
    with pytest.raises(ConfigurationError, match="absent/x: give its folder, or download=True"):
        MNIST(str(mnist / "absent" / "x")).setup()


def test_mnist1d_arrays(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    arrays = {"x_train": numpy.random.rand(20, 9), "y_train": numpy.arange(20) % 3}
    arrays |= {"x_test": numpy.random.rand(6, 9), "y_test": numpy.arange(6) % 3}
    numpy.savez(path, **arrays)
    data = MNIST1D(str(path), val_split=0.25)
    assert (data.num_classes, data.input_shape) == (3, (1, 9))
    assert [len(data.part(part)) for part in ("train", "val", "test")] == [15, 5, 6]
    assert torch.allclose(data.part("test")[2][0][0], torch.from_numpy(arrays["x_test"][2]).float())
    numpy.savez(path, **(arrays | {"y_test": numpy.arange(5)}))
    with pytest.raises(ConfigurationError, match="x_test .6, 1, 9. and y_test .5,. do not fit"):
        MNIST1D(str(path)).setup()


def cifar_arrays(count: int = 20) -> dict[str, Any]:
    pixels = numpy.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), "u1")
    labels = numpy.arange(count) % 10
    return {"x_train": pixels, "y_train": labels, "x_test": pixels[:10], "y_test": labels[:10]}


def test_cifar_npz_is_normalised_channels_first(tmp_path: Path) -> None:
    arrays = cifar_arrays()
    numpy.savez(tmp_path / "c.npz", **arrays, class_names=numpy.array([f"c{i}" for i in range(10)]))
    data = CIFAR10(str(tmp_path / "c.npz"), val_split=10)
    assert data.class_names[3] == "c3"
    assert data.num_classes == 10
    image, label = data.part("test")[4]
    expected = (torch.from_numpy(arrays["x_test"][4, 7, 9] / 255).float() - torch.tensor(CIFAR10._mean)) / torch.tensor(
        CIFAR10._std
    )
    assert torch.allclose(image[:, 7, 9], expected, atol=1e-5)
    assert label == 4
    assert data.sources.train.augment is not None
    assert data.part("val").augment is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": numpy.zeros((20, 32, 32, 3))}, "train must be uint8 images"),
        ({"x_test": numpy.zeros((10, 3, 32, 32), "u1")}, "test must be uint8 images .N, H, W, 3."),
        ({"y_train": numpy.arange(20)}, "label 19 in CIFAR10: the wrong file"),
        ({"x_train": numpy.zeros((0, 32, 32, 3), "u1"), "y_train": numpy.zeros(0)}, "training data are empty"),
    ],
)
def test_cifar_refuses_other_arrays(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    numpy.savez(tmp_path / "c.npz", **(cifar_arrays() | changes))
    with pytest.raises(ConfigurationError, match=message):
        CIFAR10(str(tmp_path / "c.npz")).setup()


def test_cifar_standard_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, source = tmp_path / "cifar-100-python", torchvision.datasets.CIFAR100
    folder.mkdir()
    arrays, sums = cifar_arrays(), {}
    for part in ("train", "test"):
        flat = arrays[f"x_{part}"].transpose(0, 3, 1, 2).reshape(len(arrays[f"x_{part}"]), -1)
        content = {"data": flat, "fine_labels": arrays[f"y_{part}"].tolist()}
        (folder / part).write_bytes(pickle.dumps(content))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"n{i}" for i in range(100)]}))
    for file in folder.iterdir():
        sums[file.name] = hashlib.md5(file.read_bytes()).hexdigest()
    monkeypatch.setattr(source, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(source, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(source, "meta", {"filename": "meta", "key": "fine_label_names", "md5": sums["meta"]})
    data = CIFAR100(str(tmp_path), val_split=0)
    assert data.num_classes == len(data.class_names) == 100
    assert torch.equal(data.sources.train.inputs, torch.from_numpy(arrays["x_train"]).permute(0, 3, 1, 2))
    assert CIFAR100(str(folder)).part("test").labels.tolist() == list(range(10))
    (folder / "test").write_bytes(b"torn")
    with pytest.raises(ConfigurationError, match="cifar-100-python is incomplete or damaged: fetch it again"):
        CIFAR100(str(tmp_path)).setup()


def test_cifar_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match="has no cifar-10-batches-py: give its folder or an .npz file, or down"
    ):
        CIFAR10(str(tmp_path)).setup()
    with pytest.raises(ConfigurationError, match="CIFAR10 needs path"):
        CIFAR10().setup()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for part, count in (("train", 6), ("val", 3)):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                shade = 20 * i + (100 if name == "dog" else 0)
                Image.new("RGB" if i else "L", (12, 10), (shade,) * 3 if i else shade).save(
                    tmp_path / part / name / f"{i}.png"
                )
    return tmp_path


def test_image_folder_with_one_more_split_has_a_test_split(folder: Path) -> None:
    data = ImageFolder(str(folder), size=8, val_split=2, num_workers=0, batch_size=4)
    assert data.class_names == ["cat", "dog"]
    assert [len(data.part(part)) for part in ("train", "val", "test")] == [10, 2, 6]
    batch = next(iter(data.test_dataloader()))
    assert batch.data[0].shape == (4, *data.input_shape)
    assert batch.data[1].tolist() == [0, 0, 0, 1]
    expected = (torch.tensor(20 / 255) - torch.tensor(data.mean)) / torch.tensor(data.std)
    assert torch.allclose(batch.data[0][1].mean((1, 2)), expected, atol=1e-5)


def test_image_folder_with_val_and_test_uses_both(folder: Path) -> None:
    (folder / "val").rename(folder / "test")
    (folder / "val" / "dog").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(folder / "val" / "dog" / "x.png")
    data = ImageFolder(str(folder), size=8, num_workers=0)
    assert [len(data.part(part)) for part in ("train", "val", "test")] == [12, 1, 6]
    assert next(iter(data.val_dataloader())).data[1].tolist() == [1], "labels are those of train"


def test_image_folder_shows_what_the_literature_does(tmp_path: Path) -> None:
    pixels = numpy.random.default_rng(0).integers(0, 256, (64, 96, 3), "u1")
    for part in ("train", "val"):
        (tmp_path / part / "a").mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / part / "a" / "x.png")
    data = ImageFolder(str(tmp_path), size=28, val_split=0, num_workers=0, mean=(0, 0, 0), std=(1, 1, 1))
    assert data.validates_on_test
    # The shorter side to 32, then the middle 28x28.
    resized = Image.fromarray(pixels).resize((48, 32), Image.Resampling.BILINEAR)
    middle = torch.from_numpy(numpy.array(resized)[2:30, 10:38]).permute(2, 0, 1) / 255
    assert torch.allclose(data.part("val")[0][0], middle, atol=1.01 / 255)
    torch.manual_seed(0)
    views = [data.part("train")[0][0] for _ in range(8)]
    assert {tuple(view.shape) for view in views} == {(3, 28, 28)}
    assert len({float(view.sum()) for view in views}) == 8, "each view is another crop"
    plain = ImageFolder(str(tmp_path), size=28, augment=False, num_workers=0, mean=(0, 0, 0), std=(1, 1, 1))
    assert torch.equal(plain.sources.train[0][0], data.part("val")[0][0])


def test_image_folder_views_replay(folder: Path) -> None:
    shown = []
    for workers in (0, 2):
        data = ImageFolder(str(folder), size=8, num_workers=workers, batch_size=20, pin_memory=False)
        shown.append(next(iter(data.train_dataloader())).data[0])
    assert torch.equal(*shown)


def test_image_folder_without_labels_reads_every_image_at_any_depth(folder: Path) -> None:
    Image.new("RGB", (9, 9)).save(folder / "train" / "loose.JPG", "JPEG")
    (folder / "train" / "cat" / "notes.txt").write_text("no image")
    data = ImageFolder(str(folder), labels=False, size=8, val_split=3, num_workers=0, batch_size=4, mixup=1.0)
    assert [len(data.part(part)) for part in ("train", "val", "test")] == [10, 3, 6]
    assert data.num_classes is None
    assert data.class_names is None
    for loader in (data.train_dataloader(), data.test_dataloader()):
        assert next(iter(loader)).data.shape == (4, 3, 8, 8)
    whole = ImageFolder(str(folder / "val"), labels=False, size=8, val_split=2, num_workers=0)
    assert [len(whole.part(part)) for part in ("train", "val")] == [4, 2]
    with pytest.raises(ConfigurationError, match="has no test data"):
        whole.part("test")
    (folder / "empty").mkdir()
    with pytest.raises(ConfigurationError, match="empty has no image files"):
        ImageFolder(str(folder / "empty"), labels=False).setup()


def test_image_folder_refuses_what_does_not_fit(folder: Path) -> None:
    (folder / "val" / "dgo").mkdir()
    with pytest.raises(ConfigurationError, match="dgo is a class that train lacks; did you mean dog"):
        ImageFolder(str(folder)).setup()
    with pytest.raises(ConfigurationError, match="has no folder train"):
        ImageFolder(str(folder / "train")).setup()
    with pytest.raises(ConfigurationError, match="size must be at least 1"):
        ImageFolder(str(folder), size=0)
    for file in folder.glob("train/*/*.png"):
        file.unlink()
    with pytest.raises(ConfigurationError, match="train has no image files"):
        ImageFolder(str(folder)).setup()


def test_real_mnist(real_data: Path) -> None:
    data = MNIST(str(real_data / "mnist"), train_limit=100)
    assert [len(data.part(part)) for part in ("train", "val", "test")] == [100, 6000, 10000]
    images = data.sources.train.load(torch.arange(2000), torch.zeros(1))[0]
    assert abs(images.mean()) < 0.02
    assert abs(images.std() - 1) < 0.02


def test_real_mnist1d(real_data: Path) -> None:
    data = MNIST1D(str(real_data / "mnist1d.npz"))
    assert (data.num_classes, data.input_shape) == (10, (1, 40))
    assert [len(data.part(part)) for part in ("train", "val", "test")] == [3600, 400, 1000]


def test_real_cifar(real_data: Path) -> None:
    data = CIFAR10(str(real_data / "cifar10_15k_3k.npz"), val_split=0.2)
    assert data.class_names[0] == "airplane"
    assert torch.bincount(data.part("val").labels).tolist() == [300] * 10
    images = data.part("val").load(torch.arange(3000), torch.zeros(1))[0]
    assert images.mean((0, 2, 3)).abs().max() < 0.05
    assert (images.std((0, 2, 3)) - 1).abs().max() < 0.05
