"""From a configuration to trained weights."""
