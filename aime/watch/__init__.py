"""A page in the browser that follows a training run: curves from its log, films and maps from its newest checkpoint."""
