from actors import precision
from actors.precision import pick_precision


def test_bfloat16_only_where_the_processor_supports_it(tmp_path, monkeypatch):
    info = tmp_path / "cpuinfo"
    monkeypatch.setattr(precision, "CPU_INFO", info)
    assert pick_precision("auto", "cpu") == "float32", "no such file, as on a Mac"
    info.write_text("processor : 0\nflags\t\t: fpu avx512f avx512_bf16\n")
    assert pick_precision("auto", "cpu") == "bfloat16"
    info.write_text("processor : 0\nflags\t\t: fpu avx512f avx2\n")
    assert pick_precision("auto", "cpu") == "float32"
    info.write_text("processor : 0\nFeatures\t: fp asimd bf16\n")
    assert pick_precision("auto", "cpu") == "bfloat16"


def test_a_configured_precision_is_kept():
    assert pick_precision("float32", "cpu") == "float32"
    assert pick_precision("bfloat16", "cpu") == "bfloat16"
