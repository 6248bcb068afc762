"""The commands of the command line, a module each: `add(command)` gives its name, its options and what runs it."""

from vjplib.commands import bench, figures, listing, verify

COMMANDS = (listing, verify, bench, figures)
