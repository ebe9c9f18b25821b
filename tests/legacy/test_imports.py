"""Every import path of the original's documents, by walking the table; and that nothing is global without it."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

from aime.legacy import finder
from aime.legacy.names import MODULES, PREFIXES, PROGRAMS


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    finder.install()
    yield
    finder.remove()


def spellings(module: str) -> list[str]:
    """A module as the documents may write it."""
    return [module, f"legacy.{module}"] if module.startswith("VRNN.") else [module, f"src.{module}"]


@pytest.mark.parametrize("module", MODULES)
def test_every_name_of_the_table(module: str) -> None:
    names = MODULES[module]
    for spelling in spellings(module):
        found = importlib.import_module(spelling)
        assert found.__name__ == spelling
        if isinstance(names, str):
            assert found.main is importlib.import_module(names).main
            continue
        for name, target in names.items():
            place, _, attribute = target.partition(":")
            namespace: dict[str, object] = {}
            exec(f"from {spelling} import {name}", namespace)
            assert namespace[name] is getattr(importlib.import_module(place), attribute)


DOCUMENTED = {
    "world_model": "DPGMMVariationalRecurrentAutoencoder",
    "training": "DMCVBTrainer, DMCVBDataset",
    "perceiver_io": "CausalPerceiverIO, VQPTTokenizer, PerceiverTokenPredictor",
    "generative_prior": "DPGMMPrior, AdaptiveStickBreaking",
    "generative_prior.distributions": "KumaraswamyStable",
    "temporal_dynamics": "LSTMLayer",
    "attention_schema": "AttentionSchema, AttentionPosterior, AttentionPrior, SlotAttention",
    "encoder_decoder": "VAEEncoder, VAEDecoder, GramLoss",
    "multi_task_learning": "RGB, LossAggregator",
    "multi_task_learning.losses": "ELBOLoss, PerceiverLoss, PredictiveLoss, AdversarialLoss",
    "models": "check_tensor, TemporalDiscriminator",
    "VRNN.RGB": "RGB",
    "VRNN.lstm": "LSTMLayer",
    "VRNN.dpgmm_stickbreaking_prior_vrnn": "DPGMMVariationalRecurrentAutoencoder",
    "VRNN.dmc_vb_transition_dynamics_trainer": "DMCVBDataset, DMCVBTrainer",
    "VRNN.perceiver.video_prediction_perceiverIO": "CausalPerceiverIO, VQPTTokenizer, PerceiverTokenPredictor",
    "VRNN.perceiver.vector_quantize": "VectorQuantize",
    "VRNN.Kumaraswamy": "KumaraswamyStable",
    "nvae_architecture": "VAEEncoder, VAEDecoder, GramLoss",
}


@pytest.mark.parametrize("module", DOCUMENTED)
def test_the_imports_of_the_documents(module: str) -> None:
    exec(f"from {module} import {DOCUMENTED[module]}", {})
    if module == "nvae_architecture":
        exec(f"from src.{module} import {DOCUMENTED[module]}", {})
    elif not module.startswith("VRNN."):
        exec(f"from src.{module} import {DOCUMENTED[module]}", {})
        exec(f"from aime.{module} import {DOCUMENTED[module]}", {})


def test_a_wrong_name_is_told_the_near_ones() -> None:
    with pytest.raises(AttributeError, match="has no 'RBG' here; did you mean RGB"):
        _ = importlib.import_module("VRNN.RGB").RBG
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("src.world_modle")


def test_modules_of_the_user_win_over_bare_names(tmp_path, monkeypatch) -> None:
    (tmp_path / "models.py").write_text("mine = True\n")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "helpers.py").write_text("mine = True\n")
    (tmp_path / "src" / "world_model.py").write_text("raise RuntimeError('the code of the original')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        assert importlib.import_module("models").mine
        assert importlib.import_module("src.helpers").mine
        assert importlib.import_module("src.world_model").DPGMMVariationalRecurrentAutoencoder
    finally:
        for name in ("models", "src", "src.helpers"):
            sys.modules.pop(name, None)


def test_nothing_is_global_without_it(tmp_path) -> None:
    code = (
        "import sys, aime.world_model, aime.training, aime.models\n"
        "assert not [f for f in sys.meta_path if 'aime' in type(f).__module__]\n"
        "try:\n    import VRNN.RGB\nexcept ModuleNotFoundError:\n    pass\nelse:\n    raise SystemExit('found')\n"
        "import aime.legacy\n"
        "from VRNN.RGB import RGB\n"
        "aime.legacy.remove()\n"
        "try:\n    import VRNN.lstm\nexcept ModuleNotFoundError:\n    pass\nelse:\n    raise SystemExit('still')\n"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_scripts_and_programs_run(tmp_path) -> None:
    script = tmp_path / "old_script.py"
    script.write_text(
        "import sys\nfrom VRNN.RGB import RGB\nimport beside\n"
        "if __name__ == '__main__':\n    print(RGB.__module__, sys.argv[1:], beside.word)\n    raise SystemExit(3)\n"
    )
    (tmp_path / "beside.py").write_text("word = 'near'\n")
    command = [sys.executable, "-m", "aime.legacy"]
    run = subprocess.run([*command, str(script), "--x", "1"], check=False, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (3, "aime.multi_task_learning.rgb ['--x', '1'] near\n"), run.stderr
    run = subprocess.run(
        [*command, "-m", "src.world_model.train", "--help"], check=False, capture_output=True, text=True, cwd=tmp_path
    )
    assert run.returncode == 0 and "--load-checkpoint" in run.stdout, run.stderr


def test_programs_by_their_old_paths(tmp_path, monkeypatch, capsys) -> None:
    from aime.legacy.__main__ import main

    monkeypatch.chdir(tmp_path)
    before = list(sys.path), list(sys.argv)
    try:
        for words in (["VRNN/dmc_vb_transition_dynamics_trainer.py"], ["-m", "src.world_model.evaluate"]):
            with pytest.raises(SystemExit) as ended:
                main([*words, "--help"])
            assert ended.value.code == 0 and "usage" in capsys.readouterr().out
        assert main(["nowhere.py"]) == 1 and "nowhere.py: expected a script" in capsys.readouterr().err
        assert main(["-m"]) == 2 and main([]) == 2
    finally:
        sys.path[:], sys.argv[:] = before
    assert set(PROGRAMS) <= set(MODULES) and PREFIXES
