"""One paper one file, and `augment` for data of your own."""
