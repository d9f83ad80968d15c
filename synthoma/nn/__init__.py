"""What two or more systems share, unchanged."""
