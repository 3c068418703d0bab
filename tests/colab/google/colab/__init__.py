"""A stand-in for Colab's own package, after github.com/googlecolab/colabtools."""
