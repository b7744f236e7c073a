"""Steps of the original implementations, recorded once and repeated here."""
