"""Pillar 5, optimization: one gradient from several tasks, and the tasks' losses."""

from aime.multi_task_learning.balancer import BalancedStep, GradientBalancer
from aime.multi_task_learning.loss_aggregator import LossAggregator
from aime.multi_task_learning.registry import BALANCERS, make_balancer
from aime.multi_task_learning.rgb import RGB
from aime.multi_task_learning.sum import Sum

__all__ = ["BALANCERS", "RGB", "BalancedStep", "GradientBalancer", "LossAggregator", "Sum", "make_balancer"]
