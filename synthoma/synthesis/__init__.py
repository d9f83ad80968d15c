"""Drawing labelled images from trained generators."""
