"""Images made from nothing, with known annotation: the embedded data."""
