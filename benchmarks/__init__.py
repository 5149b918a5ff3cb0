"""Scripts that turn finished runs and measurements into the tables of the documentation."""
