"""From files to batches: samples, media, datasets, collation."""
