"""Weights & Biases as a destination of metrics and films."""

from __future__ import annotations

import io
import secrets
from pathlib import Path
from typing import Any

import torch

from aime.files import naming
from aime.ranges import OptionError
from aime.training.metric_log import Record
from aime.training.pictures import Pictures, encode_gif

ID_FILE = "aime_run_id"


def load_wandb() -> Any:
    """The package; OptionError that names the extra where it is not installed."""
    try:
        import wandb
    except ImportError as error:
        raise OptionError(
            f"wandb_project: expected wandb, found it missing ({error}): pip install 'aime[tracking]'"
        ) from error
    return wandb


class WeightsAndBiases:
    """Metrics under their names in metrics.jsonl, films of validation as videos (GIF).

    Where it writes and whether it speaks to a server is W&B's to say: `WANDB_MODE=offline` keeps all in the run
    directory, `wandb sync` sends it later. A resumed run continues under its former id, in which W&B keeps what was
    logged after the checkpoint and ignores those steps when they come again.

    Args:
        project: of W&B.
        directory: the run's; W&B writes below it, in wandb/.
        resume_step: the step from which a run goes on; None for a new one.

    Raises:
        OptionError: see `load_wandb`.
    """

    def __init__(self, project: str, directory: Path, resume_step: int | None = None) -> None:
        wandb = load_wandb()
        (directory / "wandb").mkdir(exist_ok=True)
        place = directory / "wandb" / ID_FILE
        with naming(place):
            if resume_step is None or not place.is_file():
                place.write_text(secrets.token_hex(4))
            identity = place.read_text().strip()
        self._run: Any = wandb.init(
            project=project, name=directory.name, dir=str(directory), id=identity, resume="allow", reinit="create_new"
        )
        self._video = wandb.Video

    def write(self, step: int, record: Record) -> None:
        """Log numbers."""
        self._run.log(dict(record), step=step)

    def show(self, step: int, pictures: Pictures) -> None:
        """Log films: those of one name above each other."""
        for name, films in pictures.films.items():
            column = torch.cat(list(films), -2)  # (T, C, N H, W)
            video = self._video(io.BytesIO(encode_gif(column)), format="gif")
            self._run.log({f"validation/{name}": video}, step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()
