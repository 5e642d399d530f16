"""Many photos: which pairs, what the network says of them, and the reconstruction they lead to."""
