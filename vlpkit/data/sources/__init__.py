"""What people have before they have shards: lists and folders of their own, and the annotation files of published data sets.
Every kind is read into one `Listing`; nothing is opened but the annotations, and no image is decoded."""

from vlpkit.data.sources.kinds import read_source
from vlpkit.data.sources.listing import Candidate, Listing

__all__ = ["Candidate", "Listing", "read_source"]
