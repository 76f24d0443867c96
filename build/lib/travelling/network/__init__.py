"""The network and everything of it that travels."""
