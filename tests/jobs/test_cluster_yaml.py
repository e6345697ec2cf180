"""Ray's launcher accepts cluster.yaml, and the paths it names exist."""

import json
import re
from importlib.resources import files

import jsonschema
import pytest
import yaml

from tests.support.command_line import ROOT


@pytest.fixture(scope="module")
def cluster():
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def with_comments_in(text):
    """The same file with its commented YAML enabled."""
    text = re.sub(r"^( +)# (InstanceMarketOptions:|    MarketType: spot)$", r"\1\2", text, flags=re.M)
    block = re.search(r"^    # cpu_worker:\n(    # .*\n)+", text, flags=re.M)
    assert block
    return text.replace(block[0], re.sub(r"^    # ", "    ", block[0], flags=re.M))


@pytest.mark.parametrize("edit", [str, with_comments_in])
def test_the_launcher_accepts_it(edit):
    schema = json.loads((files("ray.autoscaler") / "ray-schema.json").read_text())
    content = yaml.safe_load(edit((ROOT / "cluster.yaml").read_text()))
    jsonschema.Draft7Validator(schema).validate(content)
    types = content["available_node_types"]
    assert all(
        spec.get("min_workers", 0) <= spec.get("max_workers", 0) <= content["max_workers"] for spec in types.values()
    )
    if edit is with_comments_in:
        assert types["gpu_worker"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert types["cpu_worker"]["resources"] == {"CPU": 8}


def test_the_head_does_no_work_and_workers_have_gpus(cluster):
    types = cluster["available_node_types"]
    head = types[cluster["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert "--num-cpus=0" in cluster["head_start_ray_commands"][-1]
    workers = [spec for name, spec in types.items() if name != cluster["head_node_type"]]
    assert workers
    for spec in workers:
        assert spec["resources"]["GPU"] >= 1
        assert 1 <= spec["min_workers"] <= spec["max_workers"]


def test_every_path_that_it_names_is_in_the_repository(cluster):
    mounts = cluster["file_mounts"]
    assert mounts["~/potstill"] == "."
    commands = " ".join(cluster["setup_commands"])
    named = re.findall(r"~/potstill/(\S+)", commands)
    assert {"pyproject.toml", "constraints.txt", "requirements-embedded.txt"} <= set(named)
    for name in named:
        assert (ROOT / name).is_file(), name
        assert not any(name.startswith(left_out.strip("/")) for left_out in cluster["rsync_exclude"])


def test_the_working_dir_leaves_out_what_is_large_and_takes_what_jobs_need():
    """As Ray packs it: .gitignore and .rayignore hold for `ray job submit --working-dir .`."""
    ignored = (ROOT / ".rayignore").read_text().splitlines()
    for name in (".git/", "tests/", "benchmarks/", "docs/"):
        assert name in ignored
    needed = ("jobs", "actors", "potstill", "tasks", "conf", "pyproject.toml")
    assert not [name for name in needed if name in ignored or f"{name}/" in ignored or f"/{name}" in ignored]
    for name in (".venv/", "*.db"):
        assert name in (ROOT / ".gitignore").read_text().splitlines()
