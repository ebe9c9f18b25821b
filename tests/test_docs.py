"""README.md and docs/: links, commands, names and shapes are those of the code."""

from __future__ import annotations

import argparse
import dataclasses
import doctest
import importlib
import importlib.util
import json
import math
import re
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from aime import cli
from aime.evaluation.evaluate import Evaluation
from aime.evaluation.metrics import Estimate
from aime.evaluation.open_loop import OpenLoop
from aime.evaluation.protocol import Clips, EvaluationConfig
from aime.evaluation.record import SERIES, RunFacts, metrics_record
from aime.training import TrainConfig
from aime.world_model import (
    DPGMMVariationalRecurrentAutoencoder,
    RememberedSequences,
    WorldModelConfig,
    generation,
)

ROOT = Path(__file__).parents[1]
PILLARS = (
    "perceiver_io",
    "generative_prior",
    "encoder_decoder",
    "temporal_dynamics",
    "attention_schema",
    "multi_task_learning",
    "world_model",
    "adversarial",
)
FOLDERS = [ROOT / "aime" / pillar / "README.md" for pillar in PILLARS]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *FOLDERS, ROOT / "scripts" / "README.md"]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
EXECUTABLES = ("aime", "python -m aime")

# Sizes that all differ, so that two axes cannot be mistaken for each other.
SIZES = {"B": 2, "T": 5, "Hz": 6, "C": 3, "H": 32, "W": 32, "A": 7, "D": 9, "Hd": 24, "L": 1, "Cc": 14, "K": 4, "S": 10}
SIZES |= {"d": 16, "R": 8, "G": 11, "E": 12, "Ht": 4, "Wt": 4, "n_f": 2, "n_g": 1}
CONFIG = {
    "image_size": SIZES["H"],
    "image_channels": SIZES["C"],
    "action_size": SIZES["A"],
    "frame_stack": SIZES["n_f"],
    "latent_dim": SIZES["D"],
    "hidden_dim": SIZES["Hd"],
    "context_dim": SIZES["Cc"],
    "max_components": SIZES["K"],
    "num_slots": SIZES["S"],
    "attention_channels": SIZES["d"],
    "attention_resolution": SIZES["R"],
    "attention_prior_channels": SIZES["G"],
    "code_dim": SIZES["E"],
    "downsample": SIZES["H"] // SIZES["Ht"],
    "num_codes": 16,
    "num_latents": 13,
    "latent_channels": 16,
    "tokenizer_channels": 8,
    "prior_hidden_dim": 16,
    "mlp_hidden_dim": 16,
    "encoder_channels": (8, 16),
    "decoder_channels": (16, 8),
    "cells_per_level": 1,
    "likelihood": "gaussian",
}


def code_of(text: str) -> list[str]:
    """Lines of the indented and fenced blocks of a page, continued lines joined."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    indented = re.findall(r"^    (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return "\n".join([*fenced, *indented]).replace("\\\n", " ").splitlines()


def rows_under(page: str, heading: str) -> list[list[str]]:
    """Cells of the tables in the section of a heading, without their headers."""
    text = (ROOT / page).read_text()
    section = re.search(rf"^(#+) {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", text, re.DOTALL | re.MULTILINE)
    assert section, f"{page} has no section {heading!r}"
    rows = re.findall(r"^\|(.*)\|$", section[2], re.MULTILINE)
    cells = [[cell.strip() for cell in row.split("|")] for row in rows]
    rules = [index for index, row in enumerate(cells) if set("".join(row)) <= {"-", ":"}]
    return [row for index, row in enumerate(cells) if not {index, index + 1} & set(rules)]


def names_under(page: str, heading: str) -> set[str]:
    """Names between backticks in the first column of the tables of a section."""
    return {name for row in rows_under(page, heading) for name in re.findall(r"`([^`]+)`", row[0])}


def slug(heading: str) -> str:
    """The anchor that GitHub and mkdocs make of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("update_readme", ROOT / "scripts" / "update_readme.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    prose = re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path) if path else page
        assert there.exists(), f"{name}: {target} does not exist"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE)
            assert anchor in map(slug, headings), f"{name}: {target} has no such heading"


def test_the_site_has_every_page_once() -> None:
    listed = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    docs = ROOT / "docs"
    assert sorted(listed) == sorted(str(page.relative_to(docs)) for page in docs.rglob("*.md"))


@pytest.mark.parametrize("name", NAMES)
def test_files_that_are_named_exist(name: str) -> None:
    text = (ROOT / name).read_text()
    for path in re.findall(r"`((?:aime|bench|csrc|docs|kernels|scripts|tests)/[\w./-]*)`", text):
        assert (ROOT / path).exists() or path.startswith("bench/results"), f"{name} names {path}, which does not exist"


@pytest.mark.parametrize("name", NAMES)
def test_commands_parse(name: str) -> None:
    tyro = importlib.import_module("tyro")
    for text in code_of((ROOT / name).read_text()):
        line = text.partition("    #")[0].strip()
        executable = next((begin for begin in EXECUTABLES if line.startswith(f"{begin} ")), None)
        if executable is None or "COMMAND" in line:
            continue
        command, *arguments = shlex.split(line)[len(executable.split()) :]
        tyro.cli(cli.load(command), args=arguments)  # exits with status 2 where a flag or a value is wrong


@pytest.mark.parametrize("name", NAMES)
def test_commands_and_targets_that_are_named_exist(name: str) -> None:
    text = (ROOT / name).read_text()
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for command in re.findall(r"`aime ([a-z]+)", text):
        assert command in cli.COMMANDS, f"{name} names aime {command}"
    for target in re.findall(r"(?:`|^    )make ([a-z]+)", text, re.MULTILINE):
        assert target in targets, f"{name} names make {target}"
    for module in re.findall(r"python -m ((?:aime|bench)(?:\.\w+)+)", text):
        file = ROOT / module.replace(".", "/")
        if module != "bench.kernels":  # comes with the kernels' benchmark
            assert file.with_suffix(".py").exists() or (file / "__main__.py").exists(), f"{name} names {module}"


def test_flags_of_the_older_entry_point_parse() -> None:
    parser = importlib.import_module("aime.world_model.train").parser()
    assert isinstance(parser, argparse.ArgumentParser)
    lines = [line for page in PAGES for line in code_of(page.read_text()) if "aime.world_model.train " in line]
    assert lines
    for line in lines:
        parser.parse_args(shlex.split(line)[3:])


# geoopt, which aime.temporal_dynamics.manifold imports, still scripts functions
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", NAMES)
def test_python_names_that_are_named_exist(name: str) -> None:
    for path in re.findall(r"`(aime(?:\.\w+)+)[`(]", (ROOT / name).read_text()):
        try:
            found: Any = importlib.import_module("aime")
            for part in path.split(".")[1:]:
                found = (
                    getattr(found, part)
                    if hasattr(found, part)
                    else importlib.import_module(f"{found.__name__}.{part}")
                )
        except (AttributeError, ImportError) as error:
            pytest.fail(f"{name} names {path}: {error}")


@pytest.mark.parametrize("name", NAMES)
def test_tables_of_the_code_are_up_to_date(name: str, script: ModuleType) -> None:
    text = (ROOT / name).read_text()
    assert script.rewritten(text, script.FROM_CODE) == text, (
        f"{name} is out of date: run `python scripts/update_readme.py`"
    )


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "quick_reference.md", *FOLDERS], ids=str)
def test_examples_run(page: Path) -> None:
    if "aime.envs" in page.read_text():
        pytest.importorskip("mujoco")
    failures, tried = doctest.testfile(str(page), module_relative=False)
    assert not failures
    assert tried == page.read_text().count("\n>>> ") >= 4


@pytest.mark.parametrize(("page", "most"), [(ROOT / "README.md", 120), *((page, 60) for page in FOLDERS)], ids=str)
def test_pages_to_begin_with_are_short(page: Path, most: int) -> None:
    assert len(page.read_text().splitlines()) <= most


def test_the_page_of_the_scripts_names_each_once() -> None:
    page = ROOT / "scripts" / "README.md"
    rows = [line.split("|")[1] for line in page.read_text().splitlines() if line.startswith("| `")]
    named = [name.rstrip("/") for row in rows for name in re.findall(r"`([^`]+)`", row)]
    files = {file.name for file in page.parent.iterdir() if file.name not in ("README.md", "__pycache__")}
    assert sorted(named) == sorted(files)
    assert len(page.read_text().splitlines()) <= 60


def test_fields_that_tables_name_exist() -> None:
    fields = {field.name for field in dataclasses.fields(WorldModelConfig)}
    assert names_under("docs/model.md", "Configuration") == fields
    assert names_under("docs/model.md", "Presets") <= fields
    assert names_under("docs/training.md", "Fields") == {field.name for field in dataclasses.fields(TrainConfig)}
    symbols = [name for row in rows_under("docs/tensor_shapes.md", "Symbols") for name in re.findall("`(.*?)`", row[2])]
    assert len(symbols) > 10
    assert set(symbols) <= fields


def test_options_of_rgb_are_those_of_the_class() -> None:
    from aime.multi_task_learning import RGB

    balancer = RGB()
    for cell, default, *_ in rows_under("docs/model.md", "Optimization"):
        assert str(getattr(balancer, cell.strip("`"))) == default, cell


@pytest.fixture(scope="module")
def run() -> dict[str, Any]:
    """Outputs, losses, states and rollouts of a small model, and what a training step reports."""
    torch.manual_seed(0)
    model = DPGMMVariationalRecurrentAutoencoder(WorldModelConfig.from_names(**CONFIG))
    batch, frames = SIZES["B"], SIZES["T"]
    observations = torch.randint(0, 256, (batch, frames, SIZES["C"], SIZES["H"], SIZES["W"]), dtype=torch.uint8)
    actions, ones = torch.randn(batch, frames, SIZES["A"]), torch.ones(batch, frames)
    losses, outputs = model.compute_total_loss(observations, actions, ones, ones)
    states = model.observe(observations, actions)
    imagined = model.imagine(states.at(-1), torch.randn(batch, SIZES["Hz"], SIZES["A"]))
    model.configure_optimizer()
    step = model.training_step_sequence(observations, actions, ones, ones)
    remembered = RememberedSequences(outputs["z_means"].detach(), outputs["z_log_scales"].detach(), actions)
    return {
        "losses": losses,
        "outputs": outputs,
        "prior_params": outputs.result.foreseen.prior,
        "tokens": outputs.result.perceived.perceiver.tokens,
        "stages": outputs.result,
        "states": states,
        "imagined": imagined,
        "rolled": generation.roll(model, states.at(-1), torch.randn(batch, SIZES["Hz"], SIZES["A"]), SIZES["Hz"]),
        "remembered": remembered,
        "step": step,
        "rehearsal": model.rehearse(remembered, 2, 1),
        "step_with_critics": step_with_critics(model.config, (observations, actions, ones, ones)),
    }


def step_with_critics(config: WorldModelConfig, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
    model = DPGMMVariationalRecurrentAutoencoder(dataclasses.replace(config, adversarial=True, critic_channels=2))
    model.configure_optimizer()
    return model.training_step_sequence(*batch)


def shape_of(text: str) -> tuple[int, ...]:
    """`(B, T - 1, n_f C)` with the sizes of the test's model."""
    axes = text.strip("()").split(", ") if text != "()" else []
    sizes = []
    for axis in axes:
        symbol, _, less = axis.strip(",").partition(" - ")
        factors = (int(factor) if factor.isdigit() else SIZES[factor] for factor in symbol.split())
        sizes.append(math.prod(factors) - int(less or 0))
    return tuple(sizes)


@pytest.mark.parametrize(
    ("heading", "what"),
    [
        ("forward_sequence", "outputs"),
        ("prior_params", "prior_params"),
        ("tokens", "tokens"),
        ("Perceived", "stages.perceived"),
        ("Inferred", "stages.inferred"),
        ("Foreseen", "stages.foreseen"),
        ("Watched", "stages.watched"),
        ("Decoded", "stages.decoded"),
        ("Heads", "stages.heads"),
        ("observe", "states"),
        ("imagine", "imagined"),
        ("Rolled", "rolled"),
        ("rehearse", "remembered"),
    ],
)
def test_shapes_are_those_of_the_model(heading: str, what: str, run: dict[str, Any]) -> None:
    name, _, stage = what.partition(".")
    found = getattr(run[name], stage) if stage else run[name]
    if dataclasses.is_dataclass(found):
        found = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    tensors = {name: tuple(value.shape) for name, value in found.items() if isinstance(value, Tensor)}
    rows = rows_under("docs/tensor_shapes.md", heading)
    assert {row[0].strip("`"): shape_of(row[1]) for row in rows} == tensors


def test_losses_are_those_of_the_model(run: dict[str, Any]) -> None:
    terms, sums = names_under("docs/losses.md", "Terms"), names_under("docs/losses.md", "Sums")
    assert terms | sums == set(run["losses"])
    besides = names_under("docs/losses.md", "What a training step reports besides")
    assert terms | sums | besides == set(run["step"])
    assert names_under("docs/losses.md", "What a rehearsal reports") == set(run["rehearsal"])
    more = names_under("docs/losses.md", "The adversarial task")
    assert terms | sums | besides | more == set(run["step_with_critics"]) and not more & set(run["step"])


def test_keys_of_metrics_json_are_those_of_the_record() -> None:
    missing = Estimate.missing()
    nothing: dict[str, Any] = {"episodes": (), "clips": 0, "clip_length": 0, "seconds": 0.0, "not_computed": {}}
    groups = {
        "reconstruction": ("psnr", "psnr_body"),
        "reconstruction_baseline": ("psnr", "psnr_body"),
        "one_step_prior": ("psnr", "psnr_body"),
        "probe": [f"{name}_r2{kind}" for name in ("qpos", "qvel", "reward") for kind in ("", "_nonlinear")],
        "codebook": ("perplexity", "usage"),
        "mixture": ("components_used", "nll", "crps"),
        "token_accuracy": (1, 5),
        "token_accuracy_copied": (1, 5),
    }
    empty = torch.zeros(0)
    clips = Clips(empty, empty, empty, None, None, empty)
    evaluation = Evaluation(
        config=EvaluationConfig(),
        open_loop=OpenLoop({}, {}, clips),
        foreground_ari=missing,
        shown={},
        probes=None,
        probe_rows=empty.numpy(),
        **{name: dict.fromkeys(keys, missing) for name, keys in groups.items()},
        **nothing,
    )
    record = json.loads(json.dumps(metrics_record(evaluation, RunFacts())))

    def paths(tree: Any, prefix: str = "") -> set[str]:
        if not isinstance(tree, dict) or not tree:
            return {prefix}
        return {path for key, value in tree.items() for path in paths(value, f"{prefix}.{key}" if prefix else key)}

    expected = {re.sub(r"^open_loop\.\d+", "open_loop.H", path) for path in paths(record) if "stderr" not in path}
    expected = {re.sub(rf"\.({'|'.join(SERIES)})$", ".SERIES", path) for path in expected} | {"stderr"}
    assert names_under("docs/evaluation.md", "metrics.json") - set(SERIES) == expected
    assert names_under("docs/evaluation.md", "metrics.json") & set(SERIES) == set(SERIES)
    assert sorted(map(int, record["open_loop"])) == [1, 5, 15, 45]


def test_tasks_are_those_of_the_environments() -> None:
    pytest.importorskip("mujoco")
    from aime.envs.tasks import supported

    try:
        pairs = set(supported())
    except ImportError as error:
        pytest.skip(str(error))
    listed = {
        (domain, task) for domain, tasks in rows_under("docs/environment.md", "Tasks") for task in tasks.split(", ")
    }
    assert listed == pairs


def test_a_run_is_stored_and_shown(tmp_path: Path, script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    series = {name: {"model": 20.0, "mean_image": 12.5, "rssm": None} for name in ("psnr_body", "psnr", "ssim")}
    values = {metric: {name: series[metric].get(name) for name in SERIES} for metric in series}
    figures = {
        "open_loop": {"1": values},
        "reconstruction": {"psnr": 30.0},
        "one_step_prior": {"psnr": None},
        "probe": {},
        "codebook": {},
        "mixture": {},
        "slots": {},
        "tokens": {"accuracy": {"1": 0.5}},
    }
    origin = {"task": "a-b", "preset": "laptop", "seed": 3, "commit": None, "device": "cpu", "parameters": 2_000_000}
    record = (
        origin | {"seconds": {"train": 60.0, "setup": None}, "frames_trained": 1000} | figures | {"stderr": figures}
    )
    (tmp_path / "metrics.json").write_text(json.dumps(record))
    monkeypatch.setattr(script.parts, "RESULTS", tmp_path / "results")
    assert "Not measured yet" in script.models.runs_text()
    assert script.store_run(tmp_path).name == "run-a-b-laptop-seed3.json"
    text = script.models.runs_text()
    assert "| AIME, mean of 16 rollouts | 20.00 ± 20.00 |" in text
    assert "mean image | 12.50 ± 12.50" in text
    assert "RSSM" not in text  # null everywhere: no row
    assert "train 60 s, cpu, commit unknown" in text
    assert "| reconstruction psnr | 30.000 ± 30.000 |" in text
    assert "one_step_prior" not in text


def test_check_tells_a_stale_page(tmp_path: Path, script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "ROOT", tmp_path)
    page = tmp_path / "README.md"
    page.write_text("<!-- BEGIN commands -->\nold\n<!-- END commands -->\n")
    assert script.main(["--check"]) == 1
    assert "old" in page.read_text()
    assert script.main([]) == 0
    assert "`aime train`" in page.read_text()
    assert script.main(["--check"]) == 0
    page.write_text("<!-- BEGIN nothing -->\n<!-- END nothing -->\n")
    with pytest.raises(ValueError, match="expected one of .*found 'nothing'"):
        script.main([])


def test_python_examples_of_the_pages_compile() -> None:
    blocks = 0
    for page in PAGES[1:]:
        for block in re.findall(r"(?:^    .*\n|^\n(?=    ))+", page.read_text(), re.MULTILINE):
            source = re.sub(r"^    ", "", block, flags=re.MULTILINE)
            if "\nfrom aime" in f"\n{source.lstrip()}":
                compile(source, str(page), "exec")
                blocks += 1
    assert blocks >= 3
