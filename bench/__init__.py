"""Speed of saccade against its peers: every number with its check and its machine."""
