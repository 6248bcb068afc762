"""The rules, one family to a file or folder; each file ends in its records, which `vjplib.rule.find` finds."""
