"""`list` says what the headers of the shipped configurations say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdlightning.commands.shipped import config_folder, config_name, find_config, read_header, shipped
from kdlightning.errors import ConfigurationError


def test_json_is_every_header_with_its_config(command) -> None:
    headers = json.loads(command("list", "--json").out)
    assert {header["config"] for header in headers} == set(shipped())
    for header in headers:
        path = config_folder() / f"{header['config']}.yaml"
        assert {**read_header(path), "config": header["config"]} == header


def test_filters_keep_what_has_the_value(command) -> None:
    headers = json.loads(command("list", "--json", "--knowledge", "relation", "--mode", "offline").out)
    assert headers
    assert all("relation" in header["knowledge"] and header["mode"] == "offline" for header in headers)
    assert (
        command("list", "--access", "black-box", "--json").out == command("list", "--access", "black_box", "--json").out
    )


def test_text_searches_names_and_papers(command) -> None:
    found = json.loads(command("list", "hinton", "--json").out)
    assert any(header["config"] == "offline/response/kd" for header in found)
    assert "nothing that ships fits" in command("list", "no such words").out


def test_table_groups_by_access_mode_and_knowledge(command) -> None:
    lines = command("list").out.splitlines()
    at = lines.index("white-box · offline · response")
    assert any("offline/response/kd " in line for line in lines[at:])
    assert "recipes" in lines
    assert not [line for line in lines if line.endswith(" ")]


def test_every_method_states_its_place_in_the_field() -> None:
    places = {"access": {"white_box", "black_box"}, "mode": {"offline", "online", "self", "on_policy", "black_box"}}
    for name, path in shipped().items():
        header = read_header(path)
        assert header.get("name"), name
        if header.get("kind") is None:
            for key, values in places.items():
                assert header.get(key) in values, f"{name}: {key}"
            assert {"knowledge", "ability", "task", "class_path", "paper"} <= set(header), name


def test_a_configuration_is_found_by_path_name_and_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped_kd = config_folder() / "offline" / "response" / "kd.yaml"
    for text in (
        "offline/response/kd",
        "offline/response/kd.yaml",
        "configs/offline/response/kd.yaml",
        "kd",
        "response/kd",
    ):
        assert find_config(text) == shipped_kd
    assert find_config("quickstart", below="recipes") == config_folder() / "recipes" / "quickstart.yaml"
    (tmp_path / "kd").write_text("model: X\n")
    assert find_config("kd") == Path("kd")


@pytest.mark.parametrize(
    ("text", "words"),
    [("offline/response/kdd", "did you mean offline/response/kd"), ("dkdd", "did you mean dkd"), (".", "is a folder")],
)
def test_a_wrong_configuration_names_the_nearest(text: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        find_config(text)


def test_runs_are_named_after_their_configuration(tmp_path: Path) -> None:
    own, saved = tmp_path / "mine.yaml", tmp_path / "config.yaml"
    own.write_text("# name: Something else\nmodel: X\n")
    saved.write_text("# kdlightning 0.1.0\n# run: offline/response/kd\nmodel: X\n")
    assert config_name(config_folder() / "offline" / "response" / "kd.yaml") == "offline/response/kd"
    assert config_name(own) == "mine"
    assert config_name(saved) == "offline/response/kd"
