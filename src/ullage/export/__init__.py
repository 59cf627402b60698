"""Writers of files for other runtimes, which end by proving that the file computes what the network computes."""
