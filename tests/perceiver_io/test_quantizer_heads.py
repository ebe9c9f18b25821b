"""Properties of several codebooks and of the rotated gradient."""

import pytest
import torch

from aime.perceiver_io import CausalPerceiverIO, TokenFrames, VectorQuantizer
from aime.perceiver_io.quantizer import codebook_statistics, rotate_onto


def test_each_head_finds_its_own_nearest_code() -> None:
    torch.manual_seed(0)
    quantizer, x = VectorQuantizer(7, 6, heads=2), torch.randn(5, 3, 6)
    found = quantizer(x)
    assert found.indices.shape == (5, 3, 2)
    for head, part in enumerate(x.chunk(2, -1)):
        nearest = torch.cdist(part.flatten(0, 1), quantizer.codebook[head]).argmin(-1)
        assert torch.equal(found.indices[..., head].flatten().long(), nearest)
    torch.testing.assert_close(quantizer.lookup(found.indices), found.values)
    with pytest.raises(ValueError, match="expected a last axis of 2 heads"):
        quantizer.lookup(found.indices[..., 0])


def test_the_heads_of_one_codebook_move_as_two_codebooks_would() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 6, generator=generator)
    both = VectorQuantizer(4, 6, heads=2, revival_threshold=0.0)
    alone = [VectorQuantizer(4, 3, revival_threshold=0.0) for _ in range(2)]
    for head, single in enumerate(alone):
        for name, buffer in single.named_buffers():
            buffer.copy_(getattr(both, name)[head])
    both.update(x, both(x).indices)
    for head, (single, part) in enumerate(zip(alone, x.chunk(2, -1), strict=True)):
        single.update(part.contiguous(), single(part).indices)
        torch.testing.assert_close(both.codebook[head], single.codebook)
    before = float(both(x).commitment)
    both.initialise(x, generator=generator)
    assert float(both(x).commitment) < before


def test_figures_of_several_heads_are_means() -> None:
    ids = torch.tensor([[0, 0], [1, 0], [2, 0], [3, 0]])
    perplexity, usage = codebook_statistics(ids, 8, heads=2)
    assert float(perplexity) == pytest.approx((4 + 1) / 2)
    assert float(usage) == pytest.approx((4 / 8 + 1 / 8) / 2)


def test_heads_that_do_not_divide_and_unknown_gradients_are_errors() -> None:
    with pytest.raises(ValueError, match="code_dim: expected a multiple of the heads, 4, found 6"):
        VectorQuantizer(8, 6, heads=4)
    with pytest.raises(ValueError, match="gradient: expected one of"):
        VectorQuantizer(8, 6, gradient="none")  # type: ignore[arg-type]


def test_rotation_takes_an_encoding_onto_its_code_and_its_gradient_along() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 5, generator=generator, dtype=torch.float64).requires_grad_()
    codes = torch.randn(20, 5, generator=generator, dtype=torch.float64)
    upstream = torch.randn(20, 5, generator=generator, dtype=torch.float64)
    moved = rotate_onto(x, codes)
    torch.testing.assert_close(moved, codes)
    (gradient,) = torch.autograd.grad(moved, x, upstream)
    # the angle between gradient and encoding is that between upstream gradient and code, and lengths are rescaled
    scale = codes.norm(dim=-1) / x.norm(dim=-1)
    torch.testing.assert_close(gradient.norm(dim=-1), scale * upstream.norm(dim=-1))
    cosine = torch.nn.functional.cosine_similarity
    torch.testing.assert_close(cosine(gradient, x.detach()), cosine(upstream, codes))


def test_rotation_is_finite_at_its_edges() -> None:
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]], requires_grad=True)
    codes = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])  # no direction, opposite, a code at zero
    moved = rotate_onto(x, codes)
    torch.testing.assert_close(moved, codes)
    (gradient,) = torch.autograd.grad(moved.sum(), x)
    assert torch.isfinite(gradient).all()


def test_several_codebooks_run_from_video_to_loss() -> None:
    torch.manual_seed(0)
    perceiver = CausalPerceiverIO(
        (4, 3, 16, 16), 6, 3, 8, 2, 1, code_dim=8, num_codes=16, downsample=8, base_channels=8, window=3,
        num_quantizers=2, gradient="rotation", entropy_weight=0.1,
    )  # fmt: skip
    videos = torch.randn(2, 4, 3, 16, 16)
    output = perceiver(videos)
    assert output.tokens.ids.shape == (2, 4, 2, 2, 2)
    logits = perceiver.model.predict(output.frames)
    assert logits.shape == (2, 4, 4, 2, 16)
    losses = perceiver.compute_loss(output, videos, generator=torch.Generator().manual_seed(0))
    losses["total_loss"].backward()
    assert all(torch.isfinite(value) for value in losses.values())
    # what is said of one book depends on it through the token, not on which id the other book predicts
    other = TokenFrames(output.context, output.latents, output.embedded, output.tokens.ids.flip(-1))
    assert not torch.equal(perceiver.model.predict(other), logits)
    perceiver.update_codebook(output.tokens)
    assert perceiver.generate_autoregressive(videos, 2, 0.0).shape == (2, 6, 3, 16, 16)
