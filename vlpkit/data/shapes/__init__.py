"""The embedded world: small scenes with true captions, so that everything trains and is measured without a download.
scenes says what is there, render draws it, language speaks of it, write stores it as WebDataset shards."""
