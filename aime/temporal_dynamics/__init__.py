"""Dynamics: the recurrent state and the context it predicts."""

from aime.temporal_dynamics.context_predictor import ContextPredictor, context_prediction_loss
from aime.temporal_dynamics.lstm import LSTMLayer, LSTMState

__all__ = ["ContextPredictor", "LSTMLayer", "LSTMState", "context_prediction_loss"]
