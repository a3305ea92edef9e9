"""Output of the subcommands, a module each; their arguments are in `layersweep.arguments`."""
