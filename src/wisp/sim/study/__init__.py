"""Studies: many simulations that answer one question, on all cores, gone on with where they stopped."""
