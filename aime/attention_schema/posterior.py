"""Where attention is: a map inferred from the frame, the state and the context."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aime.attention_schema.maps import center_of_mass, slot_diversity_loss, to_unit_square
from aime.attention_schema.slot_attention import SlotAttention
from aime.documented_tables import accepts_documented_names
from aime.nn import expect_shape, images_to_float, mlp, normalisation, pad_to_multiple

MAP_EPS = 1e-8


@dataclass(frozen=True)
class AttentionPosteriorOutput:
    """Attention of N frames; R map side, S slots, d channels of a slot.

    Attributes:
        map: (N, R, R), sums to 1.
        coords: (N, 2) its centre (x, y) in (-1, 1), x to the right and y down.
        slot_maps: (N, S, R, R), each sums to 1.
        slots: (N, S, d).
        slot_centers: (N, S, 2) in (-1, 1).
        fusion_weights: (N, S), sums to 1; map = sum_s fusion_weights_s slot_maps_s.
        diversity_loss: () overlap of the slot maps, in [0, 1].
    """

    map: Tensor
    coords: Tensor
    slot_maps: Tensor
    slots: Tensor
    slot_centers: Tensor
    fusion_weights: Tensor
    diversity_loss: Tensor


class FeaturePyramid(nn.Module):
    """Images (N, C, H, W) -> features (N, F, R, R) that see several scales.

    A patchify stem brings the image to about R x R at once (no convolution at full resolution, where most of the cost
    of the usual stem lies); each further level halves it. Levels are mixed at their own resolution, added at R x R.

    Args:
        image_size: side of the image; other sizes work, with features resized to R x R.
        resolution: R.
        input_channels: C.
        channels: of each level, finest first.
        feature_channels: F.
    """

    def __init__(
        self, image_size: int, resolution: int, input_channels: int, channels: Sequence[int], feature_channels: int
    ) -> None:
        super().__init__()
        self.resolution = resolution
        self.patch = max(image_size // resolution, 1)
        stem = nn.Conv2d(input_channels, channels[0], self.patch, stride=self.patch)
        first = nn.Sequential(
            stem,
            normalisation(channels[0]),
            nn.SiLU(),
            nn.Conv2d(channels[0], channels[0], 3, padding=1),
            nn.SiLU(),
        )
        self.levels = nn.ModuleList([first])
        for inner, outer in pairwise(channels):
            down = nn.Conv2d(inner, outer, 3, stride=2, padding=1)
            self.levels.append(nn.Sequential(down, normalisation(outer), nn.SiLU()))
        self.laterals = nn.ModuleList(nn.Conv2d(width, feature_channels, 1) for width in channels)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, F, R, R)."""
        x = pad_to_multiple(images, self.patch)
        total: Tensor | None = None
        for level, lateral in zip(self.levels, self.laterals, strict=True):
            x = level(x)
            features: Tensor = lateral(x)
            if features.shape[-2:] != (self.resolution, self.resolution):
                size = (self.resolution, self.resolution)
                features = F.interpolate(features, size, mode="bilinear", align_corners=False)
            total = features if total is None else total + features
        assert total is not None
        return total


class TrunkFeatures(nn.Module):
    """Feature maps (N, F', h, w) that others computed -> (N, F, R, R): a linear map a position, resized if need be."""

    def __init__(self, trunk_channels: int, resolution: int, feature_channels: int) -> None:
        super().__init__()
        self.resolution = resolution
        self.lateral = nn.Conv2d(trunk_channels, feature_channels, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """(N, F', h, w) -> (N, F, R, R)."""
        features: Tensor = self.lateral(maps)
        size = (self.resolution, self.resolution)
        if features.shape[-2:] != size:
            features = F.interpolate(features, size, mode="bilinear", align_corners=False)
        return features


@accepts_documented_names()
class AttentionPosterior(nn.Module):
    """(x_t, h_{t-1}, c_t) -> attention map A_t through slots.

    Slots start at learned embeddings moved by MLP([h; c]) and compete for positions of the feature pyramid. The map of
    a slot is its assignment normalised over positions, so it is as sharp as the assignment; the map A_t is their
    mixture, weighted by how well each slot answers the state.

    >>> posterior = AttentionPosterior(image_size=64, attention_resolution=16, hidden_dim=192, context_dim=64)
    >>> posterior(torch.zeros(2, 3, 64, 64), torch.zeros(2, 192), torch.zeros(2, 64)).map.shape
    torch.Size([2, 16, 16])

    Args:
        image_size: side of the images the patch size is made for.
        attention_resolution: R.
        hidden_dim: Hd.
        context_dim: Cc.
        input_channels: C.
        feature_channels: channels of pyramid features and of slots.
        num_semantic_slots: S.
        pyramid_channels: channels of each pyramid level, finest first.
        iters: rounds of slot attention.
        trunk_channels: channels of a trunk's feature maps, which are then given in place of images; None for a pyramid
            of its own.
    """

    def __init__(
        self,
        image_size: int = 84,
        attention_resolution: int = 21,
        hidden_dim: int = 256,
        context_dim: int = 128,
        input_channels: int = 3,
        feature_channels: int = 64,
        num_semantic_slots: int = 4,
        *,
        pyramid_channels: Sequence[int] = (32, 48, 64),
        iters: int = 3,
        trunk_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.resolution, self.hidden_dim, self.context_dim = attention_resolution, hidden_dim, context_dim
        self.input_channels = input_channels if trunk_channels is None else trunk_channels
        self.num_slots = num_semantic_slots
        self.pyramid: nn.Module = (
            FeaturePyramid(image_size, attention_resolution, input_channels, pyramid_channels, feature_channels)
            if trunk_channels is None
            else TrunkFeatures(trunk_channels, attention_resolution, feature_channels)
        )
        # Small enough not to fix the slots to places at the start: objects move.
        self.position = nn.Parameter(0.1 * torch.randn(feature_channels, attention_resolution, attention_resolution))
        self.slot_attention = SlotAttention(
            num_semantic_slots, feature_channels, feature_channels, iters, mlp_hidden=2 * feature_channels
        )
        state = hidden_dim + context_dim  # 0: slots start at their embeddings and are judged by themselves
        self.seed = mlp((state, feature_channels, num_semantic_slots * feature_channels)) if state else None
        self.question = nn.Linear(state, feature_channels) if state else None
        self.answer = nn.Sequential(nn.LayerNorm(feature_channels), nn.Linear(feature_channels, feature_channels))
        self.relevance = nn.Linear(feature_channels, 1)

    def forward(self, observation: Tensor, hidden: Tensor, context: Tensor) -> AttentionPosteriorOutput:
        """Attend to frames, each by itself.

        Args:
            observation: (N, C, H, W), uint8 or float in [-1, 1]; or a trunk's feature maps (N, F', h, w).
            hidden: (N, Hd), the state before the frame; (N, 0) for a map that sees the frame and the context alone.
            context: (N, Cc), the context of the frame.

        Raises:
            ValueError: shapes that do not fit.
        """
        frames = expect_shape(observation, "N C H W", "observation", C=self.input_channels)["N"]
        expect_shape(hidden, "N Hd", "hidden", N=frames, Hd=self.hidden_dim)
        expect_shape(context, "N Cc", "context", N=frames, Cc=self.context_dim)
        features = self.pyramid(images_to_float(observation)) + self.position  # (N, F, R, R)
        state = torch.cat((hidden, context), -1)
        seeds = features.new_zeros(frames, self.num_slots, features.shape[1])  # (N, S, F)
        if self.seed is not None:
            seeds = self.seed(state).reshape(seeds.shape)
        slots, assignment = self.slot_attention(features.flatten(2).transpose(1, 2), seeds)  # (N, S, R * R)
        density = assignment.float() + MAP_EPS
        density = density / density.sum(-1, keepdim=True)
        fusion = self._fusion_weights(slots, state)
        attended = torch.einsum("ns,nsp->np", fusion, density)
        slot_maps = density.reshape(frames, self.num_slots, self.resolution, self.resolution)
        attention_map = attended.reshape(frames, self.resolution, self.resolution)
        return AttentionPosteriorOutput(
            map=attention_map,
            coords=to_unit_square(center_of_mass(attention_map), self.resolution),
            slot_maps=slot_maps,
            slots=slots,
            slot_centers=to_unit_square(center_of_mass(slot_maps), self.resolution),
            fusion_weights=fusion,
            diversity_loss=slot_diversity_loss(slot_maps).mean(),
        )

    def _fusion_weights(self, slots: Tensor, state: Tensor) -> Tensor:
        """(N, S): how relevant each slot is by itself and to the state; slots share the weights."""
        answers = self.answer(slots)
        relevance: Tensor = self.relevance(torch.tanh(answers)).squeeze(-1)
        if self.question is None:
            return torch.softmax(relevance.float(), -1)
        asked = torch.einsum("nsf,nf->ns", answers, self.question(state)) * answers.shape[-1] ** -0.5
        return torch.softmax((asked + relevance).float(), -1)
