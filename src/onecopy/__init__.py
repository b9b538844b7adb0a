"""One copy of the weights, every replica."""

from importlib.metadata import version

__version__ = version("onecopy")
