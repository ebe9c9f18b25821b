"""Metrics, probes, open-loop rollouts, baselines and reports of a trained world model on held-out episodes."""
