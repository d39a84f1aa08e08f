"""The command line: one module per command, each an options struct, a parser and a function."""
