"""Planning and acting with a world model."""
