"""Per-task gradients as one matrix, stored only where a task reaches a parameter.

Every gradient-balancing method needs three things from the T task gradients and a few kept directions: all their inner
products, and one or two linear combinations of them. `GradientMatrix` offers just these, so that a method is arithmetic
in T + 1 dimensions.

Parameters are grouped by the set of tasks that reach them. A group that m tasks reach holds one contiguous block
(1 + m, P_g): the kept direction, then the m gradients. A parameter that only one task reaches therefore costs two rows
instead of T + 1, and one that no task reaches costs nothing. Both the Gram matrix and the combination are one pass over
each block, in chunks that fit the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aime.ranks import Ranks, Work
from aime.sharding import divided, held, is_divided, rows_of, whole

# Rows are multiplied in chunks of this many columns: (T + 1) rows of 16 Ki float32 stay inside a 256 KiB L2 cache, and
# summing chunk by chunk keeps the float32 error of an inner product near 1e-7 whatever the number of parameters.
CHUNK = 16384


@dataclass
class _Group:
    """Parameters that the same tasks reach."""

    tasks: tuple[int, ...]
    index: Tensor  # (1 + m,) the block's rows in the (T + 1) system: T for the direction, then the tasks
    parameters: list[int]
    rows: Tensor  # (1 + m, P_g): the kept direction, then one gradient per task of `tasks`
    combined: Tensor  # (2, P_g): the new gradient and the new direction
    views: list[Tensor]  # combined[0] cut to the parameters' shapes
    grads: list[Tensor]  # what `.grad` points at: the views, or copies in the dtype of parameters that have another
    zeros: Tensor  # (largest parameter,) what a task writes that does not reach a parameter on this step


class GradientMatrix:
    """The gradients of `task_num` tasks with respect to `parameters`, and one kept direction.

    Args:
        parameters: the shared parameters, in an order that stays the same from call to call. Of divided ones (see
            `aime.sharding`) a block has the columns of this process, inner products are those of all, and so is the
            direction where it goes in and out.
        task_num: number of tasks T.
        ranks: the processes among which parameters are divided.
    """

    def __init__(self, parameters: Sequence[Tensor], task_num: int, ranks: Ranks | None = None) -> None:
        if not parameters:
            raise ValueError("expected at least one parameter to balance gradients on, found none")
        self.parameters = list(parameters)
        self._ranks = ranks if any(is_divided(parameter) for parameter in parameters) else None
        self._held = [held(parameter) for parameter in parameters]  # (their columns of this process)
        self.task_num = task_num
        self._reach = [0] * len(self._held)  # bit t of entry p: task t has reached parameter p
        self._groups: list[_Group] = []
        self._sums: list[tuple[Ranks, Work]] = []  # sums over the ranks that are under way
        self._rebuild(self._reach, {})

    def matches(self, parameters: Sequence[Tensor], task_num: int) -> bool:
        """Whether this matrix was built for exactly these parameters and this number of tasks."""
        return (
            task_num == self.task_num
            and len(parameters) == len(self.parameters)
            and all(ours is theirs for ours, theirs in zip(self.parameters, parameters, strict=True))
        )

    @property
    def numel(self) -> int:
        """Number of scalars P over all parameters."""
        return sum(parameter.numel() for parameter in self.parameters)

    def write(self, task: int, gradients: Sequence[Tensor | None] | None) -> None:
        """Store the gradient of one task; None (for one parameter or for all) is a gradient of zero.

        What a task reaches only grows: the first step that reaches a parameter moves it to the group of its tasks, and
        a later step that does not reach it writes zeros. So the layout settles and memory is reused.
        """
        bit = 1 << task
        if gradients is not None:
            reach = [old | bit if grad is not None else old for old, grad in zip(self._reach, gradients, strict=True)]
            if reach != self._reach:
                self.finish_sums()  # of rows that are about to be carried over
                self._rebuild(reach, self._task_rows())
        for group in self._groups:
            if task not in group.tasks:
                continue
            row = group.rows[1 + group.tasks.index(task)]
            if gradients is None:
                row.zero_()
                continue
            pieces = []
            for index in group.parameters:
                grad = gradients[index]
                parameter = self._held[index]
                pieces.append(group.zeros[: parameter.numel()] if grad is None else _flatten(grad, parameter))
            torch.cat(pieces, out=row)

    def start_sum(self, task: int, ranks: Ranks) -> None:
        """Begin to sum a task's gradient over the ranks, one flat bucket a block, while other tasks go backward.

        Every rank has to call this for the same tasks in the same order. `gram` waits for all that is under way.
        """
        for group in self._groups:
            if task in group.tasks:
                self._sums.append((ranks, ranks.start_sum(group.rows[1 + group.tasks.index(task)])))

    def finish_sums(self) -> None:
        """Wait for the sums that are under way."""
        while self._sums:
            ranks, work = self._sums.pop(0)
            ranks.finish(work)

    def gram(self) -> Tensor:
        """Inner products of [g_1 .. g_T, d] as a (T + 1, T + 1) float64 tensor."""
        self.finish_sums()
        size = self.task_num + 1
        gram = torch.zeros(size, size, dtype=torch.float64, device=self._held[0].device)
        for group in self._groups:
            gram[group.index[:, None], group.index[None, :]] += _chunked_gram(group.rows)
        return gram if self._ranks is None else self._ranks.sum_(gram)

    def gram_of(self, members: Sequence[int]) -> Tensor:
        """Inner products (T, T), float64, of the task gradients over some of the parameters, given by index.

        Valid after the tasks were written, before and after `combine`.
        """
        gram = torch.zeros(self.task_num, self.task_num, dtype=torch.float64, device=self._held[0].device)
        chosen = set(members)
        for group in self._groups:
            sizes = [self._held[index].numel() for index in group.parameters]
            pieces = torch.split(group.rows[1:], sizes, dim=1)  # (m, P_i) each
            kept = [piece for index, piece in zip(group.parameters, pieces, strict=True) if index in chosen]
            if kept and group.tasks:
                place = group.index[1:]
                gram[place[:, None], place[None, :]] += _chunked_gram(torch.cat(kept, 1))
        return gram if self._ranks is None else self._ranks.sum_(gram)

    def combine(self, gradient: Tensor, direction: Tensor, replace: Tensor) -> None:
        """Write `.grad` and replace the kept direction by linear combinations of the rows.

        Args:
            gradient: (T + 1,) coefficients of [g_1 .. g_T, d] in the new gradient.
            direction: (T + 1,) coefficients of the same rows in the new direction.
            replace: () bool, False leaves the kept direction as it is (a step whose gradients are not finite).
        """
        both = torch.stack([gradient, direction])  # (2, T + 1)
        for group in self._groups:
            coefficients = both[:, group.index].to(group.rows.dtype)  # (2, 1 + m)
            # Matrix times vector: measured equal to one (2, m) x (m, P) product on CPU, and never TF32 on a GPU.
            torch.mv(group.rows.T, coefficients[0], out=group.combined[0])
            torch.mv(group.rows.T, coefficients[1], out=group.combined[1])
            torch.where(replace, group.combined[1], group.rows[0], out=group.rows[0])
            for parameter_index, view, grad in zip(group.parameters, group.views, group.grads, strict=True):
                if view.dtype != grad.dtype:
                    held(grad).copy_(view)
                # A parameter that no task has reached gets no gradient, so that the optimizer leaves it alone.
                self.parameters[parameter_index].grad = grad if group.tasks else None

    def direction(self) -> Tensor:
        """The kept direction (P,) in parameter order, as a copy; of divided parameters a collective."""
        pieces = zip(self._direction(), self.parameters, strict=True)
        return torch.cat([whole(divided(piece.contiguous(), given)).reshape(-1) for piece, given in pieces])

    def _direction(self) -> list[Tensor]:
        """The kept direction in the shapes of the parameters (of their parts here), views where layouts allow."""
        pieces: list[Tensor] = [torch.empty(0)] * len(self._held)
        for group in self._groups:
            sizes = [self._held[index].numel() for index in group.parameters]
            for index, piece in zip(group.parameters, torch.split(group.rows[0], sizes), strict=True):
                pieces[index] = _unflatten(piece, self._held[index])
        return pieces

    def set_direction(self, direction: Tensor) -> None:
        """Replace the kept direction by a (P,) vector in parameter order."""
        if direction.shape != (self.numel,):
            raise ValueError(f"expected a direction of shape (P,) = ({self.numel},), found {tuple(direction.shape)}")
        pieces = torch.split(direction.to(self._held[0].device), [given.numel() for given in self.parameters])
        members = zip(pieces, self.parameters, strict=True)
        self._set_direction([rows_of(piece.view(given.shape), given) for piece, given in members])

    def _set_direction(self, pieces: Sequence[Tensor]) -> None:
        """Inverse of `_direction`."""
        for group in self._groups:
            flat = [_flatten(pieces[index], self._held[index]) for index in group.parameters]
            torch.cat(flat, out=group.rows[0])

    @property
    def reach(self) -> list[int]:
        """For each parameter, the set of tasks that have reached it as a bit mask."""
        return list(self._reach)

    def set_reach(self, reach: Sequence[int]) -> None:
        """Restore a saved layout, so that a resumed run adds in the same order as an uninterrupted one."""
        if len(reach) != len(self._held):
            raise ValueError(f"expected reach masks of {len(self._held)} parameters, found {len(reach)}")
        if list(reach) != self._reach:
            self.finish_sums()
            self._rebuild(list(reach), self._task_rows())

    def _task_rows(self) -> dict[tuple[int, int], Tensor]:
        """Every stored piece of a gradient, by (task, parameter)."""
        rows: dict[tuple[int, int], Tensor] = {}
        for group in self._groups:
            sizes = [self._held[index].numel() for index in group.parameters]
            for slot, task in enumerate(group.tasks):
                for index, piece in zip(group.parameters, torch.split(group.rows[1 + slot], sizes), strict=True):
                    rows[task, index] = piece
        return rows

    def _rebuild(self, reach: list[int], rows: dict[tuple[int, int], Tensor]) -> None:
        """Lay the blocks out for new reach sets, carrying the direction and the gradients already written."""
        direction = self._direction() if self._groups else None
        members: dict[tuple[int, bool], list[int]] = {}
        for index, mask in enumerate(reach):
            members.setdefault((mask, self._held[index].dtype == torch.float64), []).append(index)
        self._reach = reach
        self._groups = [self._allocate(key[0], members[key]) for key in sorted(members)]
        if direction is not None:
            self._set_direction(direction)
        for group in self._groups:
            sizes = [self._held[index].numel() for index in group.parameters]
            for slot, task in enumerate(group.tasks):
                for index, piece in zip(group.parameters, torch.split(group.rows[1 + slot], sizes), strict=True):
                    if (task, index) in rows:
                        piece.copy_(rows[task, index])

    def _allocate(self, mask: int, indices: list[int]) -> _Group:
        tasks = tuple(task for task in range(self.task_num) if mask >> task & 1)
        sizes = [self._held[index].numel() for index in indices]
        like = self._held[indices[0]]
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        rows = torch.zeros(1 + len(tasks), sum(sizes), dtype=dtype, device=like.device)
        combined = torch.zeros(2, sum(sizes), dtype=dtype, device=like.device)
        pieces = torch.split(combined[0], sizes)
        views = [_unflatten(piece, self._held[index]) for piece, index in zip(pieces, indices, strict=True)]
        # bfloat16 and float16 parameters are balanced in float32, and get their gradient rounded to their own dtype.
        grads = [
            divided(view, self.parameters[i])
            if view.dtype == self._held[i].dtype
            else torch.empty_like(self.parameters[i], requires_grad=False)
            for view, i in zip(views, indices, strict=True)
        ]
        index = torch.tensor((self.task_num, *tasks), device=like.device)
        zeros = torch.zeros(max(sizes), dtype=dtype, device=like.device)
        return _Group(tasks, index, indices, rows, combined, views, grads, zeros)


def _has_layout(tensor: Tensor, parameter: Tensor) -> bool:
    """Whether both step through memory alike; strides of axes of size 1 do not matter."""
    pairs = zip(parameter.shape, tensor.stride(), parameter.stride(), strict=True)
    return all(size == 1 or ours == theirs for size, ours, theirs in pairs)


def _is_dense(parameter: Tensor) -> bool:
    """Whether the elements fill their memory without gaps or overlap, in some order of the axes."""
    step = 1
    for stride, size in sorted(zip(parameter.stride(), parameter.shape, strict=True)):
        if size != 1 and stride != step:
            return False
        step *= size
    return True


def _flatten(tensor: Tensor, parameter: Tensor) -> Tensor:
    """The elements (P_i,) in the order of the parameter's memory; a view where the tensor is already laid out so.

    Optimizer kernels step through parameter and gradient by address, so a channels-last weight needs a channels-last
    gradient.
    """
    if parameter.is_contiguous() or not _is_dense(parameter):
        return tensor.reshape(-1)
    if not _has_layout(tensor, parameter):
        tensor = torch.empty_strided(
            parameter.shape, parameter.stride(), dtype=tensor.dtype, device=tensor.device
        ).copy_(tensor)
    return tensor.as_strided((parameter.numel(),), (1,))


def _unflatten(flat: Tensor, parameter: Tensor) -> Tensor:
    """The inverse of `_flatten`: a view (shape of the parameter) with the parameter's strides."""
    if not _is_dense(parameter):
        return flat.view(parameter.shape)
    return flat.as_strided(parameter.shape, parameter.stride())


def _chunked_gram(rows: Tensor) -> Tensor:
    """(m, P) -> (m, m) float64, summed over chunks of columns."""
    if (
        rows.is_cuda
    ):  # a matrix product may run in TF32, whose 1e-3 would show in the angles; a vector product never does
        return torch.stack([torch.mv(rows, row) for row in rows]).double()
    whole = rows.shape[1] // CHUNK * CHUNK
    gram = torch.zeros(rows.shape[0], rows.shape[0], dtype=torch.float64, device=rows.device)
    if whole:
        chunks = rows[:, :whole].reshape(rows.shape[0], -1, CHUNK).transpose(0, 1)  # (chunks, m, CHUNK)
        gram += torch.bmm(chunks, chunks.transpose(1, 2)).double().sum(0)
    rest = rows[:, whole:]
    return gram + (rest @ rest.T).double()
