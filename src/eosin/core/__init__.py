"""What every room stands on: errors, configuration, files, random draws, registries and the collective calls."""
