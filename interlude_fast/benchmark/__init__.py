"""How fast a configuration would train on this machine."""
