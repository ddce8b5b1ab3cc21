"""Watch how similar a network is to a reference while it trains."""

__version__ = "0.1.0"
