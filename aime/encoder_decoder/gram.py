"""Gram loss between features of a student and its exponential-moving-average teacher."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GramLoss(nn.Module):
    """Mean squared difference of patch-similarity matrices (Simeoni et al. 2025, DINOv3, section 4).

    Args:
        apply_norm: compare cosines instead of inner products.
        img_level: similarities within an image; otherwise over the whole batch.
        remove_neg: set negative similarities of both to zero.
        remove_only_teacher_neg: set to zero where the teacher's is negative.

    Raises:
        ValueError: both removals are asked for.
    """

    def __init__(
        self,
        apply_norm: bool = True,
        img_level: bool = True,
        remove_neg: bool = True,
        remove_only_teacher_neg: bool = False,
    ) -> None:
        super().__init__()
        if remove_neg and remove_only_teacher_neg:
            raise ValueError("remove_neg and remove_only_teacher_neg exclude each other: found both true")
        self.apply_norm, self.img_level = apply_norm, img_level
        self.remove_neg, self.remove_only_teacher_neg = remove_neg, remove_only_teacher_neg

    def _similarities(self, features: Tensor, img_level: bool) -> Tensor:
        features = features.float()
        if self.apply_norm:
            features = F.normalize(features, dim=-1)
        if not img_level:
            features = features.flatten(0, 1)
        return features @ features.transpose(-1, -2)

    def forward(self, student: Tensor, teacher: Tensor, img_level: bool | None = None) -> Tensor:
        """Loss () of features (B, N, d), the teacher's without gradient; ``img_level`` as in the constructor."""
        within = self.img_level if img_level is None else img_level
        student_similarity = self._similarities(student, within)  # (B, N, N), or (B N, B N)
        teacher_similarity = self._similarities(teacher.detach(), within)
        if self.remove_neg:
            student_similarity, teacher_similarity = student_similarity.relu(), teacher_similarity.relu()
        elif self.remove_only_teacher_neg:
            keep = teacher_similarity >= 0
            student_similarity = torch.where(keep, student_similarity, 0.0)
            teacher_similarity = torch.where(keep, teacher_similarity, 0.0)
        return F.mse_loss(student_similarity, teacher_similarity)
