"""The benchmark of the diversity measures runs; the measures equal scikit-learn and the definition."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.competitors
def test_the_measures_equal_their_references(tmp_path):
    place = tmp_path / "d.json"
    command = [sys.executable, "benchmarks/diversity.py", "--rows", "900", "--check", "200", "--repeats", "1"]
    subprocess.run([*command, "--json", str(place)], cwd=ROOT, check=True, capture_output=True, timeout=800)
    figures = json.loads(place.read_text())
    assert figures["max_error"] < 1e-5
    assert 0.0 <= figures["peak_gib"] < 1.0
    assert {"chamfer_vs_sklearn", "remote_clique_vs_sklearn"} <= set(figures)
