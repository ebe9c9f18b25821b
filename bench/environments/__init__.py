"""The environments' benchmark, `aime bench env`: contestants, their processes, and the chart."""
