"""The embedded world: small scenes with everything a vision-language task needs."""
