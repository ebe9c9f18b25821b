"""What the trainer is told: a typed configuration, every field documented, and the training half of the presets."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self

from aime.data import Augmentation
from aime.ranges import SEED, SHARE, OptionError, Range, UnknownOptionError, check_ranges

Precision = Literal["auto", "float32", "bfloat16"]
Export = Literal["best", "last"]
CudaGraph = Literal["auto", "on", "off"]
WEIGHT = Range(0, 1e6)  # of a loss

RGB_OPTIONS: dict[str, Any] = {"alpha_steps": 1, "update_interval": 2, "lr_inner": 0.1}


@dataclass(frozen=True)
class TrainConfig:
    """How to train. A run ends at the first of `epochs`, `steps` and `seconds` that it reaches."""

    batch_size: Annotated[int, Range(1, 65536)] = 32
    """B, windows in a batch: that of all processes together in a distributed run."""
    sequence_length: Annotated[int, Range(1, 65536)] = 16
    """T, frames in a window."""
    consecutive: Annotated[int, Range(1, 65536)] = 1
    """Batches in a row whose windows follow each other in their episodes, before new episodes are drawn."""
    epochs: Annotated[float, Range(above=0)] | None = None
    """Stop after this many passes over the training frames (an epoch is as many steps as B * T goes into them)."""
    steps: Annotated[int, Range(1, 10**12)] | None = None
    """Stop after this many optimizer steps."""
    seconds: Annotated[float, Range(above=0)] | None = None
    """Stop after this much wall-clock time of training (validation and checkpoints included, start-up not)."""
    seed: Annotated[int, SEED] = 1
    """Seed of weights, windows, noise and splits."""

    learning_rate: Annotated[float, Range(above=0, to=1)] = 3e-4
    """AdamW's peak learning rate; the model's parameter groups hold multiples of it."""
    weight_decay: Annotated[float, Range(0, below=1)] = 1e-5
    """AdamW's decoupled weight decay, on matrices only."""
    warmup_fraction: Annotated[float, SHARE] = 0.03
    """Share of the run in which the learning rate rises linearly from 0."""
    final_learning_rate: Annotated[float, SHARE] = 0.05
    """Learning rate at the end of the cosine, as a share of the peak."""
    grad_clip: Annotated[float, Range(above=0)] = 5.0
    """Largest norm of the balanced gradient."""
    weight_average: Annotated[float, Range(0, below=1)] = 0.99
    """Decay of the moving average of the weights, which is what is validated and exported; 0: no average."""
    rehearsals: Annotated[int, Range(0, 1000)] = 0
    """Latent rehearsals after each step: steps of recurrence and prior on remembered posteriors. From the first step
    on; begun at half of the run they left horizons 5 and 15 lower by 1.5 and 1.8 dB, since what the prior foresees
    early shapes what the posterior keeps."""
    rehearsal_batch: Annotated[int, Range(1, 65536)] = 64
    """Sequences of a rehearsal."""
    rehearsal_length: Annotated[int, Range(2, 65536)] = 50
    """Frames of such a sequence."""
    rehearsal_age: Annotated[int, Range(0, 10**9)] = 0
    """Steps after which a posterior is not rehearsed any more, since the encoder has moved on; 0: never. Sequences
    of that age are at most `consecutive` * `sequence_length` frames long; where `rehearsal_length` is more, they are a
    half or a quarter of it."""
    rehearsal_seen: Annotated[int, Range(1, 65536)] = 5
    """Fewest frames that are given as they were seen before the rest is rolled out."""
    rehearsal_rolled: Annotated[float, SHARE] = 0.5
    """Share of a rehearsal's sequences that are rolled out; of the others every frame is given."""
    precision: Precision = "auto"
    """Autocast: bfloat16 on GPUs and on CPUs that multiply it themselves, float32 elsewhere; or the one named."""

    cuda_graph: CudaGraph = "auto"
    """Steps and rehearsals as CUDA graphs, replayed without their Python: where the device, the model and the balancer
    allow it (auto), or else an error (on). On an H100 2.0 to 5.3 times the frames a second."""
    compile: bool = False
    """torch.compile of trunk, posterior head and decoder. Off, since no measurement has earned it: a laptop step takes
    1.04 times as long, after 15 s of compiling. Not under CUDA graphs, nor in several processes."""

    beta_min: Annotated[float, WEIGHT] = 0.5
    """Weight of the KL terms at the start."""
    beta_max: Annotated[float, WEIGHT] = 1.0
    """Weight of the KL terms after their warm-up."""
    beta_warmup_fraction: Annotated[float, SHARE] = 0.1
    """Share of the run in which beta rises (half a cosine) from beta_min to beta_max."""
    entropy_weight: Annotated[float, WEIGHT] = 0.0
    """Weight of the bonus on the mixture's entropy."""
    lambda_recon: Annotated[float, WEIGHT] = 1.0
    """Weight of the reconstruction loss."""
    lambda_att_dyn: Annotated[float, WEIGHT] = 0.1
    """Weight of the attention's centre-motion loss."""
    lambda_gram: Annotated[float, WEIGHT] = 0.05
    """Weight of the Gram loss against the teacher."""
    lambda_diversity: Annotated[float, WEIGHT] = 0.01
    """Weight of the slots' diversity."""
    lambda_img: Annotated[float, WEIGHT] = 1.0
    """Weight of the adversarial task, where the model has critics. RGB gives every task's gradient the same length:
    with it, this says only whether there is such a task."""

    balancer: str = "rgb"
    """Gradient balancer over the tasks: "rgb" or "sum", or with the extra torchjd "upgrad", "mgda", "pcgrad",
    "aligned_mtl", "imtl_g" or "config"."""
    balancer_options: dict[str, Any] = field(default_factory=lambda: dict(RGB_OPTIONS))
    """Options of the balancer, by name; none where another balancer than RGB is named without any."""

    gradients_every: Annotated[int, Range(0, 10**9)] = 0
    """Steps between two reports of each task's gradient in each part of the model, norms and cosines; 0: none."""
    log_every: Annotated[int, Range(1, 10**9)] = 10
    """Steps between two lines of metrics.jsonl."""
    validate_every: Annotated[int, Range(0, 10**9)] = 200
    """Steps between two validations; 0 validates only at the end."""
    validation_batches: Annotated[int, Range(1, 65536)] = 4
    """Batches of held-out windows in a validation, the same ones each time."""
    checkpoint_every: Annotated[int, Range(0, 10**9)] = 500
    """Steps between two checkpoints; 0 saves only at the end."""
    keep_checkpoints: Annotated[int, Range(1, 10**6)] = 2
    """Latest checkpoints to keep; the best one by validation is kept besides."""
    validation_films: Annotated[int, Range(0, 64)] = 2
    """Held-out windows that each validation draws for TensorBoard and W&B: truth, reconstruction, open loop, map."""
    wandb_project: str | None = None
    """Send metrics and films to this project of Weights & Biases, with the extra tracking; under `WANDB_MODE=offline`
    they stay in the run directory."""
    best_metric: str = "total_loss"
    """Validation loss that decides which checkpoint is the best."""
    export: Export = "best"
    """Whose weights are exported at the end: the best checkpoint's by validation, or the last step's."""
    bad_steps_allowed: Annotated[int, Range(0, 10**6)] = 10
    """Steps in a row with NaN or infinite gradients that are skipped; one more stops the run and saves the batch."""

    augment_shift: Annotated[int, Range(0, 256)] = 0
    """Training windows are moved by up to this many pixels, up or down and to either side. Off, as the two below, since
    no measurement here has earned it: the model subtracts a mean image that stays where it is."""
    augment_jitter: Annotated[float, Range(0, below=1)] = 0.0
    """Brightness, contrast and saturation of training windows are multiplied with factors of up to 1 +- this."""
    augment_zoom: Annotated[float, SHARE] = 0.0
    """Probability that a training window is zoomed towards what moves in it."""

    cache_gigabytes: Annotated[float, Range(0, 10**6)] = 2.0
    """Training frames are held in memory, of each process, when they fit in this."""
    prefetch: Annotated[int, Range(1, 1024)] = 2
    """Batches that a background thread has ready."""
    rank_timeout: Annotated[float, Range(above=0, to=86400)] = 600.0
    """Seconds that a process of a distributed run waits for the others before it gives up; longer than a checkpoint or
    a validation of one process takes."""
    shard: bool = False
    """Divide parameters, moments, averages and task gradients among the processes of a distributed run, for models
    that do not fit a GPU several times (docs/scaling.md). Checkpoints are the same with and without."""
    initial_frames: Annotated[int, Range(1, 10**7)] = 2048
    """Training frames from which the mean image and the codebook are initialised."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.balancer != "rgb" and self.balancer_options == RGB_OPTIONS:  # the default is of RGB alone
            object.__setattr__(self, "balancer_options", {})
        if self.epochs is None and self.steps is None and self.seconds is None:
            raise OptionError("expected an end of the run (epochs, steps or seconds), found none of them")
        if self.beta_min > self.beta_max:
            raise OptionError(f"beta_min: expected at most beta_max ({self.beta_max}), found {self.beta_min}")

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> Self:
        """The training half of a preset, with any field (or alias) overridden.

        An end of the run among the overrides replaces the preset's: `preset("tier1", steps=100)` runs 100 steps.

        Raises:
            ValueError: unknown preset.
            TypeError: unknown field; the near ones are listed.
        """
        if name not in PRESETS:
            near = difflib.get_close_matches(name, PRESETS, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise OptionError(f"preset: expected one of {', '.join(PRESETS)}, found {name!r}{hint}")
        values = dict(PRESETS[name])
        overrides = resolve_aliases(overrides)
        if overrides.get("balancer", "rgb") != "rgb":  # the presets' options are RGB's
            values.pop("balancer_options", None)
        if any(overrides.get(limit) is not None for limit in ("epochs", "steps", "seconds")):
            for limit in ("epochs", "steps", "seconds"):
                values.pop(limit, None)
        return cls(**{**values, **overrides})

    @classmethod
    def from_names(cls, **names: Any) -> Self:
        """A configuration from field names or the aliases of `ALIASES`; TypeError for an unknown name."""
        return cls(**resolve_aliases(names))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)

    def augmentation(self) -> Augmentation:
        """What is done to training windows on their device."""
        return Augmentation(self.augment_shift, self.augment_jitter, self.augment_zoom)

    def loss_weights(self) -> dict[str, float]:
        """The weights that the model's losses take, beta aside."""
        names = ("entropy_weight", "lambda_recon", "lambda_att_dyn", "lambda_gram", "lambda_diversity", "lambda_img")
        return {name: getattr(self, name) for name in names}


_LAPTOP: dict[str, Any] = {
    "batch_size": 16,
    "sequence_length": 16,
    "steps": 2600,
    "learning_rate": 2e-3,
    "beta_min": 0.0,
    "rehearsals": 1,
    "consecutive": 4,
    "rehearsal_age": 64,
    # Strong proximity keeps rotations small: at lambd = 1 the latent KL was a quarter larger than without any.
    "balancer_options": {"alpha_steps": 1, "update_interval": 2, "lr_inner": 0.1, "lambd": 30.0},
    "validate_every": 400,
    "export": "last",
}

PRESETS: dict[str, dict[str, Any]] = {
    "laptop": _LAPTOP,
    "pillars": _LAPTOP,
    "tier1": {
        "batch_size": 16,
        "sequence_length": 10,
        "epochs": 2,  # 100 steps, 3.4 minutes of a core; the older documents' 50 are an hour and a half (docs/tiers.md)
        "learning_rate": 3e-4,
        "beta_warmup_fraction": 25 / 50,
        "validate_every": 28,
        "checkpoint_every": 28,
    },
    "tier2": {
        "batch_size": 32,
        "sequence_length": 20,
        "epochs": 200,
        "learning_rate": 2e-4,
        "beta_warmup_fraction": 25 / 200,
        "log_every": 50,
        "validate_every": 1000,
        "checkpoint_every": 2000,
        "cache_gigabytes": 16.0,
    },
    "tier3": {
        "batch_size": 32,
        "sequence_length": 50,
        "epochs": 500,
        "learning_rate": 2e-4,
        "beta_warmup_fraction": 25 / 500,
        "log_every": 100,
        "validate_every": 2000,
        "checkpoint_every": 5000,
        "cache_gigabytes": 32.0,
    },
}
"""Training part of the presets; the sizes of the model are in aime.world_model.config."""

ALIASES: dict[str, str] = {
    "num_epochs": "epochs",
    "n_epochs": "epochs",
    "max_epochs": "epochs",
    "num_steps": "steps",
    "max_steps": "steps",
    "lr": "learning_rate",
    "video_length": "sequence_length",
    "checkpoint_interval": "checkpoint_every",
    "log_interval": "log_every",
    "beta": "beta_max",
    "max_grad_norm": "grad_clip",
}
"""Names in the older documents, and the fields they mean."""


def resolve_aliases(names: Mapping[str, Any]) -> dict[str, Any]:
    """Replace aliases by field names; TypeError for an unknown name (the near ones are listed) or one given twice."""
    known = {f.name for f in dataclasses.fields(TrainConfig)}
    resolved: dict[str, Any] = {}
    for name, value in names.items():
        target = ALIASES.get(name, name)
        if target not in known:
            near = difflib.get_close_matches(name, [*known, *ALIASES], n=3, cutoff=0.5)
            hint = f"; did you mean {' or '.join(near)}?" if near else f"; fields are {', '.join(sorted(known))}"
            raise UnknownOptionError(f"unknown training option {name!r}{hint}")
        if target in resolved:
            raise UnknownOptionError(f"training option {target!r} is given twice, once as {name!r}")
        resolved[target] = value
    return resolved
