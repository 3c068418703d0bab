"""A stand-in for Colab's own package, which cannot be installed elsewhere.

It has the interface the project uses, after github.com/googlecolab/colabtools: `drive.mount`,
`userdata.get`, and the exceptions they raise. Nothing here asks a person anything.
"""

from google.colab import drive, errors, userdata

__all__ = ["drive", "errors", "userdata"]
