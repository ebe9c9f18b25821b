"""Properties of the tokenizer and the Perceiver: causality, continuation, lengths, gradients, codebook."""

import pytest
import torch

from aime.perceiver_io import CausalPerceiverIO, VectorQuantizer, VQPTTokenizer
from aime.perceiver_io.quantizer import codebook_statistics


def small_perceiver(size: int = 32, **options: object) -> CausalPerceiverIO:
    torch.manual_seed(0)
    defaults = {
        "context_dim": 12,
        "num_latents": 4,
        "num_latent_channels": 16,
        "num_attention_heads": 2,
        "num_encoder_layers": 2,
        "code_dim": 8,
        "num_codes": 32,
        "downsample": 8,
        "base_channels": 8,
        "window": 3,
    }
    return CausalPerceiverIO((5, 3, size, size), **(defaults | options)).eval()


def video(frames: int, size: int = 32, batch: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.rand(batch, frames, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("changed", [1, 3, 5])
def test_a_changed_frame_changes_nothing_before_it(changed: int) -> None:
    perceiver = small_perceiver()
    frames = video(6)
    other = frames.clone()
    other[:, changed] = -other[:, changed]
    before, after = perceiver(frames), perceiver(other)
    assert torch.equal(before.tokens.ids[:, :changed], after.tokens.ids[:, :changed])
    torch.testing.assert_close(before.context[:, :changed], after.context[:, :changed], rtol=0, atol=0)
    logits = [perceiver.model.predict(output.frames) for output in (before, after)]
    torch.testing.assert_close(logits[0][:, :changed], logits[1][:, :changed], rtol=0, atol=0)
    assert not torch.equal(before.context[:, changed], after.context[:, changed])


def test_pieces_with_memory_equal_the_whole() -> None:
    perceiver = small_perceiver()
    frames = video(9)
    whole = perceiver(frames).context
    memory, pieces = perceiver.empty_memory(2), []
    for piece in frames.split([1, 4, 2, 1, 1], 1):
        output = perceiver(piece, memory)
        memory = output.memory
        pieces.append(output.context)
    # Largest difference measured: 6e-7.
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("frames", [1, 2, 50])
@pytest.mark.parametrize(("size", "downsample"), [(64, 8), (84, 4), (84, 8), (33, 2)])
def test_any_length_and_size_round_trips(frames: int, size: int, downsample: int) -> None:
    tokenizer = VQPTTokenizer(3, code_dim=4, num_codes=8, downsample=downsample, base_channels=8).eval()
    frames_in = video(frames, size, batch=1)
    tokens, _ = tokenizer.encode(frames_in)
    rows, columns = tokenizer.grid(size, size)
    assert tokens.ids.shape == (1, frames, rows, columns)
    assert tokens.ids.dtype == torch.int32
    assert tokenizer.decode(tokens.quantized, size, size).shape == frames_in.shape


def test_frames_alone_without_temporal_convolution() -> None:
    tokenizer = VQPTTokenizer(3, 4, 8, 8, 8, use_3d_conv=False).eval()
    frames = video(4)
    alone = [tokenizer.encode(frames[:, t : t + 1])[0].encodings for t in range(4)]
    torch.testing.assert_close(tokenizer.encode(frames)[0].encodings, torch.cat(alone, 1), rtol=0, atol=1e-6)


def test_gradients_reach_every_parameter_through_context_and_loss() -> None:
    perceiver = small_perceiver().train()
    output = perceiver(video(4))
    loss = perceiver.compute_loss(output, video(4))["total_loss"] + output.context.square().mean()
    loss.backward()
    # distance_bias starts at 0 and has a gradient; nothing may be left out.
    missing = [name for name, parameter in perceiver.named_parameters() if parameter.grad is None]
    assert missing == []
    encoder_gradient = perceiver.tokenizer.temporal.weight.grad
    assert encoder_gradient is not None
    assert float(encoder_gradient.abs().sum()) > 0


def test_extract_context_detaches_on_request() -> None:
    perceiver = small_perceiver()
    assert perceiver.extract_context(video(2)).requires_grad
    assert not perceiver.extract_context(video(2), detach=True).requires_grad


def test_quantizer_finds_separated_clusters_and_revives_dead_codes() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = 10 * torch.randn(6, 4, generator=generator)
    data = (centres[:, None] + 0.01 * torch.randn(6, 200, 4, generator=generator)).flatten(0, 1)
    quantizer = VectorQuantizer(12, 4, decay=0.9)
    quantizer.codebook.fill_(1000.0)  # all codes far away: all but the lowest index are dead
    quantizer.sums.copy_(quantizer.codebook)
    for _ in range(100):
        quantizer.update(data, quantizer(data).indices, generator)
    assert float(quantizer(data).commitment) < 1e-3
    _, usage = codebook_statistics(quantizer(data).indices, 12)
    assert float(usage) >= 0.5


def test_kmeans_initialisation_starts_at_the_data() -> None:
    perceiver = small_perceiver()
    frames = video(8)
    with torch.no_grad():
        before = float(perceiver(frames).tokens.commitment)
        perceiver.initialise_codebook(frames, torch.Generator().manual_seed(0))
        # White noise has no clusters: k-means gains about half on it.
        assert float(perceiver(frames).tokens.commitment) < 0.7 * before


def test_straight_through_gradient_is_the_identity() -> None:
    quantizer = VectorQuantizer(8, 4)
    encodings = torch.randn(5, 4, requires_grad=True)
    quantizer(encodings).values.sum().backward()
    torch.testing.assert_close(encodings.grad, torch.ones(5, 4))


def test_perplexity_and_usage_of_known_counts() -> None:
    perplexity, usage = codebook_statistics(torch.tensor([0, 1, 2, 3]), 8)
    assert float(perplexity) == pytest.approx(4.0)
    assert float(usage) == pytest.approx(0.5)


def test_usage_entropy_bonus_is_largest_for_even_use() -> None:
    perceiver = small_perceiver(entropy_weight=0.1, num_codes=4, code_dim=2)
    perceiver.tokenizer.quantizer.codebook.copy_(torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 3.0], [0.0, -3.0]]))
    even = perceiver.tokenizer.quantizer.codebook.repeat(10, 1)
    uneven = perceiver.tokenizer.quantizer.codebook[:1].repeat(40, 1)
    assert float(perceiver._usage_entropy(even)) == pytest.approx(torch.log(torch.tensor(4.0)).item(), abs=1e-3)
    assert float(perceiver._usage_entropy(uneven)) < 0.01


@pytest.mark.parametrize("downsample", [0, 1, 3, 6])
def test_bad_downsample_is_an_error(downsample: int) -> None:
    with pytest.raises(ValueError, match=f"power of two >= 2, found {downsample}"):
        VQPTTokenizer(downsample=downsample)


def test_bad_inputs_are_named() -> None:
    perceiver = small_perceiver()
    with pytest.raises(ValueError, match=r"videos: expected \(B, T, C=3, H, W\), found \(B=2, T=2, C=1, H=32, W=32\)"):
        perceiver(torch.zeros(2, 2, 1, 32, 32))
    with pytest.raises(ValueError, match=r"indices: expected 0\.\.31, found 0\.\.32"):
        perceiver.tokenizer.get_codes_from_indices(torch.tensor([0, 32]))


def test_a_trunks_features_take_the_place_of_videos_and_a_share_of_videos_learns() -> None:
    torch.manual_seed(0)
    perceiver = CausalPerceiverIO(
        (4, 3, 32, 32),
        6,
        3,
        8,
        2,
        1,
        code_dim=4,
        num_codes=8,
        downsample=8,
        base_channels=8,
        patch_size=8,
        window=3,
        feature_channels=5,
        grid=(4, 4),
        masked_share=0.0,
    )
    features, videos = torch.randn(4, 4, 5, 4, 4), torch.randn(4, 4, 3, 32, 32)
    whole = perceiver(features, detach_tokens=True)
    part = perceiver(features, detach_tokens=True, share=0.5)
    for name in ("context", "latents", "embedded"):
        torch.testing.assert_close(getattr(part, name), getattr(whole, name))
    torch.testing.assert_close(part.memory.features[0], whole.memory.features[0])
    torch.testing.assert_close(part.memory.predictor.layers[0].keys, whole.memory.predictor.layers[0].keys)
    (reached,) = torch.autograd.grad(
        part.context[2:].sum(), perceiver.model.latents, allow_unused=True, retain_graph=True
    )
    assert reached is None or float(reached.abs().sum()) == 0  # the second half is computed without gradients
    gradients = []
    for output in (whole, part):
        loss = perceiver.compute_loss(output, videos, share=0.5)["total_loss"]
        gradients.append(torch.autograd.grad(loss, list(perceiver.parameters()), allow_unused=True))
    for expected, found in zip(*gradients, strict=True):
        assert (expected is None) == (found is None)
        if expected is not None:
            torch.testing.assert_close(found, expected)


def test_a_token_that_stays_is_predicted_from_the_start() -> None:
    torch.manual_seed(0)
    perceiver = CausalPerceiverIO(
        (4, 3, 32, 32), 6, 3, 8, 2, 1, code_dim=4, num_codes=16, downsample=8, base_channels=8, patch_size=8, window=3
    )
    output = perceiver(torch.randn(2, 3, 3, 32, 32))
    logits = perceiver.model.predict(output.frames)
    assert (logits.argmax(-1) == output.tokens.ids.flatten(2)).float().mean() > 0.9
