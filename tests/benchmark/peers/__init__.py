"""The same site, with one channel, in ours and in what others use."""
