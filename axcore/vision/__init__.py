"""What families of vision towers have in common: images cut into patches, and modules over them."""
