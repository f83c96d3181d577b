"""The report of a verification: one HTML file that needs no network."""
