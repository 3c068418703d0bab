"""On PYTHONPATH of the rehearsal's kernels: in Colab google.colab is imported before any cell."""

import google.colab  # noqa: F401
