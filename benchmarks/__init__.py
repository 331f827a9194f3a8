"""Every claim about speed, exactness and quality, measured beside the peers: `make bench`."""
