"""Seeded generators of commands, weights and checkpoints that are wrong, and a runner that sees how `aime` takes them.

`python -m tests.training.broken_runs` runs everything and prints a table; tests take a slice. Each case runs in a
forked process with a limit of time and of address space: a hang, a crash or a hunger for memory is seen as such.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aime import cli
from aime.data import Episode, EpisodeSpec, EpisodeWriter
from aime.training import Checkpoint, CheckpointDirectory, TrainConfig

ADDRESS_SPACE = 24 << 30  # torch alone maps several gigabytes
SMALL = (
    *("--model.hidden-dim", "16", "--model.latent-dim", "4", "--model.encoder-channels", "8", "8", "8"),
    *("--train.batch-size", "2", "--train.sequence-length", "4", "--train.validation-batches", "1"),
    *("--train.initial-frames", "16", "--train.log-every", "1", "--train.checkpoint-every", "2"),
    *("--no-progress", "--no-tensorboard", "--device", "cpu"),
)
PROTOCOL = (
    *("--no-report", "--device", "cpu", "--protocol.horizons", "1", "2", "--protocol.context", "3"),
    *("--protocol.samples", "2", "--protocol.episodes", "1", "--protocol.starts", "1", "--protocol.films", "1"),
    *("--protocol.probe-episodes", "2"),
)
#: what a case must end in
REFUSED, SKIPPED, EITHER = "refused", "skipped", "either"


@dataclass(frozen=True)
class Case:
    """Something wrong: a run directory is copied, `prepare` breaks the copy, and the command is run on it."""

    name: str
    arguments: Callable[[Path, Path], list[str]]
    """From the data file and the copied run directory."""
    prepare: Callable[[Path], None] | None = None
    expected: str = REFUSED
    words: tuple[str, ...] = ()
    """One of them has to be in the message: the option or file that it is about."""


@dataclass(frozen=True)
class Outcome:
    """How a case ended: clear, traceback, hang, crash, accepted (wrongly), or unclear (no word of what is wrong)."""

    name: str
    verdict: str
    status: int
    output: str
    seconds: float
    megabytes: float


# ---------------------------------------------------------------------------------------------------- a whole tiny run


def write_episodes(path: Path) -> None:
    """Eight episodes of noise, with what an evaluation wants."""
    rng = np.random.default_rng(0)
    spec = EpisodeSpec(image_shape=(3, 32, 32), action_size=1, domain="cartpole", task="swingup")
    with EpisodeWriter(path, spec) as writer:
        for _ in range(8):
            frames = rng.integers(0, 255, (12, 3, 32, 32), dtype=np.uint8)
            actions = rng.uniform(-1, 1, (12, 1)).astype(np.float32)
            writer.append(Episode(frames, actions, np.ones(12, np.float32), np.ones(12, np.float32)))


def make_base(directory: Path) -> tuple[Path, Path]:
    """Episode file and a finished run of six steps with checkpoints and weights."""
    data, run = directory / "cartpole_swingup.h5", directory / "run"
    write_episodes(data)
    status = call(["train", "--data", str(data), "--out", str(run), *SMALL, "--steps", "6"], directory / "log", 120)[0]
    assert status == 0, (directory / "log").read_text()
    return data, run


# ------------------------------------------------------------------------------------------------------ broken commands

NUMBERS = {
    "int": ("-7", "2.5", "nan", "abc", "1000000000000000000000000000000"),
    "float": ("nan", "inf", "-inf", "-1e9", "abc"),
}
COLLECT = {"episodes": "int", "steps": "int", "action-repeat": "int", "size": "int", "seed": "int", "num-envs": "int"}
IMAGINE = {"horizon": "int", "context": "int", "episode": "int", "start": "int", "samples": "int", "scale": "int"}
IMAGINE |= {"frames-per-second": "float", "seed": "int"}


def numeric_fields(config: type[Any]) -> dict[str, str]:
    """Field -> int or float, by the text of its annotation."""
    found = {}
    for name, annotation in config.__annotations__.items():
        text = str(annotation).replace(" ", "")
        kind = "float" if "float" in text else "int" if "int" in text else None
        if kind and "tuple" not in text and "dict" not in text:
            found[name] = kind
    return found


def option_cases() -> Iterator[Case]:
    """Every numeric option of every command with values that make no sense for any of them."""
    from aime.evaluation.protocol import EvaluationConfig
    from aime.world_model import WorldModelConfig

    train = {f"train.{name}": kind for name, kind in numeric_fields(TrainConfig).items()}
    for limit in ("seed", "epochs", "steps", "seconds"):
        train[limit] = train.pop(f"train.{limit}")
    train["minutes"] = "float"
    model = {f"model.{name}": kind for name, kind in numeric_fields(WorldModelConfig).items()}
    protocol = {f"protocol.{name}": kind for name, kind in numeric_fields(EvaluationConfig).items()}
    for options, command in (
        ({**train, **model}, train_command),
        ({**protocol, "rssm_seconds": "float"}, evaluate_command),
        (IMAGINE, imagine_command),
        (COLLECT, collect_command),
    ):
        for name, kind in options.items():
            flag = "--" + name.replace("_", "-")
            for value in NUMBERS[kind]:
                yield Case(
                    f"{command.__name__.removesuffix('_command')} {flag} {value}",
                    command(f"{flag}={value}"),
                    words=(name, name.replace("_", "-"), name.replace("-", "_"), name.rpartition(".")[2]),
                )


def train_command(*flags: str) -> Callable[[Path, Path], list[str]]:
    """A short training with these flags last; --steps only where they say nothing about the end."""
    ends = any(flag.partition("=")[0] in ("--steps", "--seconds", "--minutes", "--epochs") for flag in flags)
    limit = () if ends else ("--steps", "1")
    return lambda data, run: [
        *("train", "--data", str(data), "--out", str(run.with_name("out")), *SMALL, *limit),
        *(flag.format(data=data, run=run) for flag in flags),
    ]


def evaluate_command(*flags: str) -> Callable[[Path, Path], list[str]]:
    """A short evaluation."""
    return lambda data, run: [
        *("evaluate", str(run), "--data", str(data), "--out", str(run.with_name("out")), *PROTOCOL),
        *(flag.format(data=data, run=run) for flag in flags),
    ]


def imagine_command(*flags: str) -> Callable[[Path, Path], list[str]]:
    """A short imagination."""
    return lambda data, run: [
        *("imagine", str(run), "--data", str(data), "--out", str(run.with_name("out.gif"))),
        *("--horizon", "2", "--context", "2", "--samples", "1", "--device", "cpu"),
        *(flag.format(data=data, run=run) for flag in flags),
    ]


def collect_command(*flags: str) -> Callable[[Path, Path], list[str]]:
    """A short collection."""
    return lambda data, run: [
        *("collect", "--episodes", "1", "--steps", "2", "--size", "32", "--out", str(run.with_name("out.h5"))),
        *(flag.format(data=data, run=run) for flag in flags),
    ]


def raw(*arguments: str) -> Callable[[Path, Path], list[str]]:
    """These arguments and no others."""
    return lambda data, run: [argument.format(data=data, run=run) for argument in arguments]


def other_commands() -> Iterator[Case]:
    """Paths, choices, contradictions, unknown names, control characters."""
    nowhere, device, escape = "/nowhere/at/all", "/dev/null", "\x1b[31mred\x07"
    for name, command, words in (
        ("no command of this name", raw("trian"), ("train",)),
        ("command with escapes", raw(escape), ("command",)),
        ("flag without a value", raw("train", "--data"), ("data",)),
        ("flag that there is not", train_command("--learning-rat=1"), ("learning-rat",)),
        ("empty out", train_command("--out="), ("out",)),
        ("empty out, two arguments", train_command("--out", ""), ("out",)),
        ("empty data", train_command("--data="), ("data",)),
        ("empty argument", raw("evaluate", ""), ("evaluate", "argument")),
        ("data nowhere", train_command(f"--data={nowhere}"), (nowhere,)),
        ("data is a directory", train_command("--data={run}"), ("run",)),
        ("data is a device", train_command(f"--data={device}"), (device,)),
        ("data is JSON", train_command("--data={run}/config.json"), ("config.json",)),
        ("out is a file", train_command("--out={data}"), ("cartpole_swingup.h5",)),
        ("out below a file", train_command("--out={data}/x"), ("cartpole_swingup.h5",)),
        ("out below a device", train_command(f"--out={device}/x"), (device,)),
        ("out in /proc", train_command("--out=/proc/aime"), ("/proc",)),
        ("out is taken", train_command("--out={run}"), ("--resume",)),
        ("resume and overwrite", train_command("--resume", "--overwrite"), ("resume",)),
        ("seconds and minutes", train_command("--seconds=1", "--minutes=1"), ("minutes",)),
        ("preset", train_command("--preset=labtop"), ("preset",)),
        ("device", train_command("--device=gpu"), ("device",)),
        ("device meta", train_command("--device=meta"), ("device",)),
        ("device with escapes", train_command(f"--device={escape}"), ("device",)),
        ("balancer", train_command("--train.balancer=rgb2"), ("balancer",)),
        ("balancer option", train_command("--train.balancer-options", "alpha", "1"), ("alpha",)),
        ("balancer value", train_command("--train.balancer-options", "lambd", "NaN"), ("lambd",)),
        ("balancer text", train_command("--train.balancer-options", "alpha_steps", "many"), ("alpha_steps",)),
        ("balancer half", train_command("--train.balancer-options", "lambd"), ("balancer-options", "balancer_options")),
        ("precision", train_command("--train.precision=fp8"), ("precision",)),
        ("export", train_command("--train.export=none"), ("export",)),
        ("best metric", train_command("--train.best-metric=loss"), ("best_metric",)),
        ("betas crossed", train_command("--train.beta-min=2", "--train.beta-max=1"), ("beta_min",)),
        ("action size", train_command("--model.action-size=6"), ("action_size",)),
        ("image size", train_command("--model.image-size=64"), ("image_shape", "image_size")),
        ("window longer than episodes", train_command("--train.sequence-length=40"), ("40",)),
        ("run nowhere", raw("evaluate", nowhere), (nowhere,)),
        ("run without weights", raw("evaluate", "{run}/checkpoints"), ("weights",)),
        ("run is a device", raw("evaluate", device), (device,)),
        ("evaluate: data nowhere", evaluate_command(f"--data={nowhere}"), (nowhere,)),
        ("evaluate: split", evaluate_command("--protocol.split=tset"), ("tset",)),
        ("evaluate: out is a file", evaluate_command("--out={data}"), ("cartpole_swingup.h5",)),
        ("evaluate: out in /proc", evaluate_command("--out=/proc/aime"), ("/proc",)),
        ("evaluate: device", evaluate_command("--device=cuda:77"), ("device",)),
        ("evaluate: horizons", evaluate_command("--protocol.horizons", "0"), ("horizons",)),
        ("evaluate: context", evaluate_command("--protocol.context", "500"), ("context",)),
        ("imagine: suffix", imagine_command("--out={run}/film.avi"), ("film.avi",)),
        ("imagine: out in /proc", imagine_command("--out=/proc/aime/film.gif"), ("/proc",)),
        ("imagine: episode", imagine_command("--episode=99"), ("99",)),
        ("imagine: horizon", imagine_command("--horizon=400"), ("400",)),
        ("collect: policy", collect_command("--policy=smoth"), ("smooth",)),
        ("collect: domain", collect_command("--domain=cartpol"), ("cartpol",)),
        ("collect: domain with a path", collect_command("--domain=../../x"), ("domain",)),
        ("collect: domain with escapes", collect_command(f"--domain={escape}"), ("domain",)),
        ("collect: task", collect_command("--task=swing"), ("swing",)),
        ("collect: out exists", collect_command("--out={data}"), ("cartpole_swingup.h5",)),
        ("collect: out in /proc", collect_command("--out=/proc/aime/x.h5"), ("/proc",)),
        ("collect: renderer", collect_command("--renderer=vulkan"), ("renderer",)),
        ("bench: benchmark", raw("bench", "everything"), ("everything", "env")),
    ):
        yield Case(name, command, words=words)


def command_cases(seed: int, options: int = 150) -> list[Case]:
    """All of `other_commands`, and a seeded choice of option values."""
    drawn = list(option_cases())
    return [*other_commands(), *random.Random(seed).sample(drawn, min(options, len(drawn)))]


# ------------------------------------------------------------------------------------------ broken weights, checkpoints


def resume(*flags: str) -> Callable[[Path, Path], list[str]]:
    """Go on with the copied run."""
    return lambda data, run: [
        "train",
        "--data",
        str(data),
        "--out",
        str(run),
        *SMALL,
        "--steps",
        "8",
        "--resume",
        *flags,
    ]


def newest(run: Path) -> Path:
    """Directory of the newest checkpoint."""
    return max((run / "checkpoints").glob("step_*"))


def file_damages(seed: int) -> dict[str, Callable[[Path], None]]:
    """Ways to damage any file."""
    rng = random.Random(seed)

    def flip(path: Path, first: float, last: float) -> None:
        content = bytearray(path.read_bytes())
        place = min(len(content) - 1, int(len(content) * rng.uniform(first, last)))
        content[place] ^= 1 << rng.randrange(8)
        path.write_bytes(content)

    def cut(path: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * rng.uniform(0.05, 0.95))])

    def replace(path: Path, content: bytes) -> None:
        path.write_bytes(content)

    def directory(path: Path) -> None:
        path.unlink()
        path.mkdir()

    def pipe(path: Path) -> None:
        path.unlink()
        os.mkfifo(path)

    return {
        "bit at the start": lambda path: flip(path, 0, 0.02),
        "bit": lambda path: flip(path, 0.02, 0.98),
        "bit at the end": lambda path: flip(path, 0.98, 1),
        "cut": cut,
        "empty": lambda path: replace(path, b""),
        "gone": lambda path: path.unlink(),
        "directory": directory,
        "pipe": pipe,
        "noise": lambda path: replace(path, rng.randbytes(1000)),
        "zeros": lambda path: replace(path, bytes(path.stat().st_size)),
    }


def file_cases(seed: int) -> Iterator[Case]:
    """Damaged files of weights, of the newest checkpoint, of all checkpoints, and of the run."""
    for how, damage in file_damages(seed).items():
        for file in ("config.json", "model.safetensors"):

            def weights(run: Path, file: str = file, damage: Callable[[Path], None] = damage) -> None:
                damage(run / "weights" / file)

            yield Case(f"weights/{file}: {how}", evaluate_command(), weights, words=("weights", file))
        for number in range(2):

            def one(run: Path, number: int = number, damage: Callable[[Path], None] = damage) -> None:
                damage(sorted(newest(run).iterdir())[number])

            def every(run: Path, number: int = number, damage: Callable[[Path], None] = damage) -> None:
                for step in (run / "checkpoints").glob("step_*"):
                    damage(sorted(step.iterdir())[number])

            yield Case(f"newest checkpoint, file {number}: {how}", resume(), one, SKIPPED, ("step_00000006",))
            yield Case(f"all checkpoints, file {number}: {how}", resume(), every, words=("step_00000006",))
    for file, text in (
        *(
            (name, text)
            for name in ("checkpoints/best.json", "timing.json")
            for text in ("", "[]", "{", '{"step": "x"}')
        ),
        *(("metrics.jsonl", text) for text in ("", "garbage\n", '{"step": 1\n', "\x1b[31m\n", "[[[[" * 50_000 + "\n")),
        *(("run.json", text) for text in ("", "{", "null")),
    ):

        def write(run: Path, file: str = file, text: str = text) -> None:
            (run / file).write_text(text)

        yield Case(f"{file}: {text[:12]!r}", resume(), write, EITHER, (file, "trained"))
    for file, text in (
        *(("weights/config.json", text) for text in ("{}", "null", "[]", '{"latent_dim": NaN}', '{"latent_dim": "x"}')),
        *(("weights/config.json", text) for text in ('{"hidden_dim": 17}', '{"no_such": 1}', '{"image_size": -3}')),
        *(("run.json", text) for text in ("{", "[]")),
        *(("timing.json", text) for text in ("{", "[]")),
    ):

        def write_weights(run: Path, file: str = file, text: str = text) -> None:
            (run / file).write_text(text)

        yield Case(f"evaluate, {file}: {text}", evaluate_command(), write_weights, words=("weights", file))


def like(tensor: torch.Tensor, how: str) -> torch.Tensor:
    """A tensor that is wrong in one respect."""
    if how == "shape":
        return torch.zeros(2 if tensor.shape != (2,) else 3, dtype=tensor.dtype)
    if how == "longer":
        return torch.zeros(tensor.numel() + 1, dtype=tensor.dtype)
    if how == "dtype":
        return tensor.to(torch.int32 if tensor.dtype != torch.int32 else torch.float32)
    return torch.full_like(tensor, float("nan")) if tensor.is_floating_point() else torch.full_like(tensor, -1)


def spoil(found: dict[str, torch.Tensor], kind: str, how: str) -> None:
    """Make the first tensor whose name holds `kind` wrong, or leave it out, or add one."""
    if how == "more":
        found["model/one_more"] = torch.zeros(3)
        return
    tensor = found.pop(name := next(name for name in found if kind in name))
    if how != "gone":
        found[name] = like(tensor, how)


def spoil_weights(run: Path, how: str) -> None:
    """The same with exported weights, as somebody who edits them would leave them."""
    from safetensors.torch import load_file, save_file

    (run / "weights" / "checksums.json").unlink(missing_ok=True)
    path = run / "weights" / "model.safetensors"
    found = load_file(path)
    spoil(found, "encoder.", how)
    save_file(found, path)


def tensor_cases() -> Iterator[Case]:
    """Checkpoints and weights that are whole files with wrong contents."""
    kinds = ("model/", "exp_avg", "exp_avg_sq", "/step", "balancer/ema", "balancer/alpha", "balancer/reach")
    ways = ("shape", "longer", "dtype", "NaN", "gone")
    for kind in (*kinds, "balancer/step", "random/torch", "random/generator", "guard/"):
        for how in ways:
            spoiled = partial(spoil, kind=kind, how=how)
            # a generator's state of -1 everywhere is one that torch takes: it must only not be a crash
            expected = EITHER if kind in ("random/torch", "random/generator", "guard/") and how == "NaN" else REFUSED
            yield Case(
                f"checkpoint, {kind}: {how}",
                resume(),
                partial(rewrite, tensors=spoiled),
                expected,
                ("step_00000006", "trained"),
            )
    more = partial(spoil, kind="", how="more")
    yield Case("checkpoint: one tensor more", resume(), partial(rewrite, tensors=more), words=("one_more",))
    for name, change in value_changes().items():
        yield Case(f"checkpoint, {name}", resume(), partial(rewrite, values=change), words=("step_00000006",))
    for how in (*ways, "more"):
        yield Case(f"weights, tensor: {how}", evaluate_command(), partial(spoil_weights, how=how), words=("weights",))


def value_changes() -> Mapping[str, Callable[[dict[str, Any]], None]]:
    """Ways to spoil the plain values of a checkpoint."""

    def put(*path: str, value: Any) -> Callable[[dict[str, Any]], None]:
        def change(values: dict[str, Any]) -> None:
            for key in path[:-1]:
                values = values[key]
            values[path[-1]] = value

        return change

    return {
        "no counters": lambda values: values.pop("counters"),
        "no sampler": lambda values: values.pop("sampler"),
        "no random": lambda values: values.pop("random"),
        "counters a list": put("counters", value=[]),
        "step negative": put("counters", "step", value=-3),
        "step a word": put("counters", "step", value="six"),
        "seconds a word": put("counters", "seconds", value="long"),
        "one counter more": put("counters", "laps", value=3),
        "sampler of another batch size": put("sampler", "batch_size", value=64),
        "sampler position negative": put("sampler", "position", value=-1),
        "sampler a word": put("sampler", value="x"),
        "python state short": put("random", "python", value=[3, [1, 2, 3], None]),
        "python state a word": put("random", "python", value="x"),
        "numpy state short": put("random", "numpy", value=["MT19937", [1], 0, 0, 0.0]),
        "numpy state of words": put("random", "numpy", value=["MT19937", ["a"] * 624, 0, 0, 0.0]),
        "another model": put("config", "hidden_dim", value=32),
        "config a list": put("config", value=[]),
    }


def rewrite(
    run: Path,
    tensors: Callable[[dict[str, torch.Tensor]], None] | None = None,
    values: Callable[[dict[str, Any]], None] | None = None,
) -> None:
    """Change what the newest checkpoint holds, and save it as a whole one."""
    directory = CheckpointDirectory(run / "checkpoints", keep=99)
    step = directory.latest()
    assert step is not None
    checkpoint = directory.load(step)
    changed_tensors, changed_values = dict(checkpoint.tensors), json.loads(json.dumps(checkpoint.values))
    if tensors is not None:
        tensors(changed_tensors)
    if values is not None:
        values(changed_values)
    shutil.rmtree(directory.directory(step))
    directory.save(step, Checkpoint(changed_tensors, changed_values))


def run_cases(seed: int) -> list[Case]:
    """All broken weights and checkpoints."""
    return [*file_cases(seed), *tensor_cases()]


# --------------------------------------------------------------------------------------------------------------- runner


def call(arguments: Sequence[str], log: Path, seconds: float) -> tuple[int, float, float]:
    """Run `aime` in a forked process: its exit status (-signal where it was killed, -SIGALRM for a hang), time, MB.

    The memory is what it took at most beyond that of this process, which a fork begins with.
    """
    begin = time.monotonic()
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os._exit(_in_child(arguments, log))
    while True:
        ended, status, usage = os.wait4(child, os.WNOHANG)
        if ended:
            break
        if time.monotonic() - begin > seconds:
            os.kill(child, signal.SIGKILL)
            _, _, usage = os.wait4(child, 0)
            return -signal.SIGALRM, time.monotonic() - begin, usage.ru_maxrss / 1024 - resident
        time.sleep(0.005)
    return os.waitstatus_to_exitcode(status), time.monotonic() - begin, usage.ru_maxrss / 1024 - resident


def _in_child(arguments: Sequence[str], log: Path) -> int:
    status = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        warnings.resetwarnings()  # pytest's are errors; a user's are lines
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
        status = cli.main(list(arguments))
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:  # noqa: BLE001 - as the interpreter would end
        traceback.print_exc()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    return status & 0xFF


def run_case(case: Case, base: tuple[Path, Path], work: Path, seconds: float = 60.0) -> Outcome:
    """Break a copy of the run, run the command on it, and judge how it ended."""
    data, run = base[0], work / "run"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    shutil.copytree(base[1], run)
    if case.prepare is not None:
        case.prepare(run)
    status, took, megabytes = call(case.arguments(data, run), work / "log", seconds)
    output = (work / "log").read_text("utf-8", "replace")
    return Outcome(case.name, judge(case, status, output), status, output, took, megabytes)


def judge(case: Case, status: int, output: str) -> str:
    """The verdict on how a case ended."""
    if status == -signal.SIGALRM:
        return "hang"
    if status < 0 or status in (134, 139):
        return "crash"
    if "Traceback (most recent call last)" in output:
        return "traceback"
    if status == 0 and case.expected == REFUSED:
        return "accepted"
    if status == 0 and case.expected == SKIPPED and not any(word in output for word in case.words):
        return "accepted"
    escapes = any(ord(character) < 32 and character not in "\n\r\t" for character in output)
    named = not case.words or any(word in output for word in case.words)
    return "clear" if named and not escapes and "unexpected " not in output else "unclear"


def main() -> int:
    """Run all cases (or every n-th) and print the figures, and everything that is not clear."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--only", choices=("commands", "runs"))
    parser.add_argument("--match", default="", help="only cases whose name holds this")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    worst = 0
    with tempfile.TemporaryDirectory() as directory:
        base = make_base(Path(directory))
        for title, cases in (("commands", command_cases(flags.seed)), ("runs", run_cases(flags.seed))):
            if flags.only not in (None, title):
                continue
            verdicts: Counter[str] = Counter()
            memory = 0.0
            for case in [case for case in cases if flags.match in case.name][:: flags.every]:
                outcome = run_case(case, base, Path(directory) / "work")
                verdicts[outcome.verdict] += 1
                memory = max(memory, outcome.megabytes)
                if outcome.verdict != "clear" or flags.match:
                    last = (outcome.output.strip().splitlines() or [""])[-1][:160]
                    print(f"{outcome.verdict:9} {outcome.status:4} {outcome.seconds:5.1f}s {outcome.name}: {last!r}")
            worst += sum(verdicts.values()) - verdicts["clear"]
            print(f"{title}: {sum(verdicts.values())} tried, {dict(verdicts)}, at most {memory:.0f} MB", flush=True)
    return int(worst > 0)


if __name__ == "__main__":
    sys.exit(main())
