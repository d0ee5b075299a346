"""Description of whatever a path is, as `info` prints it."""

from latentddpm.info.describe import describe

__all__ = ["describe"]
