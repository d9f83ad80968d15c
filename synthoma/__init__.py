"""synthoma: from few annotated medical images to synthetic pathology, and a proof of its worth."""

__version__ = "0.1.0"
