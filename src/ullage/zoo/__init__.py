"""Networks, one file a family, and the weights that fit them."""
