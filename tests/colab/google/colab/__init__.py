"""A stand-in for Colab's own package, which cannot be installed elsewhere.

It has the interface the project uses, after github.com/googlecolab/colabtools. Nothing here asks
a person anything.
"""

from google.colab import _message, drive

__all__ = ["_message", "drive"]
