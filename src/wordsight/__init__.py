"""Wordsight adapts vision-language models through their language side."""

__version__ = "0.1.0"
