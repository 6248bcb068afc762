"""The rules, one family to a file; each file ends in its records, which `vjplib.catalog` finds."""
