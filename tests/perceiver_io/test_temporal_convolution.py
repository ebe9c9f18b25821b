"""Properties of time in the tokenizer: causality by gradient, prefixes, exact lengths, groups with an exact inverse."""

import pytest
import torch

from aime.perceiver_io import VQPTTokenizer
from aime.perceiver_io.temporal_convolution import count_groups, group_frames, ungroup_frames


def tokenizer(**options: object) -> VQPTTokenizer:
    torch.manual_seed(0)
    return VQPTTokenizer(3, 8, 16, 8, 8, patch_size=4, **options).eval()


def video(frames: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, frames, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 9])
def test_groups_of_frames_have_an_exact_inverse(size: int, frames: int) -> None:
    x = torch.randn(2, frames, 3, 2, 2)
    groups = group_frames(x, size)
    assert groups.shape == (2, count_groups(frames, size), 3 * size, 2, 2)
    assert torch.equal(ungroup_frames(groups, size, frames), x)


def test_a_length_that_makes_another_number_of_groups_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected a length of 3 groups of 2, found 6"):
        ungroup_frames(torch.zeros(1, 3, 4, 1, 1), 2, 6)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_no_token_has_a_gradient_of_a_later_frame_and_each_of_the_one_before(size: int) -> None:
    net, frames = tokenizer(temporal_downsample=size), video(9).requires_grad_()
    encodings = net.encode(frames)[0].encodings
    for j in range(encodings.shape[1]):
        (gradient,) = torch.autograd.grad(encodings[:, j].square().sum(), frames, retain_graph=True)
        reached = gradient.abs().amax((0, 2, 3, 4)) > 0
        assert not reached[size * j + 1 :].any()
        # three convolutions of kernel 2 (two scales, and the one to the encoding) see three frames back
        assert reached[max(size * j - 3, 0) : size * j + 1].all()


def test_no_decoded_frame_has_a_gradient_of_a_later_token() -> None:
    net = tokenizer()
    codes = torch.randn(1, 6, 2, 2, 8, requires_grad=True)
    frames = net.decode(codes)
    for t in range(6):
        (gradient,) = torch.autograd.grad(frames[:, t].square().sum(), codes, retain_graph=True)
        reached = gradient.abs().amax((0, 2, 3, 4)) > 0
        assert reached[max(t - 2, 0) : t + 1].all()
        assert not reached[t + 1 :].any()


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_first_frame_alone_is_the_start_of_any_video(size: int) -> None:
    net, frames = tokenizer(temporal_downsample=size), video(6)
    whole, first = net.encode(frames)[0], net.encode(frames[:, :1])[0]
    # largest difference measured: 6e-7 (another batch of the same products)
    torch.testing.assert_close(first.encodings, whole.encodings[:, :1], rtol=0, atol=1e-5)
    full = 1 + size  # the first group of several frames
    torch.testing.assert_close(net.encode(frames[:, :full])[0].encodings, whole.encodings[:, :2], rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("frames", [1, 2, 7, 16])
def test_decoding_gives_as_many_frames_as_were_encoded(size: int, frames: int) -> None:
    net = tokenizer(temporal_downsample=size)
    tokens, _ = net.encode(video(frames))
    assert tokens.ids.shape == (1, net.token_frames(frames), 2, 2)
    assert net.decode(tokens.quantized, 16, 16, frames).shape == (1, frames, 3, 16, 16)


def test_temporal_downsampling_is_refused_where_it_cannot_be() -> None:
    with pytest.raises(ValueError, match="temporal_downsample: expected 1 for maps of a trunk, found 2"):
        VQPTTokenizer(feature_channels=4, temporal_downsample=2)
    with pytest.raises(ValueError, match="temporal_downsample: expected at least 1, found 0"):
        VQPTTokenizer(temporal_downsample=0)
    net = tokenizer(temporal_downsample=2)
    _, memory = net.encode(video(2))
    with pytest.raises(ValueError, match="memory: expected none with temporal down-sampling"):
        net.encode(video(2), memory)
