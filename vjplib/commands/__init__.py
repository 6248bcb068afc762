"""The commands of the command line, a module each: `add(command)` adds the command's parser and its options."""

from vjplib.commands import audit, bench, figures, listing, power, verify

COMMANDS = (listing, verify, audit, power, bench, figures)
