"""Pure functions of numbers: detection, intervals."""
