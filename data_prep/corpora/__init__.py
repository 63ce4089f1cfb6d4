"""From the files of a corpus to Lhotse manifests: what the programs of all corpora share."""
