"""Output of the subcommands."""
