"""Published weights, read into genflow's own networks."""
