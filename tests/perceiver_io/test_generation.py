"""Properties of generation by the Perceiver alone, and of drawing tokens."""

import pytest
import torch

from aime.perceiver_io import CausalPerceiverIO, filter_logits, sample_tokens
from aime.perceiver_io.generation import Choice, continue_tokens
from aime.perceiver_io.predictor import TokenFrames
from aime.perceiver_io.token_loss import draw_known


def small(**options: object) -> CausalPerceiverIO:
    torch.manual_seed(0)
    defaults = {"code_dim": 8, "num_codes": 16, "downsample": 8, "base_channels": 8, "window": 3}
    perceiver = CausalPerceiverIO((4, 3, 16, 16), 6, 3, 8, 2, 2, **(defaults | options)).eval()
    torch.nn.init.zeros_(perceiver.model.stay.bias)  # so that tokens change
    return perceiver


def video(frames: int) -> torch.Tensor:
    return torch.randn(2, frames, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_top_k_and_top_p_keep_what_they_say() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    kept = torch.isfinite
    assert kept(filter_logits(logits, top_k=2)).tolist() == [True, True, False, False]
    assert kept(filter_logits(logits, top_p=0.6)).tolist() == [True, True, False, False]
    assert kept(filter_logits(logits, top_p=1e-6)).tolist() == [True, False, False, False]
    # of .5 and .3 the first has .625 of the mass: both filters together
    assert kept(filter_logits(logits, top_k=2, top_p=0.6)).tolist() == [True, False, False, False]
    assert kept(filter_logits(torch.zeros(4), top_k=2)).sum() == 2


def test_tokens_are_drawn_with_their_probabilities() -> None:
    shares = torch.tensor([0.6, 0.3, 0.1])
    drawn = sample_tokens(shares.log().expand(20_000, 3), generator=torch.Generator().manual_seed(0))
    # four standard errors of a share are at most .014
    torch.testing.assert_close(torch.bincount(drawn) / 20_000, shares, rtol=0, atol=0.014)
    assert torch.equal(sample_tokens(shares.log().expand(2, 5, 3), 0.0), torch.zeros(2, 5, dtype=torch.int64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature: expected at least 0"),
        ({"top_k": 0}, "top_k: expected at least 1"),
        ({"top_p": 0.0}, r"top_p: expected a mass in \(0, 1\]"),
        ({"top_p": 1.5}, r"top_p: expected a mass in \(0, 1\]"),
    ],
)
def test_bad_choices_are_errors(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample_tokens(torch.zeros(2, 3), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("action_dim", [0, 2])
def test_the_cache_changes_nothing_far_past_the_trained_length(action_dim: int) -> None:
    perceiver, frames = small(action_dim=action_dim), video(3)
    length = 5 * 4  # five times the length in video_shape
    actions = torch.randn(2, length, action_dim) if action_dim else None
    with torch.no_grad():
        ids = perceiver.tokenizer.encode(frames)[0].ids
        cached, whole = (
            continue_tokens(perceiver, ids, length - 3, Choice(0.0), actions, cached=cached) for cached in (True, False)
        )
        assert torch.equal(cached, whole)
        assert cached.shape == (2, length, 2, 2)
        assert (cached[:, 3:] != cached[:, 2:-1]).any()  # or nothing would be tested
        # and the logits of the last frame, from the cache of pieces and from all frames at once
        codes = perceiver.tokenizer.get_codes_from_indices(whole)
        latents, _, _ = perceiver.model(codes)
        memory, pieces = None, []
        for piece in codes.split(1, 1):
            part, _, memory = perceiver.model(piece, memory)
            pieces.append(part)
    torch.testing.assert_close(torch.cat(pieces, 1), latents, rtol=0, atol=1e-5)


def test_generated_videos_hold_the_context_and_follow_actions() -> None:
    perceiver, frames = small(action_dim=1), video(3)
    left = perceiver.generate_autoregressive(frames, 4, 0.0, actions=torch.full((2, 6, 1), -9.0))
    right = perceiver.generate_autoregressive(frames, 4, 0.0, actions=torch.full((2, 6, 1), 9.0))
    assert left.shape == (2, 7, 3, 16, 16)
    torch.testing.assert_close(left[:, :3], perceiver.reconstruct(frames), rtol=0, atol=1e-5)
    assert torch.equal(left[:, :3], right[:, :3])
    with torch.no_grad():  # untrained, an action moves logits and need not move their largest
        now, acted = perceiver(frames).frames, torch.full((2, 3, 1), 9.0)
        assert not torch.allclose(perceiver.model.predict(now, acted), perceiver.model.predict(now, -acted), atol=1e-4)
    future = perceiver.predict_future(frames, 4, actions=torch.full((2, 6, 1), 9.0))
    assert torch.equal(future, right[:, 3:])
    with pytest.raises(ValueError, match="actions: expected at least 6 frames"):
        perceiver.generate_autoregressive(frames, 4, actions=torch.zeros(2, 5, 1))


def test_temporal_downsampling_generates_the_frames_that_were_asked_for() -> None:
    perceiver = small(temporal_downsample=True)
    assert perceiver(video(4)).context.shape == (2, 3, 6)
    for count in (0, 1, 4):
        assert perceiver.generate_autoregressive(video(4), count, 0.0).shape[1] == 4 + count
    with pytest.raises(ValueError, match="at least 0, found -1"):
        perceiver.generate_autoregressive(video(4), -1)


def test_masked_generation_in_one_step_is_drawing_all_tokens_at_once() -> None:
    perceiver = small()
    at_once = perceiver.generate_autoregressive(video(3), 3, 0.0)
    assert torch.equal(perceiver.generate_maskgit(video(3), 3, 1, 0.0), at_once)
    in_steps = perceiver.generate_maskgit(video(3), 2, 3, generator=torch.Generator().manual_seed(0))
    again = perceiver.generate_maskgit(video(3), 2, 3, generator=torch.Generator().manual_seed(0))
    assert in_steps.shape == (2, 5, 3, 16, 16)
    assert torch.equal(in_steps, again)


def test_masked_generation_needs_masks_in_training() -> None:
    with pytest.raises(ValueError, match="expected a Perceiver trained with masks"):
        small(masked_share=0.0).generate_maskgit(video(2), 1)
    with pytest.raises(ValueError, match="num_iterations: expected at least 1, found 0"):
        small().generate_maskgit(video(2), 1, 0)


def test_masks_are_of_the_share_that_was_asked_for_and_hide_one_token_at_least() -> None:
    known = draw_known(40, 50, 9, 0.25, torch.Generator().manual_seed(0))
    assert not known.all(-1).any()
    # in a quarter of the frames; in some of these all is hidden nevertheless (cos near 1)
    assert 0.15 < float(known.any(-1).float().mean()) < 0.25
    assert not draw_known(40, 50, 9, 0.0, None).any()


def test_tokens_that_are_given_are_read_and_hidden_ones_are_not() -> None:
    perceiver, frames = small(), video(2)
    with torch.no_grad():
        now = perceiver(frames).frames
        known = torch.randn(2, 2, 4, 8)
        none, all_ = torch.zeros(2, 2, 4, dtype=torch.bool), torch.ones(2, 2, 4, dtype=torch.bool)
        plain = perceiver.model.predict(now)
        torch.testing.assert_close(perceiver.model.predict(now, known=known, is_known=none), plain)
        assert not torch.allclose(perceiver.model.predict(now, known=known, is_known=all_), plain)


def test_frames_without_latents_do_not_see_the_neighbourhood_either() -> None:
    perceiver, frames = small(action_dim=1), video(4)
    with torch.no_grad():
        now, acted = perceiver(frames).frames, torch.ones(2, 4, 1)
        own, around = now.embedded.chunk(2, -1)
        other = TokenFrames(now.context, now.latents.neg(), torch.cat([own, around + 1], -1), now.ids)
        sees = torch.tensor([False, True, False, True])
        before, after = (perceiver.model.predict(each, acted, sees_latents=sees) for each in (now, other))
    torch.testing.assert_close(after[:, ~sees], before[:, ~sees], rtol=0, atol=0)
    assert not torch.allclose(after[:, sees], before[:, sees], atol=1e-4)


def test_what_moves_to_a_neighbour_is_learnt_at_once_with_the_neighbourhood() -> None:
    def drifting(count: int) -> torch.Tensor:
        """Ids (count, 8, 4, 4): random tokens that move a column to the right each frame, round the corner."""
        start = torch.randint(8, (count, 4, 4))
        return torch.stack([start.roll(t, -1) for t in range(8)], 1)

    accuracies = []
    for frames in (3, 0):
        torch.manual_seed(0)
        perceiver = CausalPerceiverIO(
            (8, 3, 16, 16), 6, 3, 32, 2, 1, 8, 8, 4, 8, masked_share=0.0, neighbourhood_frames=frames
        )
        model, lookup = perceiver.model, perceiver.tokenizer.get_codes_from_indices
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(60):
            ids = drifting(8)
            latents, embedded, _ = model(lookup(ids[:, :-1]))
            logits = model.predict(TokenFrames(model.context(latents), latents, embedded, ids[:, :-1]))
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, -2), ids[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        ids = drifting(16)
        made = continue_tokens(perceiver, ids[:, :5], 2, Choice(0.0))
        # what enters at the left comes from the other end, four columns away, and is in the window for the second frame
        accuracies.append(float((made[:, 5:, :, 1:] == ids[:, 5:7, :, 1:]).float().mean()))
    assert accuracies[0] > 0.8 > 0.5 > accuracies[1], accuracies
