"""Compare served answers with the truth, and decide whether a bundle passes."""
