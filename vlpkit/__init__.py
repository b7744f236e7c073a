"""Vision-language pre-training from YAML."""

__version__ = "0.1.0"
