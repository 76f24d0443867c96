"""From raw scans to images that the scripts read."""
