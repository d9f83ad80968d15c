"""The contract, the one training loop, run folders."""
