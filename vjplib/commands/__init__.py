"""The commands of the command line, a module each: `add(command)` gives its name, its options and what runs it."""

from vjplib.commands import audit, bench, figures, listing, power, verify

COMMANDS = (listing, verify, audit, power, bench, figures)
