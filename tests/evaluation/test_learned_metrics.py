"""LPIPS and FVD as distances, on networks of random weights; their published weights are not part of the tests."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from aime.evaluation.forecasters import CopyLast, WorldModelForecaster
from aime.evaluation.learned_metrics import CONVOLUTIONS, LPIPS, LearnedMetrics, VideoFeatures, frechet_distance
from aime.evaluation.open_loop import score_open_loop
from aime.evaluation.protocol import EvaluationConfig, clip_length, cut_clips
from tests.evaluation.ring_world import RingModel, RingWorld


@pytest.fixture(scope="module")
def lpips_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Files of the published layouts."""
    generator = torch.Generator().manual_seed(0)
    backbone, linear = {}, {}
    for index, (entry, before, channels, kernel, *_) in enumerate(CONVOLUTIONS):
        shape = (channels, before, kernel, kernel)
        backbone[f"features.{entry}.weight"] = torch.randn(shape, generator=generator) * (before * kernel**2) ** -0.5
        backbone[f"features.{entry}.bias"] = torch.zeros(channels)
        linear[f"lin{index}.model.1.weight"] = torch.rand(1, channels, 1, 1, generator=generator)
    backbone["classifier.1.weight"] = torch.zeros(2, 2)  # the rest of AlexNet is not read
    place = tmp_path_factory.mktemp("weights")
    save_file(backbone, place / "alexnet.safetensors")
    save_file(linear, place / "alex.safetensors")
    return place / "alexnet.safetensors", place / "alex.safetensors"


@pytest.fixture(scope="module")
def video_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    class Network(torch.nn.Module):
        def forward(
            self, x: Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False
        ) -> Tensor:
            assert not rescale and not resize and return_features
            assert x.shape[1] == 3 and x.shape[3] == 224
            return torch.cat([x.mean((3, 4)).flatten(1), x.diff(dim=2).abs().mean((3, 4)).flatten(1)], 1)

    path = tmp_path_factory.mktemp("video") / "i3d.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(Network()).save(str(path))
    return path


def test_lpips_is_a_distance_that_grows_with_the_distortion(lpips_files: tuple[Path, Path]) -> None:
    distance = LPIPS(*lpips_files)
    image = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(2))
    near, far = image + 5 * noise, image + 60 * noise
    assert torch.equal(distance(image.float(), image), torch.zeros(2))
    assert bool((distance(far, image) > 2 * distance(near, image)).all()) and bool((distance(near, image) > 0).all())
    torch.testing.assert_close(distance(near, image), distance(image.float(), near.clamp(0, 255)))


def test_frechet_distance_of_gaussians_is_known() -> None:
    generator = torch.Generator().manual_seed(0)
    ours = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    theirs = ours @ torch.randn(6, 6, generator=generator).double() + 2.0
    covariances = [np.cov(x.numpy().T) for x in (ours, theirs)]
    root = np.linalg.eigvals(covariances[0] @ covariances[1])  # of a product of positive matrices: positive
    expected = np.square((ours.mean(0) - theirs.mean(0)).numpy()).sum()
    expected += np.trace(covariances[0] + covariances[1]) - 2 * np.sqrt(np.abs(root)).sum()
    assert frechet_distance(ours, theirs) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(ours, ours) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(ours, ours + 3.0) == pytest.approx(6 * 9.0)
    with pytest.raises(ValueError, match="at least two samples"):
        frechet_distance(ours[:1], theirs)


def test_forecasts_are_scored_where_there_are_weights(
    ring: RingWorld, lpips_files: tuple[Path, Path], video_file: Path
) -> None:
    config = EvaluationConfig(horizons=(1, 12), context=4, samples=2, starts=2, films=1)
    episodes = [7, 8]
    clips = cut_clips(ring, episodes, clip_length(ring, episodes, config), config.starts)
    forecasters = {"model": WorldModelForecaster(RingModel()), "copy_last": CopyLast()}
    large = clips.observations.shape[-1] >= 32
    learned = LearnedMetrics(LPIPS(*lpips_files) if large else None, VideoFeatures(video_file))
    scores = score_open_loop(forecasters, clips, config, ssim=False, shuffle=False, learned=learned).scores
    assert scores["model"].fvd == pytest.approx(0.0, abs=1e-6)
    assert scores["copy_last"].fvd > 1e-3
    assert large, "the ring world's frames are too small for LPIPS"
    assert scores["model"].horizons[12]["lpips"].mean == pytest.approx(0.0, abs=1e-6)
    assert scores["copy_last"].horizons[12]["lpips"].mean > 1e-3
    without = score_open_loop(forecasters, clips, config, ssim=False, shuffle=False).scores["copy_last"]
    assert without.fvd is None and without.horizons[12]["lpips"].mean is None


def test_errors_name_the_file_and_what_it_should_be(lpips_files: tuple[Path, Path], tmp_path: Path) -> None:
    backbone, linear = lpips_files
    with pytest.raises(FileNotFoundError, match=r"gone.safetensors: expected torchvision's AlexNet, found no file"):
        LPIPS(tmp_path / "gone.safetensors", linear)
    with pytest.raises(
        ValueError, match=r"alex.safetensors: expected features.0.weight of shape \(64, 3, 11, 11\), found none"
    ):
        LPIPS(linear, linear)
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(
        ValueError, match="text.pth: expected LPIPS's weightings .* as .safetensors, found .pth: python"
    ):
        LPIPS(backbone, tmp_path / "text.pth")
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(ValueError, match="text.safetensors"):
        LPIPS(backbone, tmp_path / "text.safetensors")
    with pytest.raises(FileNotFoundError, match="expected I3D as TorchScript for FVD, found no file"):
        VideoFeatures(tmp_path / "gone.pt")
    with pytest.raises(ValueError, match="text.pth: expected I3D as TorchScript for FVD, found another file"):
        VideoFeatures(tmp_path / "text.pth")


def test_a_clip_too_short_or_an_image_too_small_is_said(lpips_files: tuple[Path, Path], video_file: Path) -> None:
    with pytest.raises(ValueError, match="at least 32 pixels a side, found 16 x 16"):
        LPIPS(*lpips_files)(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match="at least 9 frames, found 4"):
        VideoFeatures(video_file)(torch.zeros(1, 4, 3, 16, 16))
