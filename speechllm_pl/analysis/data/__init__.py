"""Statistics of prepared data, and the utterances in which something looks wrong."""
